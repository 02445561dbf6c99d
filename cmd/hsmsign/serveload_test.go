//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"hsmsign/api"
	"hsmsign/internal/testkit"
	"hsmsign/request"
)

// answerWait is how long the service may take for an answer: 15 seconds for the body and 45 for everything else.
const answerWait = time.Minute

// load is callers that ask for requests until they are stopped, and what they were answered. It is safe for concurrent use.
type load struct {
	t       *testing.T
	stop    context.CancelFunc
	callers sync.WaitGroup
	cut     bool // connections may break: the service is killed
	made    *csrs

	good, limited, unavailable, broken, frozen atomic.Int64

	freezes atomic.Bool // 403 is an answer too: something is frozen

	lastBegun atomic.Int64 // when the newest request that was answered with 200 was sent; Unix nanoseconds

	mu     sync.Mutex
	issued map[string]string // SHA-256 of a request file, to its id
	again  []answered        // some of what was answered, to ask for again
}

// runLoad starts callers, which are spread over the services. Each has a connection of its own.
func runLoad(t *testing.T, callers int, made *csrs, cut bool, services ...*served) *load {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	l := &load{t: t, stop: stop, cut: cut, made: made, issued: map[string]string{}}
	for i := range callers {
		sv := services[i%len(services)]
		client := sv.client(t, i/len(services)%len(sv.callers))
		l.callers.Go(func() {
			for ctx.Err() == nil {
				l.ask(ctx, sv, client)
			}
		})
	}
	t.Cleanup(func() { stop(); l.callers.Wait() })
	return l
}

// end stops the callers when they have the answers that they wait for, and checks that there were good ones.
func (l *load) end() {
	l.t.Helper()
	l.stop()
	l.callers.Wait()
	l.t.Logf("%d requests, %d times 429, %d times 503, %d connections broken", l.good.Load(), l.limited.Load(), l.unavailable.Load(), l.broken.Load())
	if l.good.Load() == 0 {
		l.t.Error("no request was answered")
	}
}

// ask sends a new CSR, or, once in eight times, one that was answered before.
func (l *load) ask(ctx context.Context, sv *served, client *http.Client) {
	var before *answered
	l.mu.Lock()
	if n := len(l.again); n > 0 && rand.IntN(8) == 0 {
		copied := l.again[rand.IntN(n)]
		before = &copied
	}
	l.mu.Unlock()
	var o order
	if before != nil {
		o = before.order
	} else {
		o = l.made.next()
	}
	// The end of the load does not cut off the request: its answer is checked like the others.
	asking, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerWait+10*time.Second)
	defer cancel()
	a, err := sv.post(asking, client, o)
	if err != nil {
		l.broken.Add(1)
		if !l.cut || asking.Err() != nil {
			l.t.Errorf("no answer: %v", err)
		}
		pause(ctx, 20*time.Millisecond)
		return
	}
	l.answer(ctx, a, before)
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// answer checks an answer. before is what the same CSR was answered before.
func (l *load) answer(ctx context.Context, a answered, before *answered) {
	if a.took > answerWait {
		l.t.Errorf("an answer took %v", a.took)
	}
	if retry := a.retry != ""; retry != (a.status == http.StatusTooManyRequests || a.status == http.StatusServiceUnavailable) {
		l.t.Errorf("%d with Retry-After %q", a.status, a.retry)
	}
	switch a.status {
	case http.StatusOK:
		l.accept(a, before)
		return
	case http.StatusForbidden:
		if l.frozen.Add(1); !l.freezes.Load() || !bytes.Contains(a.body, []byte(`"ledger.frozen"`)) {
			l.t.Errorf("a wrong answer: %d %s", a.status, a.body)
		}
	case http.StatusTooManyRequests:
		l.limited.Add(1)
	case http.StatusServiceUnavailable:
		l.unavailable.Add(1)
	default:
		l.t.Errorf("a wrong answer: %d %s", a.status, a.body)
	}
	pause(ctx, 20*time.Millisecond) // more impatient than Retry-After asks for
}

// accept checks a request and remembers it.
func (l *load) accept(a answered, before *answered) {
	l.good.Add(1)
	for last := l.lastBegun.Load(); a.begun.UnixNano() > last && !l.lastBegun.CompareAndSwap(last, a.begun.UnixNano()); last = l.lastBegun.Load() {
	}
	if err := checkRequest(a.body, a.der); err != nil {
		l.t.Errorf("a wrong request: %v", err)
	}
	id := strings.TrimPrefix(a.location, "/v1/requests/")
	if before != nil && (!bytes.Equal(a.body, before.body) || a.location != before.location) {
		l.t.Errorf("the same CSR has the answers %s and %s", before.location, a.location)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.issued[api.SHA256(a.body)] = id
	if len(l.again) < 256 {
		l.again = append(l.again, a)
	} else {
		l.again[rand.IntN(256)] = a
	}
}

// checkRequest returns why a file is not the request for a CSR, signed with the golden vendor key.
func checkRequest(file, csr []byte) error {
	found, err := request.Parse(file)
	switch {
	case err != nil:
		return err
	case !bytes.Equal(found.CSR, csr):
		return fmt.Errorf("it is for another CSR")
	}
	return goldenVerifies(csr, found.Signature)
}

// recovers waits until a request that was sent from now on is answered with 200, and returns how long that took.
func (l *load) recovers(what string) time.Duration {
	l.t.Helper()
	since := time.Now()
	testkit.Eventually(l.t, "success after "+what, func() bool { return l.lastBegun.Load() > since.UnixNano() })
	return time.Since(since)
}

// recorded checks that the ledger verifies, that each request that a caller got was issued by one entry, and that at most a
// number of intents have no outcome.
func (l *load) recorded(s *site, openIntents int) {
	l.t.Helper()
	if verdict := s.run(l.t, "ledger", "verify"); !strings.HasPrefix(verdict, "ok: ") {
		l.t.Errorf("the ledger: %s", verdict)
	}
	entries, intents, issued := ledgerEntries(l.t, s), map[string]bool{}, map[string][]string{}
	for _, e := range entries {
		switch e.Kind {
		case "intent":
			intents[e.Request] = true
		case "issued", "failed", "refused", "unknown":
			delete(intents, e.Request)
		}
		if e.Kind == "issued" {
			issued[e.FileSHA256] = append(issued[e.FileSHA256], e.Request)
		}
	}
	for file, id := range l.issued {
		if ids := issued[file]; len(ids) != 1 || ids[0] != id {
			l.t.Errorf("the request %s was released, and the entries with its file have %v", id, ids)
		}
	}
	l.t.Logf("%d entries; %d intents without an outcome", len(entries), len(intents))
	if len(intents) > openIntents {
		l.t.Errorf("%d intents have no outcome; want at most %d", len(intents), openIntents)
	}
}

// ledgerEntries returns all entries.
func ledgerEntries(t *testing.T, s *site) (all []api.LedgerEntry) {
	t.Helper()
	for line := range strings.Lines(s.run(t, "ledger", "export")) {
		var e api.LedgerEntry
		testkit.OK(t, json.Unmarshal([]byte(line), &e))
		all = append(all, e)
	}
	return all
}

// TestServeOverload has 320 clients of 64 callers ask as fast as they can, which is more often than their role allows. HSMSIGN_SOAK=1 does it for ten minutes
// and compares the memory of each minute.
func TestServeOverload(t *testing.T) {
	minutes, callers := 0, 64
	length := 4 * time.Second
	if soaking() {
		minutes, length = 10, time.Minute
	}
	s := newSite(t, callers, "", "")
	s.env, s.perSecond = []string{"GODEBUG=gctrace=1"}, 1
	if minutes > 0 {
		s.perSecond = 2
	}
	sv := s.service(t)
	l := runLoad(t, 5*callers, newCSRs(4), false, sv)
	var heaps, sizes []int64
	for range max(minutes, 1) {
		time.Sleep(length)
		heaps, sizes = append(heaps, liveHeap(t, sv)), append(sizes, memory(t, sv.cmd.Process.Pid))
		t.Logf("%d requests; live heap %d MB, resident %d MB", l.good.Load(), heaps[len(heaps)-1]>>20, sizes[len(sizes)-1]>>20)
	}
	l.end()
	if l.limited.Load() == 0 {
		t.Error("nobody was told to ask less often")
	}
	l.recorded(s, 0)
	sv.stop(t)
	if minutes == 0 {
		return
	}
	// The first two minutes fill caches and the heap's reserve.
	if later := heaps[len(heaps)-1]; later > heaps[1]+heaps[1]/4+8<<20 {
		t.Errorf("the live heap grows: %v", heaps)
	}
	if later := sizes[len(sizes)-1]; later > sizes[1]+sizes[1]/4+16<<20 {
		t.Errorf("the resident memory grows: %v", sizes)
	}
}

// liveHeap returns the size of the heap after the newest garbage collection, from the lines of GODEBUG=gctrace=1.
func liveHeap(t *testing.T, sv *served) int64 {
	t.Helper()
	lines := strings.Split(string(testkit.Value(os.ReadFile(sv.log))(t)), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		var before, at, live int64
		_, rest, ok := strings.Cut(lines[i], " ms cpu, ")
		if !ok || !strings.HasPrefix(lines[i], "gc ") {
			continue
		}
		if n, _ := fmt.Sscanf(rest, "%d->%d->%d MB", &before, &at, &live); n == 3 {
			return live << 20
		}
	}
	t.Fatal("no garbage collection is in the log")
	return 0
}
