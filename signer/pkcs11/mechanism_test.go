//go:build cgo && linux

package pkcs11

import (
	"crypto"
	"crypto/rsa"
	"testing"

	"hsmsign/signer"
)

// Every way in which a token refuses CKM_RSA_PKCS, and what works then.
func TestStrictToken(t *testing.T) {
	const notListed, refusedByInit = "C_GetMechanismInfo * mechanism 0x1 0x70", "C_SignInit * mechanism 0x1 "
	for _, tt := range []struct {
		name   string
		script []string
		inits  int // C_SignInit for two signatures of two hashes each
		digest bool
	}{
		{"takes both", nil, 4, true},
		{"does not list it", []string{notListed, refusedByInit + "0x70"}, 4, false},
		{"C_SignInit refuses it", []string{refusedByInit + "0x70"}, 5, false},
		{"C_SignInit does not support it", []string{refusedByInit + "0x54"}, 5, false},
		{"the key does not permit it", []string{refusedByInit + "0x68"}, 5, false},
		{"C_Sign refuses it", []string{"C_Sign 2 after 0x70"}, 5, false},
		{"does not answer C_GetMechanismInfo", []string{"C_GetMechanismInfo * return 0x54"}, 4, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tok, f := faulty(t)
			f.Script(t, tt.script...)
			k := mustOpen(t, tok.Ref("vendor"))
			for range 2 {
				for _, h := range []crypto.Hash{crypto.SHA256, crypto.SHA1} {
					if _, err := signer.Sign(t.Context(), k, []byte("certificate request"), h); err != nil {
						t.Errorf("%v: %v", h, err)
					}
				}
			}
			calls(t, f, map[string]int{"C_SignInit": tt.inits})
			if stats(k).Messages == tt.digest {
				t.Errorf("%+v; want Messages %v", stats(k), !tt.digest)
			}
			_, err := k.Sign(nil, digest, crypto.SHA256)
			if tt.digest && err != nil {
				t.Error(err)
			}
			if !tt.digest {
				hinted(t, err, signer.ErrUnsupported, "signs whole messages only")
			}
			// An empty message is a message.
			if _, err := signer.Sign(t.Context(), k, nil, crypto.SHA256); err != nil {
				t.Errorf("empty message: %v", err)
			}
		})
	}
}

// A token that accepts no mechanism reports what it returned for the first one, for messages and digests.
func TestNoMechanism(t *testing.T) {
	tok, f := faulty(t)
	k := mustOpen(t, tok.Ref("vendor"))
	f.Script(t, "C_SignInit * mechanism 0x1 0x68", "C_SignInit * mechanism 0x40 0x70")
	_, err := signer.Sign(t.Context(), k, []byte("x"), crypto.SHA256)
	refused(t, err, signer.ErrBadKey, "CKR_KEY_FUNCTION_NOT_PERMITTED")
	_, err = k.Sign(nil, digest, crypto.SHA256)
	refused(t, err, signer.ErrBadKey, "CKR_KEY_FUNCTION_NOT_PERMITTED")
	f.Script(t)
	mustSign(t, k)
	if stats(k).Messages {
		t.Error("the token is taken for a strict one")
	}
	// Invalid options are refused before the token is called.
	before := f.Calls(t)["C_SignInit"]
	for _, opts := range []crypto.SignerOpts{nil, crypto.Hash(0), crypto.SHA512, &rsa.PSSOptions{Hash: crypto.SHA256}, (*rsa.PSSOptions)(nil)} {
		_, err := k.SignMessageContext(t.Context(), []byte("x"), opts)
		refused(t, err, signer.ErrUnsupported)
	}
	calls(t, f, map[string]int{"C_SignInit": before})
}

// The reference forces a mechanism.
func TestMechanismAttribute(t *testing.T) {
	tok, f := faulty(t)
	f.Script(t, "C_SignInit * mechanism 0x1 0x70")
	hashing, raw := mustOpen(t, tok.Ref("vendor")+"&mechanism=sha256-rsa-pkcs"), mustOpen(t, tok.Ref("vendor")+"&mechanism=rsa-pkcs")
	mustSign(t, hashing)
	_, err := signer.Sign(t.Context(), raw, []byte("x"), crypto.SHA256)
	refused(t, err, signer.ErrUnsupported, "CKR_MECHANISM_INVALID")
	f.Script(t, "C_SignInit * mechanism 0x40 0x70", "C_SignInit * mechanism 0x6 0x70")
	mustSign(t, raw)
	_, err = signer.Sign(t.Context(), hashing, []byte("x"), crypto.SHA256)
	refused(t, err, signer.ErrUnsupported, "CKR_MECHANISM_INVALID")
	calls(t, f, map[string]int{"C_GetMechanismInfo": 0})
}
