package ledgertest

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
)

// people is a policy under which the approvals of each person count once, but for those of the persons that are gone.
type people struct{ gone []string }

func (p people) Count(_ record.Asked, _ string, given []record.Approval, need int) (have int, enough bool) {
	persons := map[string]bool{}
	for _, one := range given {
		if !slices.Contains(p.gone, one.Person) {
			persons[one.Person] = true
		}
	}
	return len(persons), len(persons) >= need
}

// asks returns a use that other people must approve: that of a new customer two, that of a new key one.
func asks(customer, csr, key string) record.Use {
	u := use(customer, csr, key, "vendor")
	u.Actor, u.Credential, u.Policy, u.PerDay = "backend", "token abcd2345", record.SHA256([]byte("the policy")), 100
	u.Ask = &record.Ask{
		Need: map[string]int{record.EventNewCustomer: 2, record.EventNewKey: 1}, Expiry: time.Hour, Approvers: people{},
		Requester: record.Requester{Caller: "backend", Credential: u.Credential, Owners: []string{"ada"}},
	}
	return u
}

// waits returns what a use waits for.
func waits(t *testing.T, l *ledger.Ledger, u record.Use) *record.Waiting {
	t.Helper()
	_, err := l.Authorize(t.Context(), u)
	waiting, ok := errors.AsType[*record.Waiting](err)
	if !ok || fault.KindOf(err) != fault.Pending {
		t.Fatalf("a use that others must approve: %v", err)
	}
	return waiting
}

// approval is a decision of a person about a use.
func approval(id record.ID, u record.Use, person string) record.Decision {
	return record.Decision{
		Request: id, Approve: true, Shown: record.Shown{Customer: u.Customer, CSR: record.SHA256(u.CSR), Vendor: u.Identity},
		Actor: person, Channel: "tls", Credential: "certificate of " + person, Person: person, Approvers: people{},
		Allowed: func(record.Asked, string) error { return nil },
	}
}

// testApprovals: who asks first waits, and the same use is authorized when enough people have approved it.
func testApprovals(t *testing.T, f *fixture) {
	ctx, l := t.Context(), f.open(t)
	first := asks("acme", "csr 1", "key 1")
	w := waits(t, l, first)
	if again := waits(t, l, first); again.ID != w.ID || again.Need != 2 || again.Have != 0 || !again.Until.Equal(f.time.Add(time.Hour)) {
		t.Errorf("asked again: %+v", again)
	}
	must(t, l.Decide(ctx, approval(w.ID, first, "bo")))
	if err := l.Decide(ctx, approval(w.ID, first, "bo")); fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), "bo has approved it already") {
		t.Errorf("approved twice by one person: %v", err)
	}
	if one := waits(t, l, first); one.ID != w.ID || one.Have != 1 {
		t.Errorf("after one approval of two: %+v", one)
	}
	found, err := l.Request(ctx, w.ID)
	must(t, err)
	if a := found.Approval; found.State != record.KindApproved || a == nil || a.Event != record.EventNewCustomer || a.Need != 2 || len(a.Given) != 1 || a.Given[0].Person != "bo" ||
		a.Given[0].Caller != "bo" || found.Customer != "acme" || found.Actor != "backend" || string(found.CSRDER) != "csr 1" || a.Owners[0] != "ada" || a.Channel != "local" {
		t.Errorf("the request: %+v, %+v", found, found.Approval)
	}
	must(t, l.Decide(ctx, approval(w.ID, first, "cy")))
	if permit := issue(t, l, first); permit.Request != w.ID.String() {
		t.Errorf("issued as %s; it was asked for as %s", permit.Request, w.ID)
	}
	if err := l.Decide(ctx, approval(w.ID, first, "di")); fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), "is issued already") {
		t.Errorf("approved after it was issued: %v", err)
	}
	if again := issue(t, l, first); again.Request != w.ID.String() || again.Stored == nil {
		t.Errorf("the same request: %+v", again)
	}
	issue(t, l, asks("acme", "csr 2", "key 1")) // the same key needs nobody
	second := asks("acme", "csr 3", "key 2")
	n := waits(t, l, second)
	if n.Need != 1 {
		t.Errorf("a new key: %+v", n)
	}
	must(t, l.Decide(ctx, approval(n.ID, second, "bo")))
	issue(t, l, second)
	const want = "genesis customer pending approved approved intent issued intent issued pending approved new-key intent issued"
	if got := kinds(t, l); got != want {
		t.Errorf("entries %s; want %s", got, want)
	}
	if used, err := l.Today(ctx, "backend"); err != nil || used != 3 {
		t.Errorf("%d requests today, %v; a request that waited counts once", used, err)
	}
	verified(t, l)
}

// testApprovalsEnd: what was rejected or has expired is not signed, and can be asked for again.
func testApprovalsEnd(t *testing.T, f *fixture) {
	ctx, l := t.Context(), f.open(t)
	u := asks("acme", "csr 1", "key 1")
	w := waits(t, l, u)
	backlog := func(requests int, oldest time.Duration) {
		t.Helper()
		if b, err := l.Questions(ctx); err != nil || b.Requests != requests || b.Oldest != oldest {
			t.Errorf("what waits: %+v, %v; want %d, the oldest for %v", b, err, requests, oldest)
		}
	}
	backlog(1, 0)
	no := approval(w.ID, u, "bo")
	no.Approve = false
	if err := l.Decide(ctx, no); fault.KindOf(err) != fault.Usage {
		t.Errorf("rejected without a reason: %v", err)
	}
	no.Reason = "not a customer of ours"
	must(t, l.Decide(ctx, no))
	backlog(0, 0)
	if found, err := l.Request(ctx, w.ID); err != nil || found.Approval.Rejected == nil || found.Approval.Rejected.Person != "bo" || found.Approval.Rejected.Reason != no.Reason {
		t.Errorf("who rejected it: %+v, %v", found, err)
	}
	if err := l.Decide(ctx, approval(w.ID, u, "cy")); fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), "is rejected already") {
		t.Errorf("approved after it was rejected: %v", err)
	}
	next := waits(t, l, u)
	if next.ID == w.ID {
		t.Error("a rejected request waits again")
	}
	must(t, l.Decide(ctx, approval(next.ID, u, "bo")))
	must(t, l.Decide(ctx, approval(next.ID, u, "cy")))
	f.pass(time.Hour - time.Second)
	backlog(1, time.Hour-time.Second)
	f.pass(time.Second)
	backlog(0, 0)
	if err := l.Decide(ctx, approval(next.ID, u, "di")); fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), "expired at 2026-06-01T13:00:00Z") {
		t.Errorf("approved after its time: %v", err)
	}
	if found, err := l.Request(ctx, next.ID); err != nil || found.State != record.KindExpired {
		t.Errorf("after its time: %+v, %v", found, err)
	}
	if list, _, err := l.Pending(ctx, 0, 10, func(*ledger.RequestRecord) bool { return true }); err != nil || len(list) != 0 {
		t.Errorf("what waits after its time: %+v, %v", list, err)
	}
	third := waits(t, l, u) // and the entry about the expiry
	if third.ID == next.ID {
		t.Error("an expired approval counts")
	}
	if err := l.Decide(ctx, approval(record.NewID(), u, "bo")); fault.KindOf(err) != fault.NotFound {
		t.Errorf("an unknown id: %v", err)
	}
	const want = "genesis customer pending rejected pending approved approved expired pending"
	if got := kinds(t, l); got != want {
		t.Errorf("entries %s; want %s", got, want)
	}
	must(t, l.Records(ctx, func(r record.Record) error {
		if e := r.Entry; e.Kind == record.KindExpired && (e.Actor != (record.ID{}) || e.Credential != (record.ID{}) || e.Policy != (record.Hash{}) || e.Channel != "") {
			t.Errorf("the entry about the expiry says that somebody did it: %+v", e)
		}
		return nil
	}))
	verified(t, l)
}

// testApprovalsBound: an approval is about what the approver was shown, and about nothing else.
func testApprovalsBound(t *testing.T, f *fixture) {
	ctx, l := t.Context(), f.open(t)
	u := asks("acme", "csr 1", "key 1")
	u.Identity = "2026"
	w := waits(t, l, u)
	other := asks("bolt", "csr 2", "key 2")
	other.Identity = "2026"
	_ = waits(t, l, other)
	for name, change := range map[string]func(d *record.Decision){
		"csr": func(d *record.Decision) { d.Shown.CSR = record.SHA256([]byte("csr 2")) }, "no csr": func(d *record.Decision) { d.Shown.CSR = record.Hash{} },
		"customer": func(d *record.Decision) { d.Shown.Customer = "bolt" }, "vendor": func(d *record.Decision) { d.Shown.Vendor = "2027" },
		"freeze": func(d *record.Decision) { d.Shown.Scope = ledger.FreezeAll },
	} {
		d := approval(w.ID, u, "bo")
		if change(&d); fault.KindOf(l.Decide(ctx, d)) != fault.Conflict {
			t.Errorf("an approver who was shown another %s", name)
		}
	}
	d := approval(w.ID, u, "bo")
	denied := fault.Forbidden.Errorf("bo may not")
	d.Allowed = func(asked record.Asked, customer string) error {
		if asked.Vendor != "2026" || customer != "acme" || asked.Caller != "backend" {
			t.Errorf("the rules are asked about %+v of %s", asked, customer)
		}
		return denied
	}
	if err := l.Decide(ctx, d); !errors.Is(err, denied) {
		t.Errorf("an approver who may not: %v", err)
	}
	must(t, l.Decide(ctx, approval(w.ID, u, "bo")))
	must(t, l.Decide(ctx, approval(w.ID, u, "cy")))
	for name, change := range map[string]func(u *record.Use){
		"csr": func(u *record.Use) { u.CSR = []byte("csr 9") }, "customer": func(u *record.Use) { u.Customer = "coil" },
		"vendor identity": func(u *record.Use) { u.Identity = "2027" }, "vendor certificate": func(u *record.Use) { u.Vendor = []byte("another") },
		"caller": func(u *record.Use) { u.Actor = "portal" }, "digest": func(u *record.Use) { u.Digest = "SHA-1" }, "chain": func(u *record.Use) { u.Chain = []byte("another chain") },
	} {
		changed := u
		change(&changed)
		if got := waits(t, l, changed); got.ID == w.ID || got.Have != 0 {
			t.Errorf("an approval is used with another %s", name)
		}
	}
	gone := u
	ask := *u.Ask
	ask.Approvers = people{gone: []string{"bo"}}
	gone.Ask = &ask
	if got := waits(t, l, gone); got.ID != w.ID || got.Have != 1 {
		t.Errorf("after an approver was removed: %+v", got)
	}
	issue(t, l, u)
	verified(t, l)
}

// testApprovalsElsewhere: another process issues what was approved, also after a failure of the key.
func testApprovalsElsewhere(t *testing.T, f *fixture) {
	ctx, l := t.Context(), f.open(t)
	u := asks("acme", "csr 1", "key 1")
	w := waits(t, l, u)
	must(t, l.Decide(ctx, approval(w.ID, u, "bo")))
	cfg := f.cfg
	cfg.Store = f.again(t)
	other, err := ledger.Open(ctx, cfg)
	must(t, err)
	defer func() { _ = other.Close() }() // nothing is left to write
	if list, next, err := other.Pending(ctx, 0, 10, func(*ledger.RequestRecord) bool { return true }); err != nil || len(list) != 1 || next != 0 || list[0].ID != w.ID || list[0].State != record.KindApproved {
		t.Errorf("what waits: %+v, %v", list, err)
	}
	var wait sync.WaitGroup
	results := make([]error, 2)
	for i, from := range []*ledger.Ledger{l, other} { // two people at the same moment
		wait.Go(func() { results[i] = from.Decide(ctx, approval(w.ID, u, []string{"cy", "di"}[i])) })
	}
	wait.Wait()
	must(t, errors.Join(results...))
	permit, err := other.Authorize(ctx, u)
	must(t, err)
	if during := waits(t, l, u); during.ID != w.ID || during.Have != 3 {
		t.Errorf("while another process signs: %+v", during)
	}
	must(t, other.Conclude(ctx, &permit, record.Outcome{Err: fault.Unavailable.Errorf("the key store does not answer")}))
	permit = issue(t, l, u)
	if permit.Request != w.ID.String() {
		t.Errorf("tried again as %s", permit.Request)
	}
	if found, err := other.Request(ctx, w.ID); err != nil || found.State != record.KindIssued || len(found.Approval.Given) != 3 || found.File == nil {
		t.Errorf("the request: %+v, %v", found, err)
	}
	signings, err := l.Signings(ctx, f.time.Add(-time.Hour), f.time.Add(time.Hour))
	if err != nil || len(signings) != 2 {
		t.Errorf("uses of the key: %+v, %v; want the failed and the issued one", signings, err)
	}
	verified(t, l)
}

// testApprovalsFrozen: a freeze stops what was approved, and an approver.
func testApprovalsFrozen(t *testing.T, f *fixture) {
	ctx, l := t.Context(), f.open(t)
	u := asks("acme", "csr 1", "key 1")
	w := waits(t, l, u)
	bo := ledger.Freeze{Scope: ledger.FreezeCaller, Name: "bo", Reason: "x"}
	must(t, l.Decide(ctx, approval(w.ID, u, "bo")))
	must(t, l.Decide(ctx, approval(w.ID, u, "cy")))
	must(t, l.Freeze(ctx, "uid 0", "local", bo))
	if got := waits(t, l, u); got.Have != 1 {
		t.Errorf("the approval of a frozen caller counts: %+v", got)
	}
	must(t, l.Unfreeze(ctx, "uid 0", "local", bo))
	must(t, l.Freeze(ctx, "uid 0", "local", ledger.Freeze{Scope: ledger.FreezeAll, Reason: "x"}))
	if _, err := l.Authorize(ctx, u); fault.KindOf(err) != fault.Forbidden {
		t.Errorf("while everything is frozen: %v", err)
	}
	must(t, l.Unfreeze(ctx, "uid 0", "local", ledger.Freeze{Scope: ledger.FreezeAll, Reason: "x"}))
	must(t, l.Freeze(ctx, "uid 0", "local", ledger.Freeze{Scope: ledger.FreezeCaller, Name: "di", Reason: "x"}))
	if err := l.Decide(ctx, approval(w.ID, u, "di")); fault.KindOf(err) != fault.Forbidden {
		t.Errorf("a frozen approver: %v", err)
	}
	issue(t, l, u)
	verified(t, l)
}

// testApprovalsErased: erasing a customer deletes what was asked about it; a new ledger does not repeat what waits.
func testApprovalsErased(t *testing.T, f *fixture) {
	ctx, l := t.Context(), f.open(t)
	u := asks("acme", "csr 1", "key 1")
	w := waits(t, l, u)
	must(t, l.Decide(ctx, approval(w.ID, u, "bo")))
	kept := asks("bolt", "csr 2", "key 2")
	_ = waits(t, l, kept)
	must(t, l.EraseCustomer(ctx, "uid 0", "local", "acme"))
	if _, err := l.Request(ctx, w.ID); fault.KindOf(err) != fault.NotFound {
		t.Errorf("a request of an erased customer: %v", err)
	}
	var left int
	must(t, f.cfg.Store.DB.QueryRowContext(ctx, "SELECT count(*) FROM approvals").Scan(&left))
	if left != 1 {
		t.Errorf("%d rows about approvals are left", left)
	}
	verified(t, l)
	s := f.next(t, ledger.Continuation{})
	if list, _, err := s.Pending(ctx, 0, 10, func(*ledger.RequestRecord) bool { return true }); err != nil || len(list) != 0 {
		t.Errorf("the next ledger has questions of the previous one: %+v, %v", list, err)
	}
	verified(t, s.Ledger)
}
