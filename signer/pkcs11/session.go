//go:build cgo

package pkcs11

import (
	"context"
	"crypto"
	"fmt"

	"github.com/miekg/pkcs11"

	"hsmsign/signer"
)

// await runs work in the background, so that the caller returns when ctx ends, even if the module hangs. A result that
// comes later goes to drop.
func await[T any](ctx context.Context, r reference, op string, work func() (T, error), drop func(T)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		value, err := work()
		done <- result{value, err}
	}()
	select {
	case res := <-done:
		return res.value, res.err
	case <-ctx.Done():
		go func() {
			if res := <-done; res.err == nil {
				drop(res.value)
			}
		}()
		var zero T
		return zero, r.wrap(op, fmt.Errorf("%w: module %q: %w", signer.ErrUnavailable, r.module, ctx.Err()))
	}
}

// withModule calls do while the reference's module is initialized, with m.mu held: no key of the module is opened,
// recovered or closed at the same time; signing goes on.
func withModule(ctx context.Context, r reference, op string, do func(m *module) error) error {
	m, err := lockModule(ctx, r, op)
	if err != nil {
		return err
	}
	defer m.mu.Unlock()
	if err := m.retain(r); err != nil {
		return err
	}
	defer func() { _ = m.release() }() // the result of do counts
	return do(m)
}

// withToken calls do with a session in the one token that the reference names; see withSession.
func withToken(ctx context.Context, r reference, op string, opts Options, as access, do func(m *module, f finder, t foundToken) error) error {
	return withModule(ctx, r, op, func(m *module) error {
		t, err := m.findSettledToken(ctx, r)
		if err != nil {
			return err
		}
		return m.withSession(ctx, r, t, opts, as, func(f finder) error { return do(m, f, t) })
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
func (m *module) withSession(ctx context.Context, r reference, found foundToken, opts Options, as access, do func(f finder) error) error {
	t := &token{}
	if as != public {
		var err error
		if t, err = m.retainToken(ctx, r, &found, opts); err != nil {
			return err
		}
		defer func() { _ = m.releaseToken(t) }() // the result of do counts
	}
	var sh pkcs11.SessionHandle
	var err error
	if as == writer {
		sh, err = m.lib.OpenSession(found.slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		err = call("C_OpenSession", err)
	} else {
		sh, err = t.openSession(m.lib, found.slot)
	}
	if err != nil {
		return r.wrap("open", advise(err))
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
