//go:build cgo && linux

package pkcs11

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"hsmsign/internal/signerkit"
	"hsmsign/internal/testkit"
	"hsmsign/secret"
	"hsmsign/signer"
)

// The reference and the options decide where the module runs, and how many signatures a worker makes at the same time.
func TestIsolateAttribute(t *testing.T) {
	tok, f := faulty(t)
	for _, tt := range []struct {
		attr    string
		isolate bool
		want    string
	}{
		{"", false, "*pkcs11.key"}, {"", true, "*pkcs11.isolatedKey"},
		{"&isolate=yes", false, "*pkcs11.isolatedKey"}, {"&isolate=no", true, "*pkcs11.key"},
	} {
		opts := workerOptions()
		opts.Isolate = tt.isolate
		key := testkit.Value(open(t, opts, tok.Ref("vendor")+tt.attr))(t)
		if got := fmt.Sprintf("%T", key); got != tt.want {
			t.Errorf("%q, Isolate %v: %s; want %s", tt.attr, tt.isolate, got, tt.want)
		}
		closeKey(t, key)
	}
	key := mustOpenWith(t, workerOptions(), tok.Ref("vendor")+"&max-sessions=3")
	f.Script(t, "C_Sign * hang")
	var callers sync.WaitGroup
	for range 5 {
		callers.Go(func() { mustSign(t, key) })
	}
	testkit.Eventually(t, "three sessions in C_Sign", func() bool { return f.Calls(t)["C_Sign"] == 3 })
	f.Script(t)
	callers.Wait()

	_, err := open(t, workerOptions(), tok.Ref("vendor")+"&isolate=maybe")
	signerkit.Refused(t, err, signer.ErrReference, "isolate")
	_, err = open(t, Options{}, tok.Ref("vendor")+"&isolate=yes")
	hinted(t, err, signer.ErrUnsupported, "no worker process")
	_, err = open(t, Options{Worker: []string{"/no/such/program"}}, tok.Ref("vendor")+"&isolate=yes")
	hinted(t, err, signer.ErrUnavailable, "/no/such/program")
}

// The reference reaches the worker exactly, not as it is printed, with the wanted public key; warnings come back.
func TestWorkerOptions(t *testing.T) {
	tok := newToken(t)
	second := testkit.Key("second")
	tok.Import(t, keyPEM(t, second), "pin-value=1;2", []byte{2})
	_, err := open(t, workerOptions(), tok.Ref(""))
	signerkit.Refused(t, err, signer.ErrAmbiguousKey)
	var warned []string
	opts := workerOptions()
	opts.Warn = func(text string) { warned = append(warned, text) }
	none := bare(tok.Ref("")) + "&pin-value=" + tok.PIN
	for _, ref := range []string{none, strings.Replace(none, "?", ";object=pin-value%3D1%3B2?", 1)} {
		warned = nil
		key := testkit.Value(Backend(opts).Open(t.Context(), signerkit.Ref(t, ref), signer.OpenOptions{PublicKey: &second.PublicKey}))(t)
		if !second.PublicKey.Equal(key.Public()) {
			t.Errorf("%s: another key", ref)
		}
		if _, err := signer.Sign(t.Context(), key, []byte("x"), crypto.SHA256); err != nil {
			t.Error(err)
		}
		closeKey(t, key)
		if len(warned) != 1 || !strings.Contains(warned[0], "pin-value") {
			t.Errorf("warnings %q; want one about pin-value", warned)
		}
	}
}

// Neither environment nor arguments of a worker contain the variables of hsmsign or the PIN.
func TestWorkerEnvironment(t *testing.T) {
	tok := newToken(t)
	t.Setenv("HSMSIGN_PIN", tok.PIN)
	t.Setenv("MY_PIN", tok.PIN)
	seen := filepath.Join(t.TempDir(), "seen")
	opts := workerOptions()
	opts.Secrets.Getenv = os.Getenv
	opts.Worker = append([]string{"/bin/sh", "-c", `tr '\0' '\n' </proc/$$/environ >` + seen + `; echo "$0 $@" >>` + seen + `; exec "$0" "$@"`}, opts.Worker...)
	for _, ref := range []string{bare(tok.Ref("vendor")) + "&pin-source=env:MY_PIN", bare(tok.Ref("vendor")) + "&pin-value=" + tok.PIN} {
		mustSign(t, mustOpenWith(t, opts, ref))
		text := testkit.Value(os.ReadFile(seen))(t)
		for name, want := range map[string]bool{"HSMSIGN_": false, "MY_PIN": strings.Contains(ref, "value"), "SOFTHSM2_CONF=": true, "pkcs11-worker": true} {
			if got := strings.Contains(string(text), name); got != want {
				t.Errorf("%s: %q is in the worker's environment or arguments: %v", signerkit.Ref(t, ref), name, got)
			}
		}
	}
}

// A crash in the module costs a retry, and a hang the worker after the deadline; at the end the module is finalized.
func TestWorkerCrashesInModule(t *testing.T) {
	tok, f := faulty(t)
	before := goleak.IgnoreCurrent()
	key := testkit.Value(open(t, workerOptions(), tok.Ref("vendor")))(t)
	f.Script(t, "C_Sign 1 crash")
	mustSign(t, key)
	calls(t, f, map[string]int{"C_Sign": 3, "C_Login": 2}) // the one that crashed, and two for a signature and its length
	f.Script(t, "C_Sign * crash")
	_, err := key.Sign(nil, digest, crypto.SHA256)
	hinted(t, err, signer.ErrUnavailable, "signal: segmentation fault")
	f.Script(t)
	testkit.Eventually(t, "the end of the back-off", func() bool {
		_, err := key.Sign(nil, digest, crypto.SHA256)
		return err == nil
	})
	finalized := f.Calls(t)["C_Finalize"]
	closeKey(t, key)
	calls(t, f, map[string]int{"C_Finalize": finalized + 1})
	if err := goleak.Find(before); err != nil {
		t.Error(err)
	}
}

// A wrong PIN costs the token one login, however many keys are opened with it at the same time. A key whose module
// crashes in C_Login was not refused, and the PIN is not sent again by itself.
func TestWorkerWrongPIN(t *testing.T) {
	tok, f := faulty(t)
	f.Script(t, "C_Login 1 crash")
	_, err := open(t, workerOptions(), tok.Ref("vendor"))
	signerkit.Refused(t, err, signer.ErrUnavailable, "segmentation fault")
	if errors.Is(err, signer.ErrAuth) {
		t.Errorf("error %v; nothing was refused", err)
	}
	calls(t, f, map[string]int{"C_Login": 1})
	f.Script(t)
	var group sync.WaitGroup
	for n := range 10 {
		group.Go(func() {
			opts := workerOptions()
			opts.Isolate = n%3 > 0
			_, err := open(t, opts, bare(tok.Ref("vendor"))+"&pin-value="+wrong)
			// While SoftHSM2 records that a PIN was wrong, other processes may not see the token.
			if !errors.Is(err, signer.ErrKeyNotFound) {
				signerkit.Refused(t, err, signer.ErrAuth, "CKR_PIN_INCORRECT")
			}
			if strings.Contains(fmt.Sprint(err), wrong) {
				t.Errorf("the error contains the PIN: %v", err)
			}
		})
	}
	group.Wait()
	calls(t, f, map[string]int{"C_Login": 2})
}

// A PIN that worked is sent to the next worker without asking anybody. If the token refuses it then, no worker sends it
// again.
func TestWorkerLogsInAgain(t *testing.T) {
	tok, f := faulty(t)
	asked := 0
	opts := workerOptions()
	opts.Secrets.Prompt = func(_ context.Context, label string) ([]byte, error) {
		asked++
		if label != `PIN of token "`+tok.Label+`"` {
			t.Errorf("asked for %q", label)
		}
		return []byte(tok.PIN), nil
	}
	k, other := mustOpenWith(t, opts, bare(tok.Ref("vendor"))), mustOpenWith(t, opts, bare(tok.Ref("vendor")))
	mustSign(t, other)
	f.Script(t, "C_Sign 1 crash")
	mustSign(t, k)
	if asked != 1 {
		t.Errorf("the person was asked %d times, want once", asked)
	}
	calls(t, f, map[string]int{"C_Login": 3})
	f.Script(t, "C_Sign 1 crash", "C_Login 1 return 0xA0")
	_, err := k.Sign(nil, digest, crypto.SHA256)
	hinted(t, err, signer.ErrAuth, "CKR_PIN_INCORRECT")
	_, err = k.Sign(nil, digest, crypto.SHA256)
	hinted(t, err, signer.ErrAuth, "no PIN was sent again")
	mustSign(t, other) // it is logged in
	f.Script(t, "C_Sign 1 crash")
	_, err = other.Sign(nil, digest, crypto.SHA256)
	signerkit.Refused(t, err, signer.ErrAuth, "no PIN was sent again")
	calls(t, f, map[string]int{"C_Login": 4})
}

// The errors of a PIN's source keep what they wrap. A person who does not answer keeps no caller waiting, and nothing is
// latched.
func TestWorkerWithoutPIN(t *testing.T) {
	tok, f := faulty(t)
	errAway := errors.New("went for lunch")
	opts := workerOptions()
	opts.Secrets.Prompt = func(context.Context, string) ([]byte, error) { return nil, errAway }
	_, err := open(t, opts, bare(tok.Ref("vendor")))
	signerkit.Refused(t, err, signer.ErrAuth, "went for lunch")
	signerkit.Refused(t, err, errAway)

	answer := make(chan struct{})
	opts.Secrets.Prompt = func(context.Context, string) ([]byte, error) {
		<-answer // it ignores its context
		return []byte(tok.PIN), nil
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err = Backend(opts).Open(ctx, signerkit.Ref(t, bare(tok.Ref("vendor"))), signer.OpenOptions{})
	signerkit.Refused(t, err, context.DeadlineExceeded)
	mustSign(t, mustOpenWith(t, opts, tok.Ref("vendor")))
	close(answer)
	calls(t, f, map[string]int{"C_Login": 1})
}

// A PIN that comes after its worker has failed is not kept, and another token than before gets none.
func TestWorkerLatePIN(t *testing.T) {
	opts := Options{Secrets: secret.Reader{Prompt: func(context.Context, string) ([]byte, error) { return []byte("4711"), nil }}}
	k := &isolatedKey{opts: opts, module: &module{}}
	l := &workerLogin{key: k}
	if err := l.end(errLost); !errors.Is(err, errLost) {
		t.Errorf("the end of the login: %v", err)
	}
	const token = "mdm\x001\x00\x00"
	pin, err := l.secret(t.Context(), token)
	if !errors.Is(err, signer.ErrUnavailable) || pin != nil || l.sent != nil || k.token() != nil {
		t.Errorf("%q, %v; want no PIN", pin, err)
	}

	l = &workerLogin{key: k}
	for range 2 { // the same token may be asked for again
		if pin, err := l.secret(t.Context(), token); err != nil || string(pin) != "4711" {
			t.Errorf("%q, %v", pin, err)
		}
	}
	if err := l.end(nil); err != nil || k.token() == nil {
		t.Errorf("%v, and no PIN is kept", err)
	}
	if pin, err := l.secret(t.Context(), token); err == nil {
		t.Errorf("after the end: %q", pin)
	}
	l = &workerLogin{key: k}
	for question, want := range map[string]string{"mdm\x002\x00\x00": "another token than before", "mdm": "names no token"} {
		if _, err := l.secret(t.Context(), question); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v; want %q", question, err, want)
		}
	}
	if pin, err := l.secret(t.Context(), token); err != nil || string(pin) != "4711" { // no turn was lost
		t.Errorf("%q, %v", pin, err)
	}
	_ = l.end(nil)

	// The token refuses the PIN of another key while this one is read.
	other := k.module.pin(tokenID{label: "other"})
	k = &isolatedKey{module: k.module}
	k.opts.Secrets.Prompt = func(context.Context, string) ([]byte, error) {
		other.refuse(errLost)
		return []byte("4711"), nil
	}
	if pin, err := (&workerLogin{key: k}).secret(t.Context(), "other\x00\x00\x00"); pin != nil || !errors.Is(err, errLost) {
		t.Errorf("%q, %v; want no PIN", pin, err)
	}
}
