//go:build cgo && linux

package pkcs11

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/pkcs11"

	"hsmsign/signer"
	softhsmtest "hsmsign/softhsm-test"
)

// Every way in which a token refuses CKM_RSA_PKCS, and what is left then.
func TestStrictToken(t *testing.T) {
	const notListed, refusedByInit = "C_GetMechanismInfo * mechanism 0x1 0x70", "C_SignInit * mechanism 0x1 "
	tests := []struct {
		name   string
		script []string
		inits  int // C_SignInit for two signatures of two hashes each
		digest bool
	}{
		{"takes both", nil, 4, true},
		{"does not list it", []string{notListed, refusedByInit + "0x70"}, 4, false},
		{"C_SignInit refuses it", []string{refusedByInit + "0x70"}, 5, false},
		{"C_SignInit is not supported for it", []string{refusedByInit + "0x54"}, 5, false},
		{"the key is not permitted for it", []string{refusedByInit + "0x68"}, 5, false},
		{"C_Sign refuses it", []string{"C_Sign 2 after 0x70"}, 5, false},
		{"does not answer C_GetMechanismInfo", []string{"C_GetMechanismInfo * return 0x54"}, 4, true},
	}
	_, private := vendorKey(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tok, f := faulty(t)
			f.Script(t, tt.script...)
			key := mustOpen(t, tok.Ref("vendor"))
			for range 2 {
				for _, h := range []crypto.Hash{crypto.SHA256, crypto.SHA1} {
					hash := h.New()
					hash.Write([]byte("certificate request"))
					want, err := rsa.SignPKCS1v15(nil, private, h, hash.Sum(nil))
					if err != nil {
						t.Fatal(err)
					}
					got, err := key.(signer.MessageSigner).SignMessageContext(t.Context(), []byte("certificate request"), h)
					if err != nil || !bytes.Equal(got, want) {
						t.Errorf("%v: %v, or another signature than crypto/rsa gives", h, err)
					}
				}
			}
			calls(t, f, map[string]int{"C_SignInit": tt.inits})
			if stats(key).Messages == tt.digest {
				t.Errorf("%+v; want Messages %v", stats(key), !tt.digest)
			}
			_, err := key.Sign(nil, digest, crypto.SHA256)
			if tt.digest && err != nil {
				t.Error(err)
			}
			if !tt.digest {
				refused(t, err, signer.ErrUnsupported, "signs whole messages only")
				hinted(t, err)
			}
			// An empty message is a message.
			if _, err := signer.Sign(t.Context(), key, nil, crypto.SHA256); err != nil {
				t.Errorf("empty message: %v", err)
			}
		})
	}
}

// A token that takes no mechanism says so by what it gave for the first, and a bare digest is not lost on the way.
func TestNoMechanism(t *testing.T) {
	tok, f := faulty(t)
	key := mustOpen(t, tok.Ref("vendor"))
	f.Script(t, "C_SignInit * mechanism 0x1 0x68", "C_SignInit * mechanism 0x40 0x70")
	_, err := signer.Sign(t.Context(), key, []byte("x"), crypto.SHA256)
	refused(t, err, signer.ErrBadKey, "CKR_KEY_FUNCTION_NOT_PERMITTED")
	_, err = key.Sign(nil, digest, crypto.SHA256)
	refused(t, err, signer.ErrBadKey, "CKR_KEY_FUNCTION_NOT_PERMITTED")
	f.Script(t)
	mustSign(t, key)
	if stats(key).Messages {
		t.Error("the token is taken for a strict one")
	}
}

// The reference forces a mechanism.
func TestMechanismAttribute(t *testing.T) {
	tok, f := faulty(t)
	f.Script(t, "C_SignInit * mechanism 0x1 0x70")
	mustSign(t, mustOpen(t, tok.Ref("vendor")+"&mechanism=sha256-rsa-pkcs"))
	raw := mustOpen(t, tok.Ref("vendor")+"&mechanism=rsa-pkcs")
	_, err := signer.Sign(t.Context(), raw, []byte("x"), crypto.SHA256)
	refused(t, err, signer.ErrUnsupported, "CKR_MECHANISM_INVALID")
	f.Script(t, "C_SignInit * mechanism 0x40 0x70", "C_SignInit * mechanism 0x6 0x70", "C_GetMechanismInfo * return 0x70")
	mustSign(t, raw)
	_, err = signer.Sign(t.Context(), mustOpen(t, tok.Ref("vendor")+"&mechanism=sha256-rsa-pkcs"), []byte("x"), crypto.SHA256)
	refused(t, err, signer.ErrUnsupported, "CKR_MECHANISM_INVALID")
	calls(t, f, map[string]int{"C_GetMechanismInfo": 0})
}

// What a caller asks for wrongly is refused before the token is asked.
func TestSignMessageRefuses(t *testing.T) {
	tok, f := faulty(t)
	key := mustOpen(t, tok.Ref("vendor")).(signer.MessageSigner)
	for _, opts := range []crypto.SignerOpts{nil, crypto.Hash(0), crypto.SHA512, &rsa.PSSOptions{Hash: crypto.SHA256}, (*rsa.PSSOptions)(nil)} {
		_, err := key.SignMessageContext(t.Context(), []byte("x"), opts)
		refused(t, err, signer.ErrUnsupported)
	}
	calls(t, f, map[string]int{"C_SignInit": 0})
}

// always puts a copy of the test key with CKA_ALWAYS_AUTHENTICATE into the token.
func always(t *testing.T, tok *softhsmtest.Token, label string) {
	t.Helper()
	path, err := softhsmtest.FindModule()
	if err != nil {
		t.Fatal(err)
	}
	lib := load(t, path)
	if err := lib.Initialize(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lib.Finalize() }()
	there, err := (&module{lib: lib}).findToken(reference{})
	if err != nil {
		t.Fatal(err)
	}
	sh, err := lib.OpenSession(there.slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err == nil {
		err = lib.Login(sh, pkcs11.CKU_USER, tok.PIN)
	}
	if err != nil {
		t.Fatal(err)
	}
	_, k := vendorKey(t)
	attr := pkcs11.NewAttribute
	_, err = lib.CreateObject(sh, []*pkcs11.Attribute{
		attr(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY), attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_RSA), attr(pkcs11.CKA_TOKEN, true),
		attr(pkcs11.CKA_PRIVATE, true), attr(pkcs11.CKA_SENSITIVE, true), attr(pkcs11.CKA_SIGN, true), attr(pkcs11.CKA_ALWAYS_AUTHENTICATE, true),
		attr(pkcs11.CKA_LABEL, label), attr(pkcs11.CKA_ID, []byte{0x55}),
		attr(pkcs11.CKA_MODULUS, k.N.Bytes()), attr(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}), attr(pkcs11.CKA_PRIVATE_EXPONENT, k.D.Bytes()),
		attr(pkcs11.CKA_PRIME_1, k.Primes[0].Bytes()), attr(pkcs11.CKA_PRIME_2, k.Primes[1].Bytes()), attr(pkcs11.CKA_EXPONENT_1, k.Precomputed.Dp.Bytes()),
		attr(pkcs11.CKA_EXPONENT_2, k.Precomputed.Dq.Bytes()), attr(pkcs11.CKA_COEFFICIENT, k.Precomputed.Qinv.Bytes()),
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A key with CKA_ALWAYS_AUTHENTICATE gets the PIN for each signature, and a PIN that is refused once is not sent by
// any caller again.
func TestAlwaysAuthenticate(t *testing.T) {
	tok, f := faulty(t)
	always(t, tok, "careful")
	careful := mustOpen(t, tok.Ref("careful"))
	for range 3 {
		mustSign(t, careful)
	}
	calls(t, f, map[string]int{"C_Login": 4, "C_Initialize": 1})
	mustSign(t, mustOpen(t, tok.Ref("vendor")))
	calls(t, f, map[string]int{"C_Login": 4})

	f.Script(t, "C_Login * return 0xA0")
	var callers sync.WaitGroup
	for range 8 {
		callers.Go(func() {
			_, err := signer.Sign(context.Background(), careful, []byte("x"), crypto.SHA256)
			refused(t, err, signer.ErrAuth, "CKR_PIN_INCORRECT")
		})
	}
	callers.Wait()
	calls(t, f, map[string]int{"C_Login": 5})
}

// A token with a PIN pad is sent no PIN, and its user is told to go there.
func TestPINPad(t *testing.T) {
	tok := newToken(t)
	s := script(t, tok.Module)
	s.flags = pkcs11.CKF_PROTECTED_AUTHENTICATION_PATH
	var sent []string
	s.pad = func(pin string) string { sent = append(sent, pin); return tok.PIN }
	var warned []string
	opts := Options{Warn: func(text string) { warned = append(warned, text) }}
	bare, _, _ := strings.Cut(tok.Ref("vendor"), "&pin-source")
	for _, ref := range []string{bare, tok.Ref("vendor")} {
		key, err := Backend(opts).Open(t.Context(), parse(t, ref), signer.OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		mustSign(t, key)
		if err := key.Close(); err != nil {
			t.Error(err)
		}
	}
	if len(sent) != 2 || sent[0] != "" || sent[1] != tok.PIN {
		t.Errorf("sent %q; want no PIN, then the one that the reference names", sent)
	}
	if len(warned) != 1 || !strings.Contains(warned[0], "PIN pad") {
		t.Errorf("warnings %q; want one about the PIN pad", warned)
	}
}
