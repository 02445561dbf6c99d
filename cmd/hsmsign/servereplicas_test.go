//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"hsmsign/api"
	"hsmsign/internal/testkit"
	"hsmsign/ledger/postgres/postgrestest"
)

// postgres starts a server, and returns an empty schema in it.
func postgres(t *testing.T) string {
	t.Helper()
	db := testkit.Value(postgrestest.Start())(t)
	t.Cleanup(db.Stop)
	return db.Schema(t)
}

// TestServeReplicas loads two services with one ledger in PostgreSQL.
func TestServeReplicas(t *testing.T) {
	t.Parallel()
	s := newSite(t, 8, postgres(t), "")
	a, b := s.service(t), s.service(t)
	made := newCSRs(2)
	l := runLoad(t, 8, made, false, a, b)
	l.recovers("the start")
	t.Run("same CSR at both", func(t *testing.T) { sameAtBoth(t, made, a, b) })
	t.Run("freeze", func(t *testing.T) { freezeAtOne(t, l, a, b) })
	l.end()
	l.recorded(s, 0)
	a.stop(t)
	b.stop(t)
}

// sameAtBoth asks two services for the same CSRs at the same time.
func sameAtBoth(t *testing.T, made *csrs, services ...*served) {
	answers := make([]answered, 2*len(services))
	clients := make([]*http.Client, len(answers))
	for i := range clients {
		clients[i] = services[i%len(services)].client(t, i)
	}
	for range 20 {
		o := made.next()
		var all sync.WaitGroup
		for i := range answers {
			all.Go(func() { answers[i], _ = services[i%len(services)].post(t.Context(), clients[i], o) })
		}
		all.Wait()
		for _, a := range answers {
			if a.status != http.StatusOK || a.location != answers[0].location || !bytes.Equal(a.body, answers[0].body) {
				t.Errorf("%d %s, and %d %s", a.status, a.location, answers[0].status, answers[0].location)
			}
		}
	}
}

// freezeAtOne freezes everything through one service. No request that was sent later is answered with 200, by either of them.
func freezeAtOne(t *testing.T, l *load, a, b *served) {
	l.freezes.Store(true)
	if status, body := a.overSocket(t, http.MethodPost, "/v1/freeze", `{"scope":"all","reason":"test"}`); status != http.StatusOK {
		t.Fatalf("%d %s", status, body)
	}
	frozen, before := time.Now(), l.frozen.Load()
	testkit.Eventually(t, "refusals", func() bool { return l.frozen.Load() > before+50 })
	for _, sv := range []*served{a, b} {
		if got, err := sv.post(t.Context(), sv.client(t, 0), l.made.next()); err != nil || got.status != http.StatusForbidden {
			t.Errorf("frozen: %d %s %v", got.status, got.body, err)
		}
	}
	if last := time.Unix(0, l.lastBegun.Load()); last.After(frozen) {
		t.Errorf("a request that was sent %v after the freeze was answered with 200", last.Sub(frozen))
	}
	if status, body := b.overSocket(t, http.MethodPost, "/v1/unfreeze", `{"scope":"all","reason":"test"}`); status != http.StatusOK {
		t.Fatalf("%d %s", status, body)
	}
	l.recovers("the end of the freeze")
}

// The number of requests a day is that of all services together.
func TestServeReplicasPerDay(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, postgres(t), "")
	s.perDay = 30
	a, b := s.service(t), s.service(t)
	made := newCSRs(1)
	today := func() int { return time.Now().UTC().YearDay() }
	day := today()
	var mu sync.Mutex
	var all sync.WaitGroup
	statuses := map[int]int{}
	for i := range 8 {
		sv := []*served{a, b}[i%2]
		client := sv.client(t, 0)
		all.Go(func() {
			for range 10 {
				got, err := sv.post(t.Context(), client, made.next())
				mu.Lock()
				statuses[got.status]++
				mu.Unlock()
				if err != nil || got.status == http.StatusTooManyRequests && !bytes.Contains(got.body, []byte(`"policy.per-day"`)) {
					t.Errorf("%s %v", got.body, err)
				}
			}
		})
	}
	all.Wait()
	if day != today() {
		t.Skip("the day has ended")
	}
	if statuses[http.StatusOK] != s.perDay || statuses[http.StatusTooManyRequests] != 80-s.perDay {
		t.Errorf("%v; want %d times 200 and else 429", statuses, s.perDay)
	}
	intents := 0
	for _, e := range ledgerEntries(t, s) {
		if e.Kind == "intent" {
			intents++
		}
	}
	if intents != s.perDay {
		t.Errorf("%d intents, want %d", intents, s.perDay)
	}
	a.stop(t)
	b.stop(t)
}

// Services with different policies say so in their logs and in their status.
func TestServeReplicasDiffer(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, postgres(t), "")
	a := s.service(t)
	s.perDay++
	b := s.service(t)
	testkit.Eventually(t, "alarm", func() bool {
		return bytes.Contains(testkit.Value(os.ReadFile(b.log))(t), []byte("the policies of the replicas differ"))
	})
	for _, sv := range []*served{a, b} {
		code, body := sv.overSocket(t, http.MethodGet, "/v1/status", "")
		var status api.ServiceStatus
		if err := json.Unmarshal([]byte(body), &status); code != http.StatusOK || err != nil || len(status.Replicas) != 2 || status.Replicas[0].Policy == status.Replicas[1].Policy {
			t.Errorf("%d %s %v", code, body, err)
		}
	}
	b.stop(t)
	if strings.Contains(a.tail(), "the policies of the replicas differ") {
		t.Error("an alarm before there was another service")
	}
	a.stop(t)
}
