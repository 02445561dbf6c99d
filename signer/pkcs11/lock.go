//go:build cgo

package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"hsmsign/signer"
)

// mutex is a lock whose wait can end with a context, because whoever holds it may be in a module that hangs.
// The zero value is open.
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
		return fmt.Errorf("%w: the module is busy with a call that has not come back: %w", signer.ErrUnavailable, ctx.Err())
	}
}

// Lock waits without end.
func (m *mutex) Lock() { _ = m.LockContext(context.Background()) }

// Unlock frees the lock.
func (m *mutex) Unlock() { <-m.held }

// errBusy: a call has been in the module for too long.
var errBusy = errors.New("the module cannot be connected again before all calls have come back from it")

// gate counts the signatures that are under way, and can be shut until the last one has left. Behind the shut
// gate C_Finalize is safe, which no other thread's call may meet (PKCS#11 3.0 section 5.4), and no caller uses a
// handle that a new login has given a new meaning. The zero value is open.
type gate struct {
	mu     sync.Mutex
	inside int
	shut   chan struct{} // nil while the gate is open; closed when it opens again
	empty  chan struct{} // nil unless it is waited for; closed when the last one leaves
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

// leave takes back one enter.
func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside--
	if g.inside == 0 && g.empty != nil {
		close(g.empty)
		g.empty = nil
	}
}

// close shuts the gate and waits until nobody is inside; when that takes too long, or ctx ends, it opens again
// and fails. One caller at a time.
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
		return fmt.Errorf("%w: %w: %w", signer.ErrUnavailable, errBusy, ctx.Err())
	}
}

// open takes back one close that gave no error.
func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.shut)
	g.shut, g.empty = nil, nil
}
