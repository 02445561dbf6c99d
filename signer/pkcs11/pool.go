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
	closed  chan struct{} // closed by close

	mu      sync.Mutex
	idle    []session
	open    int           // sessions that are idle, taken, or being opened
	freed   chan struct{} // nil unless somebody waits for it; closed when a session is put back or dropped
	evicted uint64
}

// newPool returns a pool of at most size sessions. They are opened when they are needed.
func newPool(lib *pkcs11.Ctx, t *token, size int) *pool {
	return &pool{lib: lib, token: t, permits: make(chan struct{}, size), closed: make(chan struct{})}
}

// acquire waits for a permit. Errors wrap signer.ErrClosed, or signer.ErrUnavailable and ctx.Err().
func (p *pool) acquire(ctx context.Context) error {
	select {
	case <-p.closed:
		return signer.ErrClosed
	default:
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w: %w", signer.ErrUnavailable, err)
	}
	select {
	case p.permits <- struct{}{}:
		// Close may have come while both were ready.
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
	s, ok := p.pop(now)
	if !ok {
		p.open++
	}
	p.mu.Unlock()
	if ok {
		return s, nil
	}
	sh, err := p.token.openSession(p.lib, now.slot)
	if err == nil {
		return session{sh, now}, nil
	}
	p.mu.Lock()
	p.open--
	p.signalFreed()
	p.mu.Unlock()
	if !is(err, pkcs11.CKR_SESSION_COUNT) {
		return session{}, err
	}
	return p.wait(ctx, now, err)
}

// wait returns a session that another caller puts back. If there is none left, it fails as C_OpenSession did.
func (p *pool) wait(ctx context.Context, now *attachment, refusal error) (session, error) {
	for {
		p.mu.Lock()
		s, ok := p.pop(now)
		others := p.open > 0
		if p.freed == nil {
			p.freed = make(chan struct{})
		}
		freed := p.freed
		p.mu.Unlock()
		if ok {
			return s, nil
		}
		if !others {
			return session{}, refusal
		}
		select {
		case <-freed:
		case <-ctx.Done():
			return session{}, fmt.Errorf("%w: %w", refusal, ctx.Err())
		}
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
		p.forget()
	}
	return session{}, false
}

// signalFreed wakes the callers that wait for a session. The caller holds p.mu.
func (p *pool) signalFreed() {
	if p.freed != nil {
		close(p.freed)
		p.freed = nil
	}
}

// put returns a session to the pool after its call ended with err. One that may be dead is closed.
func (p *pool) put(s session, err error) {
	current := s.under == p.token.now.Load()
	p.mu.Lock()
	if current && (err == nil || classOf(err) == classRequest && !errors.Is(err, signer.ErrBadSignature)) {
		p.idle = append(p.idle, s)
		p.signalFreed()
		p.mu.Unlock()
		return
	}
	p.forget()
	p.mu.Unlock()
	if current {
		p.closeSession(s, err)
	}
}

// forget counts a session that is dropped. The caller holds p.mu.
func (p *pool) forget() {
	p.open--
	p.evicted++
	p.signalFreed()
}

// closeSession closes a session whose call failed with err, unless its handle is known to be void.
func (p *pool) closeSession(s session, err error) {
	if is(err, pkcs11.CKR_SESSION_HANDLE_INVALID) || is(err, pkcs11.CKR_SESSION_CLOSED) {
		return
	}
	_ = p.lib.CloseSession(s.handle) // a dead session may refuse even this
}

// evict closes the idle sessions after one session was found dead.
func (p *pool) evict() {
	p.mu.Lock()
	idle := p.idle
	p.idle = nil
	for range idle {
		p.forget()
	}
	p.mu.Unlock()
	for _, s := range idle {
		if s.under == p.token.now.Load() {
			p.closeSession(s, nil)
		}
	}
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

// close closes the sessions of a pool that was drained. A dead session is not an error.
func (p *pool) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for _, s := range p.idle {
		if s.under == p.token.now.Load() {
			errs = append(errs, unlessDead(call("C_CloseSession", p.lib.CloseSession(s.handle))))
		}
	}
	p.idle, p.open = nil, 0
	return errors.Join(errs...)
}

// unlessDead drops the error of releasing what is gone already.
func unlessDead(err error) error {
	if c := classOf(err); err != nil && (c == classSession || c == classModule) {
		return nil
	}
	return err
}
