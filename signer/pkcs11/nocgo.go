//go:build !cgo

package pkcs11

import (
	"context"

	"hsmsign/fault"
	"hsmsign/signer"
)

// Available reports whether this build can load PKCS#11 modules.
const Available = false

// Backend returns the backend of a build without cgo: its functions read the reference, and then fail with an error that
// wraps signer.ErrUnsupported.
func Backend(_ Options) signer.Backend {
	return signer.Backend{
		Open: func(_ context.Context, ref signer.Ref, _ signer.OpenOptions) (signer.Signer, error) {
			return nil, refuse("open", ref)
		},
		Generate: func(_ context.Context, ref signer.Ref, _ signer.KeySpec) (signer.Signer, error) {
			return nil, refuse("generate", ref)
		},
		List: func(_ context.Context, ref signer.Ref) ([]signer.KeyInfo, error) { return nil, refuse("list", ref) },
		Tokens: func(_ context.Context, ref signer.Ref) ([]signer.TokenInfo, error) {
			return nil, refuse("list the tokens of", ref)
		},
	}
}

// RunWorker fails in a build without cgo. The error wraps signer.ErrUnsupported.
func RunWorker(context.Context, []string) error { return errNoCgo() }

func refuse(op string, ref signer.Ref) error {
	r, err := parseReference(ref)
	if err == nil {
		err = errNoCgo()
	}
	return r.wrap(op, err)
}

func errNoCgo() error {
	return fault.Errorf("%w: this build has no PKCS#11: it was built with CGO_ENABLED=0, and a PKCS#11 module is a C library", signer.ErrUnsupported).
		Fix("use a build made with CGO_ENABLED=1 and a C compiler for this system")
}
