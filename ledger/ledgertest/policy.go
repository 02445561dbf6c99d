package ledgertest

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/ledger/record"
)

// testPolicy: what a caller's policy says is applied and recorded with the rules of the ledger.
func testPolicy(t *testing.T, f *fixture) {
	ctx, l := t.Context(), f.open(t)
	limited := func(customer, csr string) record.Use {
		u := use(customer, csr, "key of "+customer, "vendor")
		u.Actor, u.Policy, u.PerDay = "portal", record.SHA256([]byte("the policy")), 2
		return u
	}
	first := issue(t, l, limited("acme", "csr 1"))
	issue(t, l, limited("acme", "csr 2"))
	if again := issue(t, l, limited("acme", "csr 1")); again.Request != first.Request {
		t.Errorf("a stored request counts: %+v", again)
	}
	for range 2 {
		if _, err := l.Authorize(ctx, limited("bolt", "csr 3")); fault.KindOf(err) != fault.Limited || !strings.Contains(err.Error(), "has had 2 requests today, as many as it may [policy.per-day]") {
			t.Errorf("the third request of a day: %v", err)
		}
	}
	other := limited("acme", "csr 4")
	other.Actor = "another"
	issue(t, l, other)
	issue(t, l, use("acme", "csr 5", "key of acme", "vendor")) // without a policy
	known := limited("coil", "csr 6")
	known.Actor, known.MustExist = "strict", true
	if _, err := l.Authorize(ctx, known); fault.KindOf(err) != fault.Forbidden || !strings.Contains(err.Error(), "[policy.must-exist]") {
		t.Errorf("a customer that is not known: %v", err)
	}
	for range 3 {
		must(t, l.Refuse(ctx, limited("acme", "csr 7"), "policy.subject"))
	}
	f.pass(24 * time.Hour)
	issue(t, l, limited("bolt", "csr 3"))
	const want = "genesis customer intent issued intent issued refused intent issued intent issued refused refused customer intent issued"
	if got := kinds(t, l); got != want {
		t.Errorf("entries %s; want %s", got, want)
	}
	var rules []string
	must(t, l.Records(ctx, func(r record.Record) error {
		if r.Entry.Policy != (record.Hash{}) && r.Entry.Policy != record.SHA256([]byte("the policy")) {
			t.Errorf("entry %d has another policy", r.Index)
		}
		if r.Entry.Rule != "" {
			rules = append(rules, r.Entry.Rule)
		}
		return nil
	}))
	if got := strings.Join(rules, " "); got != "policy.per-day policy.must-exist policy.subject" {
		t.Errorf("rules %s", got)
	}
	verified(t, l)
	for _, change := range []string{"UPDATE daily SET requests = 1 WHERE requests = 2", "DELETE FROM daily"} {
		f.exec(t, change)
		report, err := l.Verify(ctx, nil)
		must(t, err)
		if len(report.Defects) == 0 || !strings.Contains(report.Defects[0].Text, "requests of the actor") {
			t.Errorf("%s: %+v", change, report.Defects)
		}
	}
}

// testRefusals: whoever may only be refused does not fill the ledger, whatever it asks for.
func testRefusals(t *testing.T, f *fixture) {
	ctx, l := t.Context(), f.open(t)
	before, err := l.Head(ctx)
	must(t, err)
	var all sync.WaitGroup
	for first := range 50 {
		all.Go(func() {
			for i := range 22 {
				u := use("acme", fmt.Sprint("csr ", first, " ", i), "key", "vendor")
				u.Actor = "loud"
				if err := l.Refuse(ctx, u, "policy.customers"); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	quiet := use("acme", "csr", "key", "vendor")
	must(t, l.Refuse(ctx, quiet, "policy.customers"))
	head, err := l.Head(ctx)
	must(t, err)
	if grown := head.Size - before.Size; grown != 1001 {
		t.Errorf("%d entries for 1,100 refusals of one actor and one of another", grown)
	}
	var counted int
	must(t, f.cfg.Store.DB.QueryRowContext(ctx, "SELECT sum(repeated) FROM refusals").Scan(&counted))
	if counted != 100 {
		t.Errorf("%d refusals are counted", counted)
	}
	f.pass(24 * time.Hour)
	must(t, l.Refuse(ctx, quiet, "policy.customers"))
	if next, err := l.Head(ctx); err != nil || next.Size != head.Size+1 {
		t.Errorf("the next day: %+v, %v", next, err)
	}
	verified(t, l)
}

// testGivenUp: a caller that gives up at any time reads nothing of a change that is still running (the race detector tells), and
// what was committed is whole.
func testGivenUp(t *testing.T, f *fixture) {
	l := f.open(t)
	var all sync.WaitGroup
	for i := range 60 {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*100*time.Microsecond)
			defer cancel()
			permit, err := l.Authorize(ctx, use("acme", fmt.Sprint("csr ", i), "key", "vendor"))
			if err == nil {
				err = l.Conclude(ctx, &permit, record.Outcome{File: fmt.Append(nil, "file ", i)})
			}
			if err != nil && ctx.Err() == nil {
				t.Errorf("%d: %v", i, err)
			}
		})
	}
	all.Wait()
	verified(t, l)
}
