package softhsmtest_test

import (
	"crypto"
	"os"
	"testing"

	"hsmsign/signer"
	"hsmsign/signer/pkcs11"
	softhsmtest "hsmsign/softhsm-test"
)

// A test that signs with a key in a token, and one whose token fails.
func Example() {
	var _ = func(t *testing.T) {
		tok := softhsmtest.New(t)
		keyPEM, err := os.ReadFile("testdata/vendor.key") // PKCS#8
		if err != nil {
			t.Fatal(err)
		}
		tok.Import(t, keyPEM, "vendor", []byte{1})
		faults := softhsmtest.BuildFaultModule(t)
		faults.Use(tok)
		ref, err := signer.ParseRef(tok.Ref("vendor"))
		if err != nil {
			t.Fatal(err)
		}
		key, err := pkcs11.Backend(pkcs11.Options{}).Open(t.Context(), ref, signer.OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = key.Close() }()
		faults.Script(t, "C_SignInit 1 return 0x30") // CKR_DEVICE_ERROR, once
		if _, err := signer.Sign(t.Context(), key, []byte("certificate request"), crypto.SHA256); err != nil {
			t.Error(err)
		}
	}
	// Output:
}
