package file

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"hsmsign/signer"
)

func TestExport(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.key")
	ref, err := signer.ParseRef("file:" + path + "?unencrypted=allow")
	if err != nil {
		t.Fatal(err)
	}
	s, err := Backend(Options{}).Generate(t.Context(), ref, signer.KeySpec{Bits: 2048})
	if err != nil {
		t.Fatal(err)
	}
	private, err := Export(s)
	if err != nil || !private.PublicKey.Equal(s.Public()) {
		t.Fatalf("%v, and not the key's own half", err)
	}
	// What EncodePEM writes is what Generate writes.
	text, err := EncodePEM(private, nil)
	if err != nil {
		t.Fatal(err)
	}
	if want, err := os.ReadFile(path); err != nil || string(text) != string(want) {
		t.Errorf("another text than Generate's (%v)", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Export(s); !errors.Is(err, signer.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
	if _, err := Export(elsewhere{s}); !errors.Is(err, signer.ErrUnsupported) {
		t.Errorf("another backend's: %v", err)
	}
}

// elsewhere is a key of another backend.
type elsewhere struct{ signer.Signer }
