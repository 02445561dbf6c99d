package signertest_test

import (
	"path/filepath"
	"testing"

	"hsmsign/signer"
	"hsmsign/signer/file"
	"hsmsign/signer/signertest"
)

// The conformance test of a backend opens a key that the test knows.
func ExampleRun() {
	testConformance := func(t *testing.T) { // in a real test: func TestConformance
		backend := file.Backend(file.Options{})
		path := filepath.Join(t.TempDir(), "vendor.key")
		ref, err := signer.ParseRef("file:" + path + "?unencrypted=allow")
		if err != nil {
			t.Fatal(err)
		}
		key, err := backend.Generate(t.Context(), ref, signer.KeySpec{Bits: 2048})
		if err != nil {
			t.Fatal(err)
		}
		private, err := file.Export(key)
		if err != nil {
			t.Fatal(err)
		}
		signertest.Run(t, signertest.Fixture{
			Backend: backend,
			Ref:     "file:" + path,
			Public:  &private.PublicKey,
			Missing: "file:/no/such/file",
		})
	}
	_ = testConformance
}
