//go:build !cgo

package pkcs11

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"hsmsign/fault"
	"hsmsign/signer"
)

func TestBuildWithoutCgo(t *testing.T) {
	module, err := filepath.Abs("m.so")
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]error{"object=k": signer.ErrUnsupported, "objekt=k": signer.ErrReference} {
		ref, err := signer.ParseRef("pkcs11:" + path + "?module-path=" + module)
		if err != nil {
			t.Fatal(err)
		}
		_, err = Backend(Options{}).Open(t.Context(), ref, signer.OpenOptions{})
		if _, ok := errors.AsType[*signer.Error](err); !ok || !errors.Is(err, want) {
			t.Errorf("%s: error %v; want %v", path, err, want)
		}
		if want == signer.ErrUnsupported && (!strings.Contains(err.Error(), "CGO_ENABLED=0") || fault.Hint(err) == "") {
			t.Errorf("error %v; want what this build lacks, and what to do", err)
		}
	}
}
