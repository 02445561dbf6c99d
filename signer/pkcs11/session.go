//go:build cgo

package pkcs11

import (
	"context"
	"crypto"
	"fmt"

	"github.com/miekg/pkcs11"

	"hsmsign/signer"
)

// await runs work in the background, so that the caller returns when ctx ends, even if the module hangs. The error then
// says what is missing, and wraps signer.ErrUnavailable and ctx.Err(). A result that comes later goes to drop, unless that
// is nil.
func await[T any](ctx context.Context, what string, work func() (T, error), drop func(T)) (T, error) {
	return awaitThen(ctx, what, work, func() {}, drop)
}

// awaitThen is await, and calls then after the work, when the caller has its result: what then wakes runs before the caller.
func awaitThen[T any](ctx context.Context, what string, work func() (T, error), then func(), drop func(T)) (T, error) {
	if ctx.Done() == nil { // it cannot end
		defer then()
		return work()
	}
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		defer then()
		value, err := work()
		done <- result{value, err}
	}()
	select {
	case res := <-done:
		return res.value, res.err
	case <-ctx.Done():
		if drop != nil {
			go func() {
				if res := <-done; res.err == nil {
					drop(res.value)
				}
			}()
		}
		var zero T
		return zero, fmt.Errorf("%w: %s: %w", signer.ErrUnavailable, what, ctx.Err())
	}
}

// operate runs an operation on the module of a reference in the background; see await. Errors are *signer.Error.
func operate[T any](ctx context.Context, opts Options, op string, ref signer.Ref, work func(r reference) (T, error), drop func(T)) (T, error) {
	r, err := opts.reference(op, ref)
	if err != nil {
		var zero T
		return zero, err
	}
	value, err := await(ctx, r.busy(), func() (T, error) { return work(r) }, drop)
	return value, r.wrap(op, err)
}

// busy returns what is missing when a context ends during a call of the module.
func (r reference) busy() string { return fmt.Sprintf("module %q", r.module) }

// closeLate closes a key whose caller has left.
func closeLate(k signer.Signer) { _ = k.Close() }

// withModule calls do while the reference's module is initialized, with m.mu held: no key of the module is opened,
// recovered or closed at the same time; signing goes on.
func withModule[T any](ctx context.Context, r reference, do func(m *module) (T, error)) (value T, err error) {
	m, err := findModule(r)
	if err != nil {
		return value, err
	}
	if err := m.mu.LockContext(ctx); err != nil {
		return value, err
	}
	defer m.mu.Unlock()
	if err := m.retain(r); err != nil {
		return value, err
	}
	defer func() { _ = m.release() }() // the result of do counts
	return do(m)
}

// withToken calls do with a session in the one token that the reference names; see withSession.
func withToken[T any](ctx context.Context, r reference, opts Options, as access, do func(f finder, t foundToken) (T, error)) (T, error) {
	return withModule(ctx, r, func(m *module) (value T, err error) {
		t, err := m.findSettledToken(ctx, r)
		if err != nil {
			return value, err
		}
		return withSession(ctx, m, r, t, opts, as, func(f finder) (T, error) { return do(f, t) })
	})
}

// access is what a session may do.
type access int

const (
	public   access = iota // not logged in: sees only public objects, unless a key of the token is open
	loggedIn               // sees all objects
	writer                 // sees all objects, and may make some
)

// withSession calls do with a session in a token. The caller holds m.mu.
func withSession[T any](ctx context.Context, m *module, r reference, found foundToken, opts Options, as access, do func(f finder) (T, error)) (value T, err error) {
	t := &token{}
	if as != public {
		if t, err = m.retainToken(ctx, r, &found, opts); err != nil {
			return value, err
		}
		defer func() { _ = m.releaseToken(t) }() // the result of do counts
	}
	sh, err := t.openSession(m.lib, found.slot, as == writer)
	if err != nil {
		return value, r.wrap("open", advise(err))
	}
	defer func() { _ = m.lib.CloseSession(sh) }()
	return do(finder{lib: m.lib, sh: sh, ref: r})
}

// finder looks for objects in one session.
type finder struct {
	lib    *pkcs11.Ctx
	sh     pkcs11.SessionHandle
	ref    reference
	wanted crypto.PublicKey // of the vendor's certificate; nil: not known
}
