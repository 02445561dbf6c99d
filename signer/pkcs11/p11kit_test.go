//go:build cgo && linux

package pkcs11

import (
	"context"
	"crypto"
	"errors"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"hsmsign/signer"
	"hsmsign/signer/signertest"
	softhsmtest "hsmsign/softhsm-test"
)

// socket is a token with the test key behind p11-kit's socket, and the key opened, with no pause between recoveries.
func socket(t *testing.T, query string) (*softhsmtest.P11Kit, signer.Signer) {
	t.Helper()
	p := softhsmtest.NewP11Kit(t, newToken(t))
	opened := mustOpen(t, p.Ref("vendor")+query)
	opened.(*key).module.pause = 0
	return p, opened
}

func TestP11KitConformance(t *testing.T) {
	tok := newToken(t)
	text, key := vendorKey(t)
	tok.Import(t, text, "twin", []byte{2})
	tok.Import(t, text, "twin", []byte{3})
	p := softhsmtest.NewP11Kit(t, tok)
	signertest.Run(t, signertest.Fixture{
		Backend:   Backend(Options{}),
		Ref:       p.Ref("vendor"),
		Public:    &key.PublicKey,
		Missing:   p.Ref("no-such-key"),
		Ambiguous: p.Ref("twin"),
		Matches:   []string{`object="twin" id=%02`, `object="twin" id=%03`},
		Secrets:   []string{tok.PIN},
	})
}

// The peer dies between signatures: the next one connects again, for all callers at once.
func TestP11KitKilledBetween(t *testing.T) {
	p, key := socket(t, "&max-sessions=4")
	for range 3 {
		mustSign(t, key)
		if n := p.Signal(t, syscall.SIGKILL); n != 1 {
			t.Fatalf("%d children; want one", n)
		}
		var callers sync.WaitGroup
		for range 8 {
			callers.Go(func() { mustSign(t, key) })
		}
		callers.Wait()
	}
	if got := stats(key); got.Reinitialized != 3 || got.Reconnects != 3 || got.InUse != 0 || got.Open > 4 {
		t.Errorf("%+v; want three recoveries", got)
	}
}

// The peer dies while a signature is under way: every caller gets its signature all the same. With one session, as
// p11-kit 0.24 wakes only one of the threads that wait for an answer when its peer dies; a call that never comes
// back is what isolate=yes is for.
func TestP11KitKilledDuring(t *testing.T) {
	p, key := socket(t, "&max-sessions=1")
	mustSign(t, key)
	var stop atomic.Bool
	var signed atomic.Int64
	var callers sync.WaitGroup
	for range 8 {
		callers.Go(func() {
			for !stop.Load() && !t.Failed() {
				mustSign(t, key)
				signed.Add(1)
			}
		})
	}
	for range 4 {
		before := signed.Load()
		p.Signal(t, syscall.SIGKILL)
		for end := time.Now().Add(10 * time.Second); signed.Load() < before+40 && time.Now().Before(end) && !t.Failed(); {
			time.Sleep(5 * time.Millisecond)
		}
	}
	stop.Store(true)
	callers.Wait()
	if got := stats(key); got.Reinitialized < 4 {
		t.Errorf("%+v; want a recovery for each of the four", got)
	}
}

// The peer is stopped: callers return when their contexts end, and it goes on when the peer does, or has died.
func TestP11KitStopped(t *testing.T) {
	for name, sig := range map[string]syscall.Signal{"goes on": syscall.SIGCONT, "dies": syscall.SIGKILL} {
		t.Run(name, func(t *testing.T) {
			p, key := socket(t, "&max-sessions=2")
			mustSign(t, key)
			p.Signal(t, syscall.SIGSTOP)
			var callers sync.WaitGroup
			for range 8 {
				callers.Go(func() {
					ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
					defer cancel()
					began := time.Now()
					_, err := key.SignContext(ctx, digest, crypto.SHA256)
					refused(t, err, context.DeadlineExceeded)
					if took := time.Since(began); took > 2*time.Second {
						t.Errorf("it took %v", took)
					}
				})
			}
			callers.Wait()
			// Nor does another open wait longer than it may.
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			if _, err := Backend(Options{}).Open(ctx, parse(t, p.Ref("vendor")), signer.OpenOptions{}); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("open: %v", err)
			}
			p.Signal(t, sig)
			mustSign(t, key)
			mustSign(t, mustOpen(t, p.Ref("vendor")))
		})
	}
}
