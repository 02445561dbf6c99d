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

// pool is a bounded stock of read-only sessions on one slot. Whoever signs first holds a permit, then takes a
// session; the session used last is taken first, so that those not needed stay untouched.
type pool struct {
	lib     cryptoki
	slot    uint
	permits chan struct{} // one element for each permit that is out
	closed  chan struct{} // closed by close

	mu   sync.Mutex
	idle []pkcs11.SessionHandle
}

// newPool makes a pool of at most size sessions. They are opened when they are needed.
func newPool(lib cryptoki, slot uint, size int) *pool {
	return &pool{lib: lib, slot: slot, permits: make(chan struct{}, size), closed: make(chan struct{})}
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

// take gives a session to a holder of a permit.
func (p *pool) take() (pkcs11.SessionHandle, error) {
	p.mu.Lock()
	if last := len(p.idle) - 1; last >= 0 {
		sh := p.idle[last]
		p.idle = p.idle[:last]
		p.mu.Unlock()
		return sh, nil
	}
	p.mu.Unlock()
	sh, err := p.lib.OpenSession(p.slot, pkcs11.CKF_SERIAL_SESSION)
	return sh, call("C_OpenSession", err)
}

// put gives a session back after its call ended with err. One that may be dead is closed instead of kept.
func (p *pool) put(sh pkcs11.SessionHandle, err error) {
	if err != nil && classOf(err) != classRequest {
		// What is dead already may refuse even this; there is nothing left to do about it.
		_ = p.lib.CloseSession(sh)
		return
	}
	p.mu.Lock()
	p.idle = append(p.idle, sh)
	p.mu.Unlock()
}

// release gives a permit back.
func (p *pool) release() { <-p.permits }

// close lets nobody in any more, waits until every permit is back, and closes the sessions. Called once.
func (p *pool) close() error {
	close(p.closed)
	for range cap(p.permits) {
		p.permits <- struct{}{}
	}
	var errs []error
	for _, sh := range p.idle {
		errs = append(errs, call("C_CloseSession", p.lib.CloseSession(sh)))
	}
	p.idle = nil
	return errors.Join(errs...)
}
