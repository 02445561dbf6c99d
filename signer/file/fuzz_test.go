package file

import (
	"crypto"
	"crypto/rsa"
	"errors"
	"os"
	"testing"

	"hsmsign/signer"
)

// FuzzParse: whatever a file holds, it is refused with a family, or it is a key of a size that is taken and
// whose signature verifies. No passphrase is to be had, so nothing is derived from one.
func FuzzParse(f *testing.F) {
	for _, name := range []string{"pkcs1.pem", "scrypt.pem", "legacy-3des.p12", "ec.pem"} {
		data, err := os.ReadFile("testdata/" + name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var o opening
		der, err := o.keyBlock(data)
		var key *rsa.PrivateKey
		if err == nil {
			key, err = o.parse(t.Context(), der)
		}
		if err != nil {
			if !errors.Is(err, signer.ErrBadKey) && !errors.Is(err, signer.ErrAmbiguousKey) && !errors.Is(err, signer.ErrAuth) {
				t.Fatalf("%v is of no family", err)
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
			t.Errorf("a key that does not sign was taken: %v", err)
		}
	})
}

func TestFuzzCorpus(t *testing.T) {
	if entries, err := os.ReadDir("testdata/fuzz/FuzzParse"); err != nil || len(entries) == 0 {
		t.Errorf("the seed corpus is empty: %v", err)
	}
}
