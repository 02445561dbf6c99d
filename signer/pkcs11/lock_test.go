//go:build cgo

package pkcs11

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"hsmsign/signer"
)

func TestMutex(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m mutex
		m.Lock()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		if err := m.LockContext(ctx); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, signer.ErrUnavailable) || time.Since(began) != time.Second {
			t.Errorf("locked twice: %v after %v", err, time.Since(began))
		}
		time.AfterFunc(time.Second, m.Unlock)
		if err := m.LockContext(t.Context()); err != nil {
			t.Error(err)
		}
		m.Unlock()
		if err := m.LockContext(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a context that has ended: %v", err)
		}
	})
}

func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g gate
		enter := func(ctx context.Context) {
			t.Helper()
			if err := g.enter(ctx); err != nil {
				t.Fatal(err)
			}
		}
		enter(t.Context())
		enter(t.Context())

		began := time.Now()
		if err := g.close(t.Context(), time.Second); !errors.Is(err, errBusy) || time.Since(began) != time.Second {
			t.Errorf("shut before two: %v after %v", err, time.Since(began))
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if err := g.close(ended, time.Second); !errors.Is(err, context.Canceled) {
			t.Errorf("shut before two, with a context that has ended: %v", err)
		}
		enter(t.Context()) // a close that failed opens it again

		time.AfterFunc(time.Second, func() { g.leave(); g.leave() })
		time.AfterFunc(2*time.Second, g.leave)
		began = time.Now()
		if err := g.close(t.Context(), time.Minute); err != nil || time.Since(began) != 2*time.Second {
			t.Errorf("shut: %v after %v; want no error when the last one has left", err, time.Since(began))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := g.enter(ctx); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, signer.ErrUnavailable) {
			t.Errorf("went through a shut gate: %v", err)
		}
		time.AfterFunc(time.Second, g.open)
		began = time.Now()
		enter(t.Context())
		if took := time.Since(began); took != time.Second {
			t.Errorf("went through after %v; want when it opened", took)
		}
		g.leave()
		if err := g.close(t.Context(), time.Second); err != nil {
			t.Errorf("shut an empty gate: %v", err)
		}
		g.open()
		enter(t.Context())
	})
}
