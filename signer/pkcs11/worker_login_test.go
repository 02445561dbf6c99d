//go:build cgo && unix

package pkcs11

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"hsmsign/secret"
	"hsmsign/signer"
)

// A wrong PIN costs the token one login, however many keys are opened with it.
func TestWorkerWrongPIN(t *testing.T) {
	tok := newToken(t)
	s := newSpy(t, tok.Module)
	const wrong = "9173551"
	bare, _, _ := strings.Cut(tok.Ref("vendor"), "&pin-source")
	var group sync.WaitGroup
	for range 10 {
		group.Go(func() {
			_, err := Backend(workerOptions()).Open(context.Background(), parse(t, bare+"&pin-value="+wrong), signer.OpenOptions{})
			// While SoftHSM2 writes down that a PIN was wrong, other processes may not see the token.
			if !errors.Is(err, signer.ErrKeyNotFound) {
				refused(t, err, signer.ErrAuth, "CKR_PIN_INCORRECT")
			}
			if strings.Contains(fmt.Sprint(err), wrong) {
				t.Errorf("the error tells the PIN: %v", err)
			}
		})
	}
	group.Wait()
	_, err := Backend(workerOptions()).Open(t.Context(), parse(t, tok.Ref("vendor")), signer.OpenOptions{})
	refused(t, err, signer.ErrAuth, "CKR_PIN_INCORRECT", "no PIN was sent again")
	if n := s.calls("C_Login"); n != 1 {
		t.Errorf("%d C_Login; want 1", n)
	}
	newer := newToken(t) // which is another one
	signs(t, openWorker(t, newer.Ref("vendor"), workerOptions()))
}

// A PIN that worked is sent to the next worker, and asked of nobody. When the token refuses it then, it is not sent
// a third time.
func TestWorkerLogsInAgain(t *testing.T) {
	tok := newToken(t)
	s := newSpy(t, tok.Module)
	asked := 0
	opts := workerOptions()
	opts.Secrets.Prompt = func(_ context.Context, label string) ([]byte, error) {
		asked++
		if label != `PIN of token "`+tok.Label+`"` {
			t.Errorf("asked for %q", label)
		}
		return []byte(tok.PIN), nil
	}
	bare, _, _ := strings.Cut(tok.Ref("vendor"), "&pin-source")
	k := openWorker(t, bare, opts)
	other := openWorker(t, bare, opts)
	kill(t, k.pid(), syscall.SIGKILL)
	signs(t, k)
	if asked != 1 || s.calls("C_Login") != 3 {
		t.Errorf("the person was asked %d times, for %d logins; want once, for 3", asked, s.calls("C_Login"))
	}
	s.fault(t, "refuse-login", "")
	kill(t, k.pid(), syscall.SIGKILL)
	_, err := k.SignContext(t.Context(), digest, crypto.SHA256)
	refused(t, err, signer.ErrAuth, "CKR_PIN_INCORRECT")
	_, err = k.SignContext(t.Context(), digest, crypto.SHA256)
	refused(t, err, signer.ErrAuth, "no PIN was sent again")
	signs(t, other) // which is logged in
	kill(t, other.pid(), syscall.SIGKILL)
	_, err = other.SignContext(t.Context(), digest, crypto.SHA256)
	refused(t, err, signer.ErrAuth, "no PIN was sent again")
	if n := s.calls("C_Login"); n != 4 {
		t.Errorf("%d C_Login; want 4", n)
	}
}

// The errors of a PIN's source keep what they wrap; nobody at the terminal keeps nobody waiting.
func TestWorkerWithoutPIN(t *testing.T) {
	tok := newToken(t)
	s := newSpy(t, tok.Module)
	bare, _, _ := strings.Cut(tok.Ref("vendor"), "&pin-source")
	errAway := errors.New("went for lunch")
	opts := workerOptions()
	opts.Secrets.Prompt = func(context.Context, string) ([]byte, error) { return nil, errAway }
	_, err := Backend(opts).Open(t.Context(), parse(t, bare), signer.OpenOptions{})
	refused(t, err, signer.ErrAuth, "went for lunch")
	refused(t, err, errAway)

	answer := make(chan struct{})
	opts.Secrets.Prompt = func(context.Context, string) ([]byte, error) {
		<-answer // whatever its context says
		return []byte(tok.PIN), nil
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err = Backend(opts).Open(ctx, parse(t, bare), signer.OpenOptions{})
	refused(t, err, context.DeadlineExceeded)
	close(answer)
	signs(t, openWorker(t, tok.Ref("vendor"), opts)) // nothing is latched, and nobody has the turn
	if n := s.calls("C_Login"); n != 1 {
		t.Errorf("%d C_Login; want 1", n)
	}
}

// A PIN that comes when its worker has failed is not kept.
func TestWorkerLatePIN(t *testing.T) {
	opts := Options{Secrets: secret.Reader{Prompt: func(context.Context, string) ([]byte, error) { return []byte("4711"), nil }}}
	l := &login{ctx: t.Context(), opts: opts, module: &workerModule{tokens: map[tokenID]*workerToken{}}}
	if _, err := l.end(errLost, true); !errors.Is(err, errLost) {
		t.Errorf("the end of the login: %v", err)
	}
	pin, err := l.read("mdm", "1")
	if !errors.Is(err, signer.ErrUnavailable) || pin != nil || l.secret() != nil || l.token != nil {
		t.Errorf("%q, %v; want no PIN", pin, err)
	}
}

// A module that crashes while it logs in has not refused the PIN. It is not sent again by itself.
func TestWorkerCrashesInLogin(t *testing.T) {
	tok := newToken(t)
	s := newSpy(t, tok.Module)
	s.fault(t, "crash-login", "")
	_, err := Backend(workerOptions()).Open(t.Context(), parse(t, tok.Ref("vendor")), signer.OpenOptions{})
	refused(t, err, signer.ErrUnavailable, "SIGSEGV")
	if errors.Is(err, signer.ErrAuth) {
		t.Errorf("error %v; nobody was refused", err)
	}
	if n := s.calls("C_Login"); n != 1 {
		t.Errorf("%d C_Login; want 1", n)
	}
	signs(t, openWorker(t, tok.Ref("vendor"), workerOptions()))
}

// Another key under the name of the first, or another token, is not signed with.
func TestWorkerMeetsAnotherKey(t *testing.T) {
	tok := newToken(t)
	k := openWorker(t, tok.Ref("vendor"), workerOptions())
	k.spki[len(k.spki)-8] ^= 1 // as if the first worker had found another key
	kill(t, k.pid(), syscall.SIGKILL)
	_, err := k.SignContext(t.Context(), digest, crypto.SHA256)
	refused(t, err, signer.ErrKeyNotFound, "another key")

	k = openWorker(t, tok.Ref("vendor"), workerOptions())
	k.token = workerModuleAt(tok.Module).token(tokenID{label: tok.Label, serial: "another serial"})
	k.token.retain([]byte("1234"))
	kill(t, k.pid(), syscall.SIGKILL)
	_, err = k.SignContext(t.Context(), digest, crypto.SHA256)
	refused(t, err, signer.ErrAuth, "another token than before")
}

func TestWorkerManyKeys(t *testing.T) {
	tok := newToken(t)
	var group sync.WaitGroup
	keys := make([]signer.Signer, 10)
	for i := range keys {
		group.Go(func() {
			key, err := Backend(workerOptions()).Open(context.Background(), parse(t, tok.Ref("vendor")), signer.OpenOptions{})
			if err != nil {
				t.Error(err)
				return
			}
			keys[i] = key
			signs(t, key)
		})
	}
	group.Wait()
	if t.Failed() {
		return
	}
	token := keys[0].(*workerKey).token
	pin := token.pin
	if string(pin) != tok.PIN {
		t.Errorf("the PIN that is kept is %q", pin)
	}
	for i, key := range keys {
		if token.pin == nil {
			t.Errorf("the PIN is gone with %d keys open", len(keys)-i)
		}
		if err := key.Close(); err != nil {
			t.Error(err)
		}
	}
	if token.pin != nil || strings.Trim(string(pin), "\x00") != "" {
		t.Errorf("the PIN outlives the keys: %q", pin)
	}
}
