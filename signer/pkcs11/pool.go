//go:build cgo

package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/miekg/pkcs11"

	"hsmsign/signer"
)

// session is an open session, and the login that it belongs to: after another login its handle is void, and may be that
// of another session.
type session struct {
	handle pkcs11.SessionHandle
	under  *attachment
}

// pool is a limited number of sessions on one token. A caller acquires a permit, then takes a session. The session that
// was used last is taken first, so that a pool opens no more sessions than are needed.
type pool struct {
	lib     *pkcs11.Ctx
	token   *token
	permits chan struct{} // one element for each permit in use
	closed  chan struct{} // closed by drain

	mu      sync.Mutex
	idle    []session
	open    int        // sessions that are idle, taken, or being opened
	freed   *sync.Cond // a session was put back or dropped
	evicted uint64
}

// newPool returns a pool of at most size sessions. They are opened when they are needed.
func newPool(lib *pkcs11.Ctx, t *token, size int) *pool {
	p := &pool{lib: lib, token: t, permits: make(chan struct{}, size), closed: make(chan struct{})}
	p.freed = sync.NewCond(&p.mu)
	return p
}

// acquire waits for a permit. Errors wrap signer.ErrClosed, or signer.ErrUnavailable and ctx.Err().
func (p *pool) acquire(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w: %w", signer.ErrUnavailable, err)
	}
	select {
	case p.permits <- struct{}{}:
		// Close may have come before, or while both were ready.
		select {
		case <-p.closed:
			<-p.permits
			return signer.ErrClosed
		default:
			return nil
		}
	case <-p.closed:
		return signer.ErrClosed
	case <-ctx.Done():
		return fmt.Errorf("%w: all %d sessions are busy: %w", signer.ErrUnavailable, cap(p.permits), ctx.Err())
	}
}

// take returns a session of this login to a caller that has a permit. If the token has no session left
// (CKR_SESSION_COUNT), take waits for another one of this pool, if there are any.
func (p *pool) take(ctx context.Context, now *attachment) (session, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s, ok := p.pop(now); ok {
		return s, nil
	}
	p.open++
	p.mu.Unlock()
	sh, err := p.token.openSession(p.lib, now.slot, false)
	p.mu.Lock()
	if err == nil {
		return session{sh, now}, nil
	}
	p.open--
	p.freed.Broadcast()
	if !is(err, pkcs11.CKR_SESSION_COUNT) {
		return session{}, err
	}
	stop := context.AfterFunc(ctx, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.freed.Broadcast()
	})
	defer stop()
	for {
		s, ok := p.pop(now)
		switch {
		case ok:
			return s, nil
		case p.open == 0:
			return session{}, err
		case ctx.Err() != nil:
			return session{}, fmt.Errorf("%w: %w", err, ctx.Err())
		}
		p.freed.Wait()
	}
}

// pop returns the idle session that was used last, and drops those of earlier logins. The caller holds p.mu.
func (p *pool) pop(now *attachment) (session, bool) {
	for last := len(p.idle) - 1; last >= 0; last-- {
		s := p.idle[last]
		p.idle = p.idle[:last]
		if s.under == now {
			return s, true
		}
		p.forget(1)
	}
	return session{}, false
}

// put returns a session to the pool after its call ended with err. One that may be dead is closed.
func (p *pool) put(s session, err error) {
	current := s.under == p.token.now.Load()
	p.mu.Lock()
	if current && (err == nil || classOf(err) == classRequest && !errors.Is(err, signer.ErrBadSignature)) {
		p.idle = append(p.idle, s)
		p.freed.Broadcast()
		p.mu.Unlock()
		return
	}
	p.forget(1)
	p.mu.Unlock()
	if current && !is(err, pkcs11.CKR_SESSION_HANDLE_INVALID) && !is(err, pkcs11.CKR_SESSION_CLOSED) { // its handle may be good
		_ = p.lib.CloseSession(s.handle) // a dead session may refuse even this
	}
}

// forget counts sessions that are dropped. The caller holds p.mu.
func (p *pool) forget(n int) {
	p.open -= n
	p.evicted += uint64(n) // #nosec G115 -- n is not negative
	p.freed.Broadcast()
}

// evict closes the idle sessions: after one session was found dead, and at the end. A dead session is not an error.
func (p *pool) evict() error {
	p.mu.Lock()
	idle := p.idle
	p.idle = nil
	p.forget(len(idle))
	p.mu.Unlock()
	var errs []error
	for _, s := range idle {
		if s.under == p.token.now.Load() {
			errs = append(errs, unlessDead(call("C_CloseSession", p.lib.CloseSession(s.handle))))
		}
	}
	return errors.Join(errs...)
}

// release follows acquire.
func (p *pool) release() { <-p.permits }

// drain refuses new callers, and waits until every permit is released. It is called once.
func (p *pool) drain() {
	close(p.closed)
	for range cap(p.permits) {
		p.permits <- struct{}{}
	}
}

// unlessDead drops the error of releasing what is gone already.
func unlessDead(err error) error {
	if c := classOf(err); err != nil && (c == classSession || c == classModule) {
		return nil
	}
	return err
}
