//go:build !cgo

package pkcs11

import (
	"context"
	"fmt"

	"hsmsign/signer"
)

// RunWorker is the stand-in of a build without cgo. The error wraps signer.ErrUnsupported.
func RunWorker(context.Context, []string) error {
	return fmt.Errorf("%w: this build has no PKCS#11: it was built with CGO_ENABLED=0", signer.ErrUnsupported)
}
