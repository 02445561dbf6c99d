package gcpkms

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"hsmsign/signer/remote"
)

// maxDamaged is how often a damaged answer is asked for again. Google asks for "a limited number of retries"
// (AsymmetricSignResponse): checksums that never fit are a fault that waiting does not heal.
const maxDamaged = 2

// caller makes the calls of one client under its policy.
type caller struct {
	*remote.Caller
	mu   sync.Mutex
	lost time.Time // when a call last found the service UNAVAILABLE
}

func newCaller(p remote.Policy) *caller { return &caller{Caller: remote.New(p)} }

// call makes one call with its retries, and brings the service's errors into the families.
func call[T any](ctx context.Context, c *caller, rpc func(ctx context.Context) (T, error)) (T, error) {
	seen := 0
	return remote.Do(ctx, c.Caller, func(ctx context.Context) (T, error) {
		var zero T
		began := time.Now()
		value, err := rpc(ctx)
		if err == nil {
			return value, nil
		}
		if status.Code(err) == codes.Unavailable && c.knows(began) {
			return zero, fmt.Errorf("%w: %s", remote.ErrInterrupted, oneLine(status.Convert(err).Message()))
		}
		err = explain(err)
		if d, ok := errors.AsType[*damaged](err); ok {
			if seen++; seen > maxDamaged {
				err = fmt.Errorf("%w: %s, %d times in a row", d.family, d.text, seen)
			}
		}
		return zero, err
	})
}

// knows says whether another call has already told of the loss that ended a call. One HTTP/2 connection carries all
// calls, and when it breaks all fail in one moment; the breaker would take that for as many failures in a row and
// open. So one of them tells, and those that began before it did are only made again.
func (c *caller) knows(began time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lost.After(began) {
		return true
	}
	c.lost = time.Now()
	return false
}
