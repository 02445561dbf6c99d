//go:build cgo

package pkcs11

import (
	"context"
	"fmt"

	"github.com/miekg/pkcs11"

	"hsmsign/signer"
)

// await runs work so that the end of ctx sets the caller free, even from a module that hangs. What work still
// gives after that is dropped.
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
		var none T
		return none, r.fail(op, fmt.Errorf("%w: module %q: %w", signer.ErrUnavailable, r.module, ctx.Err()), "")
	}
}

// visit calls do while the reference's module is initialized, with m.mu held: no key of the module is opened,
// recovered or closed meanwhile, and signing goes on.
func visit(ctx context.Context, r reference, op string, do func(m *module) error) error {
	m, err := findModule(r)
	if err != nil {
		return err
	}
	if err := m.mu.LockContext(ctx); err != nil {
		return r.fail(op, err, "")
	}
	defer m.mu.Unlock()
	if err := m.retain(r); err != nil {
		return err
	}
	defer func() { _ = m.release() }() // what do gives is what counts
	return do(m)
}

// visitToken calls do with a session in the one token that the reference names; see session.
func visitToken(ctx context.Context, r reference, op string, opts Options, as access, do func(m *module, f finder, t foundToken) error) error {
	return visit(ctx, r, op, func(m *module) error {
		t, err := m.findSettledToken(ctx, r)
		if err != nil {
			return err
		}
		return m.session(ctx, r, t, opts, as, func(f finder) error { return do(m, f, t) })
	})
}

// access is what a session may do.
type access int

const (
	stranger access = iota // not logged in, so that only public objects are seen, unless a key of the token is open
	user                   // logged in
	writer                 // logged in, and may make objects
)

// session calls do with a session in a token. The caller holds m.mu.
func (m *module) session(ctx context.Context, r reference, found foundToken, opts Options, as access, do func(f finder) error) error {
	t := &token{}
	if as != stranger {
		var err error
		if t, err = m.retainToken(ctx, r, &found, opts); err != nil {
			return err
		}
		defer func() { _ = m.releaseToken(t) }() // what do gives is what counts
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
		return r.fail("open", err, fixFor(err))
	}
	defer func() { _ = m.lib.CloseSession(sh) }()
	return do(finder{m.lib, sh, r})
}
