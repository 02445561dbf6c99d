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
	_, err = Backend(Options{}).Open(t.Context(), parse(t, "pkcs11:object=k?module-path="+module), signer.OpenOptions{})
	var carrier *signer.Error
	if !errors.Is(err, signer.ErrUnsupported) || !errors.As(err, &carrier) || !strings.Contains(err.Error(), "CGO_ENABLED=0") || fault.Hint(err) == "" {
		t.Errorf("error %v; want what this build lacks, and what to do", err)
	}
	if _, err = Backend(Options{}).Open(t.Context(), parse(t, "pkcs11:objekt=k?module-path="+module), signer.OpenOptions{}); !errors.Is(err, signer.ErrReference) {
		t.Errorf("error %v; a wrong reference is wrong here, too", err)
	}
}
