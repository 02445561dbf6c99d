//go:build !cgo

package pkcs11

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"hsmsign/internal/testkit"

	"hsmsign/fault"
	"hsmsign/signer"
)

func TestBuildWithoutCgo(t *testing.T) {
	module := testkit.Value(filepath.Abs("m.so"))(t)
	for path, want := range map[string]error{"object=k": signer.ErrUnsupported, "objekt=k": signer.ErrReference} {
		ref := testkit.Value(signer.ParseRef("pkcs11:" + path + "?module-path=" + module))(t)
		_, err := Backend(Options{}).Open(t.Context(), ref, signer.OpenOptions{})
		if _, ok := errors.AsType[*signer.Error](err); !ok || !errors.Is(err, want) {
			t.Errorf("%s: error %v; want %v", path, err, want)
		}
		if want == signer.ErrUnsupported && (!strings.Contains(err.Error(), "CGO_ENABLED=0") || fault.Hint(err) == "") {
			t.Errorf("error %v; want what this build lacks, and what to do", err)
		}
	}
}
