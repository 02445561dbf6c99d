package gcpkms

import (
	"context"
	"errors"
	"fmt"

	remote "hsmsign/signer/kms"
)

// maxDamaged is how often a damaged answer is asked for again. Google asks for "a limited number of retries"
// (AsymmetricSignResponse): checksums that never fit are a fault that waiting does not heal.
const maxDamaged = 2

// call makes one call with its retries, and brings the service's errors into the families.
func call[T any](ctx context.Context, c *remote.Caller, rpc func(ctx context.Context) (T, error)) (T, error) {
	seen := 0
	return remote.Do(ctx, c, func(ctx context.Context) (T, error) {
		value, err := rpc(ctx)
		if err == nil {
			return value, nil
		}
		err = explain(err)
		if d, ok := errors.AsType[*damaged](err); ok {
			if seen++; seen > maxDamaged {
				err = fmt.Errorf("%w: %s, %d times in a row", d.family, d.text, seen)
			}
		}
		var zero T
		return zero, err
	})
}
