//go:build !cgo

package pkcs11

import (
	"context"
	"fmt"
	"io"

	"hsmsign/signer"
)

// RunWorker is the stand-in of a build without cgo. It closes conn; the error wraps signer.ErrUnsupported.
func RunWorker(_ context.Context, conn io.ReadWriteCloser) error {
	_ = conn.Close()
	return fmt.Errorf("%w: this build has no PKCS#11: it was built with CGO_ENABLED=0", signer.ErrUnsupported)
}
