//go:build cgo && linux

package pkcs11

import (
	"context"
	"crypto"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"hsmsign/signer"
)

// soakVariable is how many signatures TestSoak makes; "make soak" sets 100000.
const soakVariable = "HSMSIGN_SOAK"

// Signature after signature, nothing grows: no session, no thread, no memory.
func TestSoak(t *testing.T) {
	total := 400
	if text := os.Getenv(soakVariable); text != "" {
		var err error
		if total, err = strconv.Atoi(text); err != nil {
			t.Fatalf("%s: %v", soakVariable, err)
		}
	}
	tok := newToken(t)
	key := mustOpen(t, tok.Ref("vendor")+"&max-sessions=4")
	run := func(n int) {
		work := make(chan struct{}, n)
		for range n {
			work <- struct{}{}
		}
		close(work)
		var callers sync.WaitGroup
		for range 8 {
			callers.Go(func() {
				for range work {
					ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
					_, err := signer.Sign(ctx, key, []byte("certificate request"), crypto.SHA256)
					cancel()
					if err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		callers.Wait()
	}
	run(total / 10)
	before := measure(t)
	run(total)
	after := measure(t)
	t.Logf("%d signatures: before %+v, after %+v, %+v", total, before, after, stats(key))
	if got := stats(key); got.Open > 4 || got.Open != got.Idle || got.Evicted != 0 || got.Reconnects != 0 {
		t.Errorf("%+v; want at most 4 sessions, all idle", got)
	}
	// The Go runtime starts a thread more where it finds all others in C; 8 MB are below what a leak of 100 bytes a
	// signature makes of 100,000.
	if after.threads > before.threads+4 || after.rss > before.rss+8<<20 {
		t.Errorf("grown from %+v to %+v", before, after)
	}
}

type figures struct{ threads, rss int }

// measure reads threads, and resident memory in bytes, from proc(5).
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
