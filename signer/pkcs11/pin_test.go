//go:build cgo && linux

package pkcs11

import (
	"bytes"
	"context"
	"crypto"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/pkcs11"

	"hsmsign/internal/signerkit"
	"hsmsign/internal/testkit"
	"hsmsign/secret"
	"hsmsign/signer"
	softhsmtest "hsmsign/softhsm-test"
)

// wrong is a PIN that no token has.
const wrong = "9173551"

func TestPINSources(t *testing.T) {
	tok := newToken(t)
	none := bare(tok.Ref("vendor"))
	env := func(name string) secret.Reader {
		return secret.Reader{Getenv: func(n string) string { return map[string]string{name: tok.PIN}[n] }}
	}
	prompt := secret.Reader{Prompt: func(_ context.Context, label string) ([]byte, error) {
		if label != `PIN of token "`+tok.Label+`"` {
			return nil, fmt.Errorf("asked for %q", label)
		}
		return []byte(tok.PIN), nil
	}}
	readable := filepath.Join(t.TempDir(), "pin")
	testkit.OK(t, os.WriteFile(readable, []byte(tok.PIN+"\r\n"), 0o600))
	if err := os.Chmod(readable, 0o644); err != nil { // #nosec G302 -- the mode is tested
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, ref string
		secrets   secret.Reader
		refused   string // empty: it opens
		warns     string // empty: it does not
	}{
		{"file", tok.Ref("vendor"), secret.Reader{}, "", ""},
		{"variable by default", none, env("HSMSIGN_PIN"), "", ""},
		{"variable by name", none + "&pin-source=env:MY_PIN", env("MY_PIN"), "", ""},
		{"prompt by default", none, prompt, "", ""},
		{"prompt by name", none + "&pin-source=prompt", prompt, "", ""},
		{"value", none + "&pin-value=" + tok.PIN, secret.Reader{}, "", "pin-value"},
		{"nothing", none, secret.Reader{}, "HSMSIGN_PIN", ""},
		{"no such file", none + "&pin-source=file:" + readable + "2", secret.Reader{}, "PIN file not found", ""},
		{"readable by others", none + "&pin-source=file:" + readable, secret.Reader{}, "group or others can read it", ""},
		{"and allowed", none + "&insecure-mode=allow&pin-source=file:" + readable, secret.Reader{}, "", "insecure-mode"},
		{"allowed without need", tok.Ref("vendor") + "&insecure-mode=allow", secret.Reader{}, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var warned []string
			key, err := open(t, Options{Secrets: tt.secrets, Warn: func(text string) { warned = append(warned, text) }}, tt.ref)
			if tt.refused != "" {
				signerkit.Refused(t, err, map[bool]error{false: signer.ErrAuth, true: secret.ErrNoFile}[tt.name == "no such file"], tt.refused)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			closeKey(t, key)
			switch text := strings.Join(warned, "\n"); {
			case len(warned) > 1, (tt.warns == "") != (len(warned) == 0), !strings.Contains(text, tt.warns):
				t.Errorf("warnings %q; want one about %q", warned, tt.warns)
			case strings.Contains(text, tok.PIN):
				t.Errorf("a warning contains the PIN")
			}
		})
	}
}

// A wrong PIN is sent once, also by keys in workers, in whatever order they are opened; other tokens are not concerned.
func TestWrongPIN(t *testing.T) {
	for name, first := range map[string]Options{"here": {}, "isolated": workerOptions()} {
		t.Run(name, func(t *testing.T) {
			tok, f := faulty(t)
			second := softhsmtest.New(t, softhsmtest.WithDir(tok), softhsmtest.WithLabel("second"))
			second.Import(t, testkit.File(t, "golden/vendor.key"), "vendor", []byte{1})
			f.Use(second)
			_, err := open(t, first, bare(tok.Ref("vendor"))+"&pin-value="+wrong)
			hinted(t, err, signer.ErrAuth, "CKR_PIN_INCORRECT")
			if strings.Contains(err.Error(), wrong) {
				t.Errorf("the error contains the PIN: %v", err)
			}
			for _, opts := range []Options{{}, workerOptions(), {}} {
				for _, ref := range []string{bare(tok.Ref("vendor")) + "&pin-value=" + wrong, tok.Ref("vendor")} {
					_, err := open(t, opts, ref)
					hinted(t, err, signer.ErrAuth, "CKR_PIN_INCORRECT", "no PIN was sent again")
				}
			}
			c := f.Calls(t)
			if c["C_Login"] != 1 || c["C_Initialize"] != c["C_Finalize"] || c["C_OpenSession"] != c["C_CloseSession"] {
				t.Errorf("calls %v; want one login, and everything released", c)
			}
			mustSign(t, mustOpen(t, second.Ref("vendor")))
		})
	}
}

// A token that counts wrong PINs gets one from each process, and none when one try is left.
func TestPINCounter(t *testing.T) {
	tok, f := faulty(t)
	f.Script(t, "C_Login * pins 3")
	openFails(t, bare(tok.Ref("vendor"))+"&pin-value="+wrong, signer.ErrAuth, "CKR_PIN_INCORRECT")
	calls(t, f, map[string]int{"C_Login": 1})
	for range 3 { // as other processes
		again := filepath.Join(t.TempDir(), "again.so")
		testkit.OK(t, os.Link(f.Path, again))
		openFails(t, strings.Replace(bare(tok.Ref("vendor")), f.Path, again, 1)+"&pin-value="+wrong, signer.ErrAuth)
	}
	calls(t, f, map[string]int{"C_Login": 2})
}

// The PIN that worked is refused after a recovery: it is not sent again.
func TestPINRefusedAfterRecovery(t *testing.T) {
	tok, f := faulty(t)
	k := mustOpen(t, tok.Ref("vendor"))
	k.module.pause = 0
	mustSign(t, k)
	f.Script(t, "C_Sign 1 return 0x30", "C_Login * return 0xA0")
	for range 3 {
		_, err := signer.Sign(t.Context(), k, []byte("x"), crypto.SHA256)
		hinted(t, err, signer.ErrAuth, "CKR_PIN_INCORRECT")
	}
	calls(t, f, map[string]int{"C_Login": 2})
	f.Script(t)
	openFails(t, tok.Ref("vendor"), signer.ErrAuth, "no PIN was sent again")
	calls(t, f, map[string]int{"C_Login": 2})
}

// The PIN is in memory while a key of the token is open, here or in a worker, and not afterwards.
func TestPINIsForgotten(t *testing.T) {
	tok := newToken(t)
	first := testkit.Value(open(t, Options{}, tok.Ref("vendor")))(t)
	pin := first.(*key).token.pin
	keys := []signer.Signer{first}
	for range 2 {
		// The PIN is known.
		isolated := testkit.Value(open(t, workerOptions(), bare(tok.Ref("vendor"))))(t)
		keys = append(keys, isolated)
	}
	kept := pin.value
	for i, k := range keys {
		if string(kept) != tok.PIN {
			t.Errorf("the PIN is %q with %d keys open", kept, len(keys)-i)
		}
		closeKey(t, k)
		closeKey(t, k)
	}
	if pin.value != nil || !bytes.Equal(kept, make([]byte, len(tok.PIN))) {
		t.Errorf("the PIN is kept after Close: %q", kept)
	}
}

// A token with a PIN pad is sent no PIN unless the reference has one, and its user is told to go there.
func TestPINPad(t *testing.T) {
	for name, opts := range map[string]Options{"here": {}, "isolated": workerOptions()} {
		t.Run(name, func(t *testing.T) {
			tok, f := faulty(t)
			var warned []string
			opts.Warn = func(text string) { warned = append(warned, text) }
			const flags = "C_GetTokenInfo * flags 0x100" // CKF_PROTECTED_AUTHENTICATION_PATH
			for ref, script := range map[string]string{
				bare(tok.Ref("vendor")): "C_Login * pad " + tok.PIN, tok.Ref("vendor"): "", bare(tok.Ref("vendor")) + "&pin-value=" + tok.PIN: "",
			} {
				f.Script(t, flags, script)
				key := testkit.Value(open(t, opts, ref))(t)
				mustSign(t, key)
				closeKey(t, key)
			}
			if n := strings.Count(strings.Join(warned, "\n"), "PIN pad"); n != 1 || len(warned) != 2 {
				t.Errorf("warnings %q; want one about the PIN pad, and one about pin-value", warned)
			}
		})
	}
}

// always stores a copy of the golden key with CKA_ALWAYS_AUTHENTICATE in the token.
func always(t *testing.T, tok *softhsmtest.Token, label string) {
	t.Helper()
	r := testkit.Value(Options{}.reference("open", signerkit.Ref(t, tok.Ref("vendor"))))(t)
	k := testkit.GoldenKey(t)
	attr := pkcs11.NewAttribute
	_, err := withToken(t.Context(), r, Options{}, writer, func(f finder, _ foundToken) (pkcs11.ObjectHandle, error) {
		return f.lib.CreateObject(f.sh, []*pkcs11.Attribute{
			attr(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY), attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_RSA), attr(pkcs11.CKA_TOKEN, true),
			attr(pkcs11.CKA_PRIVATE, true), attr(pkcs11.CKA_SENSITIVE, true), attr(pkcs11.CKA_SIGN, true), attr(pkcs11.CKA_ALWAYS_AUTHENTICATE, true),
			attr(pkcs11.CKA_LABEL, label), attr(pkcs11.CKA_ID, []byte{0x55}),
			attr(pkcs11.CKA_MODULUS, k.N.Bytes()), attr(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}), attr(pkcs11.CKA_PRIVATE_EXPONENT, k.D.Bytes()),
			attr(pkcs11.CKA_PRIME_1, k.Primes[0].Bytes()), attr(pkcs11.CKA_PRIME_2, k.Primes[1].Bytes()), attr(pkcs11.CKA_EXPONENT_1, k.Precomputed.Dp.Bytes()),
			attr(pkcs11.CKA_EXPONENT_2, k.Precomputed.Dq.Bytes()), attr(pkcs11.CKA_COEFFICIENT, k.Precomputed.Qinv.Bytes()),
		})
	})
	testkit.OK(t, err)
}

// A key with CKA_ALWAYS_AUTHENTICATE gets the PIN for each signature. A PIN that is refused once is not sent again by any
// caller, nor by another key of the token.
func TestAlwaysAuthenticate(t *testing.T) {
	for name, opts := range map[string]Options{"here": {}, "isolated": workerOptions()} {
		t.Run(name, func(t *testing.T) {
			tok, f := faulty(t)
			always(t, tok, "careful")
			before := f.Calls(t)["C_Login"]
			careful := mustOpenWith(t, opts, tok.Ref("careful"))
			for range 3 {
				mustSign(t, careful)
			}
			calls(t, f, map[string]int{"C_Login": before + 4})
			f.Script(t, "C_Login * return 0xA0")
			var callers sync.WaitGroup
			for range 8 {
				callers.Go(func() {
					_, err := signer.Sign(context.Background(), careful, []byte("x"), crypto.SHA256)
					signerkit.Refused(t, err, signer.ErrAuth, "CKR_PIN_INCORRECT")
				})
			}
			callers.Wait()
			for _, opts := range []Options{{}, workerOptions()} {
				_, err := open(t, opts, tok.Ref("vendor"))
				signerkit.Refused(t, err, signer.ErrAuth, "no PIN was sent again")
			}
			calls(t, f, map[string]int{"C_Login": before + 5})
		})
	}
}
