package file

import (
	"crypto"
	"crypto/rsa"
	"errors"
	"testing"

	"hsmsign/internal/testkit"
	"hsmsign/signer"
)

// FuzzParse: any content is refused with a family, or it is a key of an accepted size whose signature verifies. There is
// no passphrase, so nothing is derived from one.
func FuzzParse(f *testing.F) {
	testkit.Seeds(f, "FuzzParse", 9)
	for _, name := range []string{"pkcs1.pem", "scrypt.pem", "legacy-3des.p12", "ec.pem"} {
		f.Add(sample(f, name))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var s session
		der, err := s.keyBlock(data)
		var key *rsa.PrivateKey
		if err == nil {
			key, err = s.parse(t.Context(), der)
		}
		if err != nil {
			if !errors.Is(err, signer.ErrBadKey) && !errors.Is(err, signer.ErrAmbiguousKey) && !errors.Is(err, signer.ErrAuth) {
				t.Fatalf("%v has no family", err)
			}
			return
		}
		if bits := key.N.BitLen(); bits < minBits || bits > maxBits {
			t.Fatalf("RSA of %d bits", bits)
		}
		digest := make([]byte, 32)
		sig, err := rsa.SignPKCS1v15(nil, key, crypto.SHA256, digest)
		if err == nil {
			err = rsa.VerifyPKCS1v15(&key.PublicKey, crypto.SHA256, digest, sig)
		}
		if err != nil {
			t.Errorf("a key that does not sign is accepted: %v", err)
		}
	})
}
