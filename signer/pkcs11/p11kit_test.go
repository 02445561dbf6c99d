//go:build cgo && linux

package pkcs11

import (
	"context"
	"crypto"
	"errors"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"hsmsign/internal/testkit"
	"hsmsign/signer"
	softhsmtest "hsmsign/softhsm-test"
)

// socket returns a token with the golden key behind p11-kit's socket, and the opened key without a pause between
// recoveries. Only p11-kit has a peer that dies or stops.
func socket(t *testing.T, query string) (*softhsmtest.P11Kit, *key) {
	t.Helper()
	p := softhsmtest.NewP11Kit(t, newToken(t))
	k := mustOpen(t, p.Ref("vendor")+query)
	k.module.pause = 0
	mustSign(t, k)
	return p, k
}

// The peer dies between signatures: the next one connects again, for all callers.
func TestP11KitKilledBetween(t *testing.T) {
	p, k := socket(t, "&max-sessions=4")
	for range 3 {
		if n := p.Signal(t, syscall.SIGKILL); n != 1 {
			t.Fatalf("%d children; want one", n)
		}
		signAtOnce(t, 8, 1, k)
	}
	if got := stats(k); got.Reinitialized != 3 || got.Reconnects != 3 || got.InUse != 0 || got.Open > 4 {
		t.Errorf("%+v; want three recoveries", got)
	}
}

// The peer dies during a signature: every caller still gets its signature. There is one session, because p11-kit 0.24
// wakes only one of the threads that wait for an answer when its peer dies; isolate=yes helps against a call that never
// returns.
func TestP11KitKilledDuring(t *testing.T) {
	p, k := socket(t, "&max-sessions=1")
	var stop atomic.Bool
	var signed atomic.Int64
	var callers sync.WaitGroup
	for range 8 {
		callers.Go(func() {
			for !stop.Load() && !t.Failed() {
				mustSign(t, k)
				signed.Add(1)
			}
		})
	}
	for range 4 {
		p.Signal(t, syscall.SIGKILL)
		before := signed.Load() // after the kill, so that the next one does not meet the recovery
		testkit.Eventually(t, "more signatures", func() bool { return signed.Load() >= before+40 || t.Failed() })
	}
	stop.Store(true)
	callers.Wait()
	if got := stats(k); got.Reinitialized < 4 {
		t.Errorf("%+v; want a recovery for each of the four", got)
	}
}

// The peer is stopped: callers return when their contexts end, and the key works when the peer goes on or has died.
func TestP11KitStopped(t *testing.T) {
	for name, sig := range map[string]syscall.Signal{"goes on": syscall.SIGCONT, "dies": syscall.SIGKILL} {
		t.Run(name, func(t *testing.T) {
			p, k := socket(t, "&max-sessions=2")
			p.Signal(t, syscall.SIGSTOP)
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			var callers sync.WaitGroup
			for range 8 {
				callers.Go(func() {
					_, err := k.SignContext(ctx, digest, crypto.SHA256)
					refused(t, err, context.DeadlineExceeded)
				})
			}
			if _, err := Backend(Options{}).Open(ctx, parse(t, p.Ref("vendor")), signer.OpenOptions{}); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("open: %v", err)
			}
			callers.Wait()
			p.Signal(t, sig)
			mustSign(t, k)
			mustSign(t, mustOpen(t, p.Ref("vendor")))
		})
	}
}

// soakVariable is the number of signatures of TestSoak; "make soak" sets 100000.
const soakVariable = "HSMSIGN_SOAK"

// Nothing grows with the number of signatures: no session, no thread, no memory.
func TestSoak(t *testing.T) {
	total := 400
	if text := os.Getenv(soakVariable); text != "" {
		var err error
		if total, err = strconv.Atoi(text); err != nil {
			t.Fatalf("%s: %v", soakVariable, err)
		}
	}
	k := mustOpen(t, newToken(t).Ref("vendor")+"&max-sessions=4")
	signAtOnce(t, 8, total/80, k)
	before := measure(t)
	signAtOnce(t, 8, total/8, k)
	after := measure(t)
	t.Logf("%d signatures: before %+v, after %+v, %+v", total, before, after, stats(k))
	if got := stats(k); got.Open > 4 || got.Open != got.Idle || got.Evicted != 0 || got.Reconnects != 0 {
		t.Errorf("%+v; want at most 4 sessions, all idle", got)
	}
	// The Go runtime starts another thread when it finds all others in C. A leak of 100 bytes for each of 100,000
	// signatures is more than 8 MB.
	if after.threads > before.threads+4 || after.rss > before.rss+8<<20 {
		t.Errorf("grown from %+v to %+v", before, after)
	}
}

type figures struct{ threads, rss int }

// measure reads the number of threads, and the resident memory in bytes, from proc(5).
func measure(t *testing.T) figures {
	t.Helper()
	runtime.GC()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	number := func(name string) int {
		_, rest, _ := strings.Cut(string(text), name+":")
		n, err := strconv.Atoi(strings.Fields(rest)[0])
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	return figures{number("Threads"), number("VmRSS") * 1024}
}
