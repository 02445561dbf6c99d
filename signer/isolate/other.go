//go:build !unix

package isolate

import (
	"context"
	"runtime"

	"hsmsign/fault"
	"hsmsign/signer"
)

// Key is a key in a worker process.
type Key struct{ signer.Signer }

// Stats returns no figures on this system.
func (*Key) Stats() signer.Stats { return signer.Stats{} }

// Parent is the process that started a worker.
type Parent struct{}

// Lanes returns 0 on this system.
func (*Parent) Lanes() int { return 0 }

// Warn does nothing on this system.
func (*Parent) Warn(string) {}

// Secret fails on this system.
func (*Parent) Secret(context.Context, string) ([]byte, error) { return nil, errNoWorkers() }

// Open fails: a worker inherits sockets, which this system does not support. The error wraps signer.ErrUnsupported.
func Open(_ context.Context, ref signer.Ref, _ signer.OpenOptions, _ Config) (*Key, error) {
	return nil, &signer.Error{Op: "open", Ref: ref, Err: errNoWorkers()}
}

// Serve fails as Open does.
func Serve(context.Context, []string, Opener) error { return errNoWorkers() }

func errNoWorkers() error {
	return fault.Errorf("%w: isolate=yes on %s: worker processes need Unix", signer.ErrUnsupported, runtime.GOOS).Fix("write isolate=no in the key reference")
}
