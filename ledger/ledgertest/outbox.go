package ledgertest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
)

// take takes the message that is due, of some kinds; nil: nothing is due.
func take(t *testing.T, l *ledger.Ledger, kinds ...string) *ledger.Message {
	t.Helper()
	m, err := l.Take(t.Context(), time.Minute, kinds...)
	must(t, err)
	return m
}

// post stores a message.
func post(t *testing.T, l *ledger.Ledger, kind string, customer record.ID, payload string) (about record.ID) {
	t.Helper()
	m := ledger.Message{Kind: kind, About: record.NewID(), Customer: customer}
	if payload != "" {
		m.Payload = []byte(payload)
	}
	must(t, l.Post(t.Context(), m, 0))
	return m.About
}

// testOutbox: a message is what was posted, is due again after a pause, and is gone when it was sent.
func testOutbox(t *testing.T, f *fixture) {
	ctx, l := t.Context(), f.open(t)
	if m := take(t, l); m != nil {
		t.Fatalf("an empty outbox: %+v", m)
	}
	head := size(t, l)
	customer := record.NewID()
	about := post(t, l, ledger.MessageMDMCert, customer, "payload")
	f.pass(time.Second)
	notice := post(t, l, ledger.MessagePending, record.ID{}, "")
	if m := take(t, l, "other"); m != nil {
		t.Errorf("of another kind: %+v", m)
	}
	m := take(t, l, ledger.MessageMDMCert, "other")
	if m == nil || m.About != about || m.Customer != customer || m.ID == (record.ID{}) || m.Kind != ledger.MessageMDMCert || string(m.Payload) != "payload" || m.Tries != 1 || m.Failing != 0 ||
		!m.Created.Equal(time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)) || len(m.Delivered) != 0 {
		t.Fatalf("%+v", m)
	}
	second := take(t, l)
	if second == nil || second.About != notice || second.Payload != nil || take(t, l) != nil {
		t.Fatalf("%+v", second)
	}
	must(t, l.Retry(ctx, m.ID, 10*time.Second))
	must(t, l.Later(ctx, second.ID, time.Minute))
	f.pass(9 * time.Second)
	if m := take(t, l); m != nil {
		t.Errorf("before its time: %+v", m)
	}
	must(t, l.Delivered(ctx, m.ID, "smtp:1"))
	must(t, l.Delivered(ctx, m.ID, "webhook"))
	if err := l.Delivered(ctx, m.ID, "a b"); fault.KindOf(err) != fault.Usage {
		t.Errorf("two words: %v", err)
	}
	f.pass(time.Second)
	again := take(t, l)
	if again == nil || again.ID != m.ID || again.Tries != 2 || again.Failing != 10*time.Second || !slices.Equal(again.Delivered, []string{"smtp:1", "webhook"}) || !again.HasDelivered("webhook") || again.HasDelivered("smtp:2") {
		t.Fatalf("%+v", again)
	}
	all, err := l.Backlogs(ctx)
	must(t, err)
	if got := fmt.Sprint(all); got != "map[mdmcert:{1 10s} pending:{1 0s}]" {
		t.Errorf("backlogs %s", got)
	}
	f.pass(5 * time.Second)
	must(t, l.Retry(ctx, m.ID, time.Second))
	f.pass(time.Second)
	if again = take(t, l); again == nil || again.Failing != 16*time.Second {
		t.Fatalf("the first failure: %+v", again)
	}
	must(t, l.Sent(ctx, m.ID))
	must(t, l.Retry(ctx, m.ID, 0)) // late
	f.pass(time.Minute)
	if m := take(t, l); m == nil || m.ID != second.ID || m.Tries != 2 || m.Failing != 0 {
		t.Fatalf("%+v", m)
	}
	must(t, l.Drop(ctx, second.ID))
	f.pass(time.Hour)
	if m := take(t, l); m != nil {
		t.Errorf("a message that was sent or dropped: %+v", m)
	}
	f.empty(t)
	if size(t, l) != head {
		t.Error("messages are entries")
	}
	verified(t, l)
}

// empty checks that no payload is in the store.
func (f *fixture) empty(t *testing.T) {
	t.Helper()
	var n int
	must(t, f.cfg.Store.DB.QueryRowContext(t.Context(), "SELECT count(*) FROM outbox WHERE payload IS NOT NULL").Scan(&n))
	if n != 0 {
		t.Errorf("%d payloads remain", n)
	}
}

// other opens the ledger as another process does.
func (f *fixture) other(t *testing.T) *ledger.Ledger {
	t.Helper()
	cfg := f.cfg
	cfg.Store = f.again(t)
	l, err := ledger.Open(t.Context(), cfg)
	must(t, err)
	t.Cleanup(func() { _ = l.Close() }) // the test has checked it
	return l
}

// testOutboxLeases: of several processes that take at the same time, one gets a message, and another after the lease.
func testOutboxLeases(t *testing.T, f *fixture) {
	ledgers := []*ledger.Ledger{f.open(t), f.other(t), f.other(t)}
	const messages = 60
	for range messages {
		post(t, ledgers[0], ledger.MessagePending, record.ID{}, "")
	}
	run := func() map[record.ID]int {
		var mu sync.Mutex
		var all sync.WaitGroup
		taken := map[record.ID]int{}
		for _, l := range ledgers {
			for range 2 {
				all.Go(func() {
					for {
						m, err := l.Take(t.Context(), time.Minute)
						if err != nil {
							t.Error(err)
						}
						if m == nil {
							return
						}
						mu.Lock()
						taken[m.ID]++
						mu.Unlock()
					}
				})
			}
		}
		all.Wait()
		return taken
	}
	for round := range 2 {
		taken := run()
		if len(taken) != messages {
			t.Errorf("round %d: %d messages were taken, want %d", round, len(taken), messages)
		}
		for id, n := range taken {
			if n != 1 {
				t.Errorf("round %d: message %s was taken %d times", round, id, n)
			}
		}
		if m := take(t, ledgers[1]); m != nil {
			t.Errorf("during the lease: %+v", m)
		}
		f.pass(time.Minute)
	}
}

// testOutboxCrash: a process that ends between Take and Sent leaves the message to the next one, with its id.
func testOutboxCrash(t *testing.T, f *fixture) {
	l := f.open(t)
	post(t, l, ledger.MessageMDMCert, record.NewID(), "answer")
	m := take(t, l)
	must(t, l.Delivered(t.Context(), m.ID, "webhook"))
	must(t, l.Close())
	next := f.other(t)
	if m := take(t, next); m != nil {
		t.Errorf("during the lease: %+v", m)
	}
	f.pass(time.Minute)
	again := take(t, next)
	if again == nil || again.ID != m.ID || string(again.Payload) != "answer" || again.Tries != 2 || !again.HasDelivered("webhook") {
		t.Fatalf("%+v", again)
	}
	must(t, next.Sent(t.Context(), again.ID))
	f.empty(t)
}

// testOutboxLimits: messages of a customer a day, over all processes; the size of one; how long one is kept.
func testOutboxLimits(t *testing.T, f *fixture) {
	ctx, l, other := t.Context(), f.open(t), f.other(t)
	acme, bolt := record.NewID(), record.NewID()
	message := func(customer record.ID) ledger.Message {
		return ledger.Message{ID: record.NewID(), Kind: ledger.MessageMDMCert, About: record.NewID(), Customer: customer, Payload: []byte("x")}
	}
	var all sync.WaitGroup
	var mu sync.Mutex
	posted := 0
	for i := range 12 {
		all.Go(func() {
			err := []*ledger.Ledger{l, other}[i%2].Post(ctx, message(acme), 5)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				posted++
			case fault.KindOf(err) != fault.Limited || !strings.Contains(err.Error(), "has had 5 messages today"):
				t.Error(err)
			}
		})
	}
	all.Wait()
	if posted != 5 {
		t.Errorf("%d messages were posted", posted)
	}
	must(t, l.Sent(ctx, take(t, l).ID))
	must(t, l.Drop(ctx, take(t, l).ID))
	if err := l.Post(ctx, message(acme), 5); fault.KindOf(err) != fault.Limited {
		t.Errorf("what was sent or dropped does not count: %v", err)
	}
	must(t, l.Post(ctx, message(acme), 0))
	must(t, l.Post(ctx, message(bolt), 5))
	kind := message(acme)
	kind.Kind = ledger.MessagePending
	must(t, l.Post(ctx, kind, 5))
	f.pass(12 * time.Hour) // to the next day
	first := message(acme)
	must(t, l.Post(ctx, first, 1))
	must(t, l.Post(ctx, first, 1)) // it is known
	if err := l.Post(ctx, message(acme), 1); fault.KindOf(err) != fault.Limited {
		t.Errorf("the limit of the next day: %v", err)
	}
	large := message(acme)
	large.Payload = make([]byte, 256<<10+1)
	if err := l.Post(ctx, large, 0); fault.KindOf(err) != fault.TooLarge {
		t.Errorf("a large message: %v", err)
	}
	if err := l.Post(ctx, ledger.Message{}, 0); fault.KindOf(err) != fault.Usage {
		t.Errorf("a message without a kind: %v", err)
	}
	testOutboxSwept(t, f, l, first.ID)
}

// testOutboxSwept: rows are deleted at the end of their times. There are 7 messages of the first day, of which 2 have ended, and one
// of the second.
func testOutboxSwept(t *testing.T, f *fixture, l *ledger.Ledger, last record.ID) {
	t.Helper()
	sweep := func(want int64, rows int) {
		t.Helper()
		dropped, err := l.Sweep(t.Context())
		must(t, err)
		var n int
		must(t, f.cfg.Store.DB.QueryRowContext(t.Context(), "SELECT count(*) FROM outbox").Scan(&n))
		if dropped != want || n != rows {
			t.Errorf("%d were given up, %d remain; want %d and %d", dropped, n, want, rows)
		}
	}
	sweep(0, 9)
	f.pass(37 * time.Hour)
	sweep(0, 7) // those that had ended
	f.pass(ledger.UnsentFor - 37*time.Hour - 12*time.Hour + time.Minute)
	var kept *ledger.Message
	for m := take(t, l); m != nil; m = take(t, l) { // what is taken is not given up
		if m.ID == last {
			kept = m
		}
	}
	if kept == nil {
		t.Fatal("the last message is not due")
	}
	sweep(0, 7)
	must(t, l.Later(t.Context(), kept.ID, 15*time.Minute))
	f.pass(2 * time.Minute)
	sweep(6, 1)
	for range 84 {
		f.pass(24 * time.Hour)
		if m := take(t, l); m != nil {
			must(t, l.Later(t.Context(), m.ID, 15*time.Minute))
		}
	}
	sweep(1, 0)
}

// testOutboxHastened: what a message waits for happens while it is being sent, or while it waits.
func testOutboxHastened(t *testing.T, f *fixture) {
	ctx, l := t.Context(), f.open(t)
	about := post(t, l, ledger.MessageMDMCert, record.NewID(), "x")
	m := take(t, l)
	must(t, f.other(t).Hasten(ctx, about))
	if m := take(t, l); m != nil {
		t.Errorf("during the lease: %+v", m)
	}
	must(t, l.Later(ctx, m.ID, time.Hour))
	if m = take(t, l); m == nil {
		t.Fatal("it is not due after it was hastened")
	}
	must(t, l.Later(ctx, m.ID, time.Hour))
	if m := take(t, l); m != nil {
		t.Errorf("hastened once, due twice: %+v", m)
	}
	must(t, l.Hasten(ctx, record.NewID()))
	if m := take(t, l); m != nil {
		t.Errorf("about something else: %+v", m)
	}
	must(t, l.Hasten(ctx, about))
	if m := take(t, l); m == nil {
		t.Error("it is not due")
	}
}

// testOutboxErased: erasing a customer deletes its messages and no others, also in a restored copy.
func testOutboxErased(t *testing.T, f *fixture) {
	ctx, l := context.WithoutCancel(t.Context()), f.open(t)
	must(t, l.AddCustomer(ctx, "uid 1000", "local", ledger.Customer{Name: "acme"}))
	var raw []byte
	must(t, f.cfg.Store.DB.QueryRowContext(ctx, "SELECT id FROM customers WHERE name = 'acme'").Scan(&raw))
	acme, bolt := record.ID(raw), record.NewID()
	post(t, l, ledger.MessageMDMCert, acme, "data of acme")
	post(t, l, ledger.MessagePending, acme, "")
	kept := post(t, l, ledger.MessageMDMCert, bolt, "data of bolt")
	restore := f.snapshot(t)
	must(t, l.EraseCustomer(ctx, "uid 1000", "local", "acme"))
	check := func() {
		t.Helper()
		var n int
		must(t, f.cfg.Store.DB.QueryRowContext(ctx, "SELECT count(*) FROM outbox").Scan(&n))
		if m := take(t, l); n != 1 || m == nil || m.About != kept {
			t.Errorf("%d messages remain, of them due %+v", n, m)
		}
	}
	check()
	must(t, l.Close())
	restore(t)
	f.cfg.LastCheckpoint = ""
	l = f.other(t)
	n, err := l.EraseAgain(ctx, "uid 1000", "local", []record.ID{acme})
	must(t, err)
	if n != 1 {
		t.Errorf("%d were erased again", n)
	}
	check()
	verified(t, l)
}
