//go:build !cgo

package pkcs11

import (
	"context"
	"fmt"

	"hsmsign/signer"
)

// Backend is the stand-in of a build without cgo: its Open reads the reference, and then fails with an error
// that wraps signer.ErrUnsupported.
func Backend(_ Options) signer.Backend {
	return signer.Backend{Open: func(_ context.Context, ref signer.Ref) (signer.Signer, error) {
		r, err := parseReference(ref)
		if err != nil {
			return nil, r.fail("open", err, "")
		}
		return nil, r.fail("open",
			fmt.Errorf("%w: this build has no PKCS#11: it was built with CGO_ENABLED=0, and a PKCS#11 module is a C library", signer.ErrUnsupported),
			"use a build made with CGO_ENABLED=1 and a C compiler for this system")
	}}
}

// Available is whether this build can load PKCS#11 modules.
const Available = false
