package ledgertest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
)

// another opens the same ledger as another process would.
func (f *fixture) another(t *testing.T) *ledger.Ledger {
	t.Helper()
	cfg := f.cfg
	cfg.Store = f.again(t)
	l, err := ledger.Open(t.Context(), cfg)
	must(t, err)
	t.Cleanup(func() { _ = l.Close() }) // the test has checked it
	return l
}

// frozen checks that an error is that of a freeze.
func frozen(t *testing.T, what string, err error) {
	t.Helper()
	if fault.KindOf(err) != fault.Forbidden || !strings.Contains(err.Error(), "frozen [ledger.frozen]") || !strings.Contains(fault.Hint(err), "unfreeze") {
		t.Errorf("%s: %v", what, err)
	}
}

// scopes are a freeze of each scope that covers frozenUse.
var scopes = []ledger.Freeze{
	{Scope: ledger.FreezeAll, Reason: "incident 7"}, {Scope: ledger.FreezeCaller, Name: "portal", Reason: "token was lost"},
	{Scope: ledger.FreezeCustomer, Name: "acme", Reason: "contract ended"}, {Scope: ledger.FreezeVendor, Name: "eu", Reason: "key may be known"},
}

func frozenUse(customer, csr string) record.Use {
	u := use(customer, csr, "key of "+customer, "vendor")
	u.Actor, u.Identity = "portal", "eu"
	return u
}

// testFreeze: what one process freezes, every process refuses at once, also what is stored, until it is unfrozen.
func testFreeze(t *testing.T, f *fixture) {
	ctx, l, other := t.Context(), f.open(t), f.another(t)
	first := issue(t, other, frozenUse("acme", "csr 0"))
	free := use("bolt", "csr of bolt", "key of bolt", "vendor")
	for i, one := range scopes {
		must(t, l.Freeze(ctx, "uid 0", "local", one))
		if err := other.Freeze(ctx, "uid 0", "local", one); fault.KindOf(err) != fault.Conflict {
			t.Errorf("%s twice: %v", one.Scope, err)
		}
		for _, csr := range []string{"csr 0", fmt.Sprint("csr ", i+1)} { // a stored request, and a new one
			_, err := other.Authorize(ctx, frozenUse("acme", csr))
			frozen(t, one.Scope, err)
			_, err = other.Check(ctx, frozenUse("acme", csr))
			frozen(t, one.Scope+", check", err)
		}
		frozen(t, one.Scope+", release", other.Release(ctx, first))
		if one.Scope != ledger.FreezeAll {
			issue(t, other, free)
		}
		now, err := other.Freezes(ctx)
		if err != nil || len(now) != 1 || now[0].Scope != one.Scope || now[0].Name != one.Name || now[0].Reason != one.Reason || now[0].Actor != "uid 0" || !now[0].Since.Equal(f.cfg.Now()) {
			t.Errorf("%s: %+v, %v", one.Scope, now, err)
		}
		one.Reason = "over"
		must(t, other.Unfreeze(ctx, "uid 0", "local", one))
		if err := l.Unfreeze(ctx, "uid 0", "local", one); fault.KindOf(err) != fault.NotFound {
			t.Errorf("%s unfrozen twice: %v", one.Scope, err)
		}
		if again := issue(t, l, frozenUse("acme", "csr 0")); again.Request != first.Request {
			t.Errorf("the stored request: %+v", again)
		}
		issue(t, l, frozenUse("acme", fmt.Sprint("csr ", i+1)))
	}
	if now, err := l.Freezes(ctx); err != nil || len(now) != 0 {
		t.Errorf("%+v, %v", now, err)
	}
	if got := kinds(t, l); strings.Count(got, "refused") != 5 || strings.Count(got, " frozen") != 4 || strings.Count(got, "unfrozen") != 4 {
		t.Errorf("entries %s", got)
	}
	verified(t, l)
	for _, wrong := range []ledger.Freeze{
		{Scope: "x", Name: "x", Reason: "x"}, {Scope: ledger.FreezeAll, Name: "x", Reason: "x"}, {Scope: ledger.FreezeCaller, Reason: "x"},
		{Scope: ledger.FreezeAll}, {Scope: ledger.FreezeAll, Reason: " "}, {Scope: ledger.FreezeAll, Reason: "a\nb"}, {Scope: ledger.FreezeVendor, Name: "a\nb", Reason: "x"},
		{Scope: ledger.FreezeVendor, Name: strings.Repeat("x", 129), Reason: "x"}, {Scope: ledger.FreezeAll, Reason: strings.Repeat("x", 1025)},
	} {
		if err := l.Freeze(ctx, "uid 0", "local", wrong); fault.KindOf(err) != fault.Usage {
			t.Errorf("%+v: %v", wrong, err)
		}
	}
	if err := l.Freeze(ctx, "uid 0", "local", ledger.Freeze{Scope: ledger.FreezeCustomer, Name: "nobody", Reason: "x"}); fault.KindOf(err) != fault.NotFound {
		t.Errorf("an unknown customer: %v", err)
	}
}

// testFreezeAtOnce: releases share reads of what is frozen, and none of them uses a read that began before the release.
func testFreezeAtOnce(t *testing.T, f *fixture) {
	l, other := f.open(t), f.another(t)
	permit := issue(t, l, frozenUse("acme", "csr 0"))
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for range 8 { // so that a read is running at any time
		all.Go(func() {
			for ctx.Err() == nil {
				_ = l.Release(ctx, permit) // frozen or not
			}
		})
	}
	for range 20 {
		must(t, other.Freeze(t.Context(), "uid 0", "local", scopes[0]))
		frozen(t, "at once", l.Release(t.Context(), permit))
		must(t, other.Unfreeze(t.Context(), "uid 0", "local", scopes[0]))
		must(t, l.Release(t.Context(), permit))
	}
	stop()
	all.Wait()
	// Who gives up does not wait for the read.
	if err := l.Release(ctx, permit); !errors.Is(err, context.Canceled) {
		t.Errorf("a context that has ended: %v", err)
	}
}

// testFrozenConclude: a signature that was in the key store when the freeze committed is recorded, and not released.
func testFrozenConclude(t *testing.T, f *fixture) {
	ctx, l, other := t.Context(), f.open(t), f.another(t)
	began := f.cfg.Now()
	for i, one := range scopes {
		permit, err := l.Authorize(ctx, frozenUse("acme", fmt.Sprint("csr ", i)))
		must(t, err)
		must(t, other.Freeze(ctx, "uid 0", "local", one))
		outcome := record.Outcome{File: []byte("request"), Operation: fmt.Sprint("id ", i)}
		frozen(t, one.Scope, l.Conclude(ctx, &permit, outcome))
		if err := l.Conclude(ctx, &permit, outcome); fault.KindOf(err) != fault.Conflict {
			t.Errorf("%s: concluded twice: %v", one.Scope, err)
		}
		r, err := l.Request(ctx, mustID(t, permit.Request))
		if err != nil || r.State != record.KindRefused || r.File != nil {
			t.Errorf("%s: %+v, %v", one.Scope, r, err)
		}
		must(t, other.Unfreeze(ctx, "uid 0", "local", one))
	}
	// A failure of the key is a failure.
	permit, err := l.Authorize(ctx, frozenUse("acme", "csr 9"))
	must(t, err)
	must(t, other.Freeze(ctx, "uid 0", "local", scopes[0]))
	must(t, l.Conclude(ctx, &permit, record.Outcome{Err: fault.Unavailable.Errorf("down")}))
	used, err := l.Signings(ctx, began, began)
	must(t, err)
	for i, s := range used {
		if want := i < len(scopes); s.Signed() != want || want && (s.Kind != record.KindRefused || s.Rule != "ledger.frozen" || s.Operation != fmt.Sprint("id ", i)) {
			t.Errorf("%+v", s)
		}
	}
	if len(used) != len(scopes)+1 {
		t.Errorf("%d uses of the key", len(used))
	}
	verified(t, l)
	must(t, other.Unfreeze(ctx, "uid 0", "local", scopes[0]))
	issue(t, l, frozenUse("acme", "csr 0")) // signed again: nothing was released
	verified(t, l)
}

// testFrozenRelease: a request that waits for cosignatures is not released if it is frozen meanwhile.
func testFrozenRelease(t *testing.T, f *fixture) {
	ctx, other := t.Context(), f.another(t) // which publishes to nobody
	w := f.witnesses(t, 1)[0]
	f.cfg.Required = 1
	l := f.open(t)
	w.Answer(w.Late(300 * time.Millisecond))
	permit, err := l.Authorize(ctx, frozenUse("acme", "csr 1"))
	must(t, err)
	must(t, l.Conclude(ctx, &permit, record.Outcome{File: []byte("request for csr 1")}))
	released := make(chan error, 1)
	go func() { released <- l.Release(ctx, permit) }()
	select {
	case err := <-released:
		t.Fatalf("it did not wait: %v", err)
	case <-time.After(30 * time.Millisecond):
	}
	must(t, other.Freeze(ctx, "uid 0", "local", scopes[2]))
	frozen(t, "a request that waited", <-released)
	_, err = l.Authorize(ctx, frozenUse("acme", "csr 1"))
	frozen(t, "the stored request", err)
	must(t, other.Unfreeze(ctx, "uid 0", "local", scopes[2]))
	if again := issue(t, l, frozenUse("acme", "csr 1")); again.Request != permit.Request || again.Stored == nil {
		t.Errorf("after the freeze: %+v", again)
	}
	verified(t, l)
}

// testFrozenCustomer: a freeze of a customer is about its id. A new name does not end it, nor does an erasure.
func testFrozenCustomer(t *testing.T, f *fixture) {
	f.cfg.LastCheckpoint = t.TempDir() + "/last"
	ctx, l := t.Context(), f.open(t)
	issue(t, l, frozenUse("acme", "csr 1"))
	issue(t, l, frozenUse("bolt", "csr 2"))
	must(t, l.Freeze(ctx, "uid 0", "local", scopes[2]))
	rename := func(from, to string) {
		must(t, l.EditCustomer(ctx, "uid 0", "local", from, func(c ledger.Customer) ledger.Customer { c.Name = to; return c }))
	}
	rename("acme", "acme-eu")
	rename("bolt", "acme")
	u := frozenUse("acme-eu", "csr 1")
	u.SPKI = []byte("key of acme")
	_, err := l.Authorize(ctx, u)
	frozen(t, "after a rename", err)
	u = frozenUse("acme", "csr 2")
	u.SPKI = []byte("key of bolt")
	issue(t, l, u) // the name of the freeze is that of another customer now
	if now, err := l.Freezes(ctx); err != nil || len(now) != 1 || now[0].Name != "acme-eu" {
		t.Errorf("%+v, %v", now, err)
	}
	if err := l.EraseCustomer(ctx, "uid 0", "local", "acme-eu"); fault.KindOf(err) != fault.Conflict || !strings.Contains(fault.Hint(err), "unfreeze") {
		t.Errorf("erased: %v", err)
	}
	if ids, err := ledger.Erasures(f.cfg.LastCheckpoint); err != nil || len(ids) != 0 {
		t.Errorf("erasures %v, %v", ids, err)
	}
	must(t, l.Freeze(ctx, "uid 0", "local", scopes[1])) // which must remain
	customers, err := l.Customers(ctx, "acme-eu")
	must(t, err)
	if n, err := l.EraseAgain(ctx, "uid 0", "local", []record.ID{customers[0].ID}); err != nil || n != 1 { // as in an older copy
		t.Errorf("erased again: %d, %v", n, err)
	}
	if got := kinds(t, l); !strings.HasSuffix(got, " frozen unfrozen erased") {
		t.Errorf("entries %s", got)
	}
	if now, err := l.Freezes(ctx); err != nil || len(now) != 1 || now[0].Scope != ledger.FreezeCaller {
		t.Errorf("%+v, %v", now, err)
	}
	verified(t, l)
	var n int
	must(t, f.cfg.Store.DB.QueryRowContext(ctx, "SELECT count(*) FROM openings o JOIN entries e ON e.idx = o.entry WHERE o.name <> 'freezes' AND e.customer NOT IN (SELECT id FROM customers) AND e.kind IN ('frozen', 'unfrozen', 'erased') AND e.idx NOT IN (SELECT max(idx) FROM entries WHERE kind = 'frozen')").Scan(&n))
	if n != 0 {
		t.Errorf("%d rows about the erased customer remain", n)
	}
	// A new process reads what is frozen from an entry about the customer that was erased.
	_, err = f.another(t).Authorize(ctx, frozenUse("coil", "csr 3"))
	frozen(t, "the caller, in a new process", err)
}

// testFrozenMost: many callers freeze at once, and at most 256 freezes are in force.
func testFrozenMost(t *testing.T, f *fixture) {
	ctx, l := t.Context(), f.open(t)
	one := func(n int) ledger.Freeze {
		return ledger.Freeze{Scope: ledger.FreezeCaller, Name: fmt.Sprint("caller ", n), Reason: "x"}
	}
	var all sync.WaitGroup
	for n := range 256 {
		all.Go(func() {
			if err := l.Freeze(ctx, "uid 0", "local", one(n)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if err := l.Freeze(ctx, "uid 0", "local", one(256)); fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), "256 freezes are in force") {
		t.Errorf("one more: %v", err)
	}
	must(t, l.Unfreeze(ctx, "uid 0", "local", one(128)))
	must(t, l.Freeze(ctx, "uid 0", "local", one(256)))
	if now, err := f.another(t).Freezes(ctx); err != nil || len(now) != 256 {
		t.Errorf("%d freezes, %v", len(now), err)
	}
	verified(t, l)
}

// testFrozenContinued: a ledger that continues another one repeats what is frozen, and nothing else.
func testFrozenContinued(t *testing.T, f *fixture) {
	ctx, l := t.Context(), f.open(t)
	issue(t, l, frozenUse("acme", "csr 1"))
	issue(t, l, use("bolt", "csr 2", "key of bolt", "vendor"))
	for _, one := range scopes {
		must(t, l.Freeze(ctx, "uid 0", "local", one))
	}
	must(t, l.Freeze(ctx, "uid 0", "local", ledger.Freeze{Scope: ledger.FreezeCustomer, Name: "bolt", Reason: "x"}))
	must(t, l.Unfreeze(ctx, "uid 0", "local", scopes[0]))
	must(t, l.Unfreeze(ctx, "uid 0", "local", scopes[3]))
	before, err := l.Freezes(ctx)
	must(t, err)
	bolt, err := l.Customers(ctx, "bolt")
	must(t, err)
	f.pass(time.Hour)
	s := f.next(t, ledger.Continuation{Erased: []record.ID{bolt[0].ID}})
	verified(t, s.Ledger)
	if got := kinds(t, s.Ledger); got != "genesis customer issued frozen frozen" {
		t.Errorf("entries %s", got)
	}
	after, err := s.Freezes(ctx)
	must(t, err)
	if len(after) != 2 || len(before) != 3 {
		t.Fatalf("%+v, before %+v", after, before)
	}
	for i, one := range after {
		if want := before[i]; one.Scope != want.Scope || one.Name != want.Name || one.Reason != want.Reason || !one.Since.Equal(want.Since) || one.Actor != want.Actor {
			t.Errorf("%+v, before %+v", one, want)
		}
	}
	_, err = s.Authorize(ctx, frozenUse("acme", "csr 1"))
	frozen(t, "in the new ledger", err)
	must(t, s.Unfreeze(ctx, "uid 0", "local", scopes[1]))
	must(t, s.Unfreeze(ctx, "uid 0", "local", scopes[2]))
	if again := issue(t, s.Ledger, frozenUse("acme", "csr 1")); again.Stored == nil {
		t.Errorf("after the freeze: %+v", again)
	}
	verified(t, s.Ledger)
}
