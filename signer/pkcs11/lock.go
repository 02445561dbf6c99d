//go:build cgo

package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"hsmsign/fault"
	"hsmsign/signer"
)

// Locks are taken in this order; a goroutine that has one takes only later ones:
//
//	module.turn      the start of a worker process
//	module.mu        opening, logging in, recovering and closing in this process
//	module.signing   the gate: a signature is inside, or the gate is shut
//	pool.mu          the sessions of one key
//	pinState.sending a PIN is on its way to the token
//	pinState.mu      the PIN and its latch
//
// The table of modules needs no lock. pool.mu and pinState.mu are never held during a call into a module.

// mutex is a lock whose wait can end with a context, because its holder may be in a module that hangs. The zero value is
// open.
type mutex struct {
	once sync.Once
	held chan struct{}
}

// LockContext waits for the lock. Errors wrap signer.ErrUnavailable and ctx.Err().
func (m *mutex) LockContext(ctx context.Context) error {
	m.once.Do(func() { m.held = make(chan struct{}, 1) })
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w: %w", signer.ErrUnavailable, err)
	}
	select {
	case m.held <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: the module is busy with a call that has not returned: %w", signer.ErrUnavailable, ctx.Err())
	}
}

// Lock waits without a limit.
func (m *mutex) Lock() { _ = m.LockContext(context.Background()) }

// Unlock releases the lock.
func (m *mutex) Unlock() { <-m.held }

// errBusy: a call has been in the module for too long.
var errBusy = errors.New("the module cannot be connected again before all calls have returned from it")

// gate counts the signatures in flight, and can be shut until the last one has left. Behind the shut gate C_Finalize is
// safe, which must not run at the same time as any other call (PKCS#11 3.0 section 5.4), and no caller uses a handle that
// has another meaning after a new login. The zero value is open.
type gate struct {
	mu     sync.Mutex
	inside int
	shut   chan struct{} // nil while the gate is open; closed when it opens again
	empty  chan struct{} // nil unless somebody waits for it; closed when the last signature leaves
}

// enter waits until the gate is open. Errors wrap signer.ErrUnavailable and ctx.Err().
func (g *gate) enter(ctx context.Context) error {
	for {
		g.mu.Lock()
		shut := g.shut
		if shut == nil {
			g.inside++
		}
		g.mu.Unlock()
		if shut == nil {
			return nil
		}
		select {
		case <-shut:
		case <-ctx.Done():
			return fmt.Errorf("%w: the module is being connected again: %w", signer.ErrUnavailable, ctx.Err())
		}
	}
}

// leave follows each enter.
func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside--
	if g.inside == 0 && g.empty != nil {
		close(g.empty)
		g.empty = nil
	}
}

// close shuts the gate and waits until nobody is inside. If that takes longer than wait, or ctx ends, the gate opens
// again and close fails. One caller at a time.
func (g *gate) close(ctx context.Context, wait time.Duration) error {
	g.mu.Lock()
	g.shut = make(chan struct{})
	inside, empty := g.inside, make(chan struct{})
	if inside > 0 {
		g.empty = empty
	}
	g.mu.Unlock()
	if inside == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	select {
	case <-empty:
		return nil
	case <-ctx.Done():
		g.open()
		return fault.Errorf("%w: %w: %w", signer.ErrUnavailable, errBusy, ctx.Err()).
			Fix("the module hangs: restart the program; isolate=yes in the reference avoids that")
	}
}

// open follows each close that returned nil.
func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.shut)
	g.shut, g.empty = nil, nil
}
