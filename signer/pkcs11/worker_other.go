//go:build cgo && !unix

package pkcs11

import (
	"context"
	"fmt"
	"runtime"

	"hsmsign/signer"
)

// openIsolated: a worker is spoken to over a socket that it inherits, which only Unix has.
func openIsolated(_ context.Context, r reference, _ Options) (signer.Signer, error) {
	return nil, r.fail("open", fmt.Errorf("%w: isolate=yes on %s: there are no worker processes for PKCS#11 modules", signer.ErrUnsupported, runtime.GOOS),
		"write isolate=no in the key reference")
}
