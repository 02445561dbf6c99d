package agent

import (
	"context"

	"hsmsign/signer"
)

// The stages of a request, in their order. A front end may have further ones.
const (
	StageAuthorize = "authorize" // the recorder applies its rules and records the intent
	StageOpen      = "open"      // the key is opened, if it is not open
	StageSign      = "sign"      // one verified signature
	StageConclude  = "conclude"  // the recorder records the outcome
	StageRelease   = "release"   // the recorder allows the request to leave
)

// Observer is told when a stage begins. The stage uses the context that it returns, and calls end with its error.
type Observer func(ctx context.Context, stage string) (inner context.Context, end func(err error))

type observerKey struct{}

// WithObserver returns a context whose stages, of Issue and Probe, are reported to an observer, for traces and metrics. The
// observer must be safe for concurrent use if the context is used concurrently.
func WithObserver(ctx context.Context, o Observer) context.Context {
	return context.WithValue(ctx, observerKey{}, o)
}

// Observe runs a stage, and reports it to the observer of the context if there is one.
func Observe(ctx context.Context, stage string, do func(ctx context.Context) error) error {
	o, _ := ctx.Value(observerKey{}).(Observer)
	if o == nil {
		return do(ctx)
	}
	ctx, end := o(ctx, stage)
	err := do(ctx)
	end(err)
	return err
}

// Stats returns the figures of the open key. ok is false if the key is not open, or has none.
func (v *Vendor) Stats() (stats signer.Stats, ok bool) {
	v.mu.Lock()
	key := v.key
	if key == nil {
		v.mu.Unlock()
		return stats, false
	}
	key.users++ // so that it is not closed meanwhile
	v.mu.Unlock()
	defer v.release(key)
	from, ok := key.Signer.(signer.Statistics)
	if ok {
		stats = from.Stats()
	}
	return stats, ok
}

// IsOpen returns whether the key is open.
func (v *Vendor) IsOpen() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.key != nil
}

// Backend returns the scheme of the key's reference, such as "pkcs11"; empty if Config.Key does not tell.
func (v *Vendor) Backend() string {
	if key, ok := v.cfg.Key.(interface{ Scheme() string }); ok {
		return key.Scheme()
	}
	return ""
}
