package ledgertest

import (
	"errors"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
)

// testUnfreezeApproved: a second person must approve that a freeze ends.
func testUnfreezeApproved(t *testing.T, f *fixture) {
	ctx, l := t.Context(), f.open(t)
	issue(t, l, use("acme", "csr 0", "key 0", "vendor"))
	for _, about := range []ledger.Freeze{{Scope: ledger.FreezeAll, Reason: "x"}, {Scope: ledger.FreezeCustomer, Name: "acme", Reason: "x"}} {
		must(t, l.Freeze(ctx, "ada", "tls", about))
		end := about
		end.Ask = &record.Ask{Need: map[string]int{record.EventUnfreeze: 1}, Expiry: time.Hour, Approvers: people{}, Requester: record.Requester{Caller: "ada", Person: "ada"}}
		err := l.Unfreeze(ctx, "ada", "tls", end)
		w, ok := errors.AsType[*record.Waiting](err)
		if !ok {
			t.Fatalf("the end of a freeze: %v", err)
		}
		again, ok := errors.AsType[*record.Waiting](l.Unfreeze(ctx, "ada", "tls", end))
		if !ok || again.ID != w.ID {
			t.Errorf("asked again: %v", again)
		}
		if frozen, err := l.Freezes(ctx); err != nil || len(frozen) != 1 {
			t.Errorf("before it was approved: %+v, %v", frozen, err)
		}
		found, err := l.Request(ctx, w.ID)
		must(t, err)
		if found.Approval == nil || found.Approval.Freeze != (record.Freeze{Scope: about.Scope, Name: about.Name, Reason: "x"}) || found.State != record.KindPending {
			t.Errorf("the question: %+v", found)
		}
		if list, err := l.Requests(ctx, ledger.Query{Limit: 10}); err != nil || len(list) != 1 {
			t.Errorf("it is in the list of requests: %+v, %v", list, err)
		}
		d := record.Decision{Request: w.ID, Approve: true, Actor: "bo", Person: "bo", Channel: "tls", Approvers: people{}, Allowed: func(record.Asked, string) error { return nil }}
		if err := l.Decide(ctx, d); fault.KindOf(err) != fault.Conflict {
			t.Errorf("without what was shown: %v", err)
		}
		d.Shown = record.Shown{Customer: about.Customer(), Scope: about.Scope, Name: about.Name}
		must(t, l.Decide(ctx, d))
		if frozen, err := l.Freezes(ctx); err != nil || len(frozen) != 0 {
			t.Errorf("after it was approved: %+v, %v", frozen, err)
		}
		if found, err := l.Request(ctx, w.ID); err != nil || found.State != record.KindUnfrozen {
			t.Errorf("afterwards: %+v, %v", found, err)
		}
		if err := l.Unfreeze(ctx, "ada", "tls", end); fault.KindOf(err) != fault.NotFound {
			t.Errorf("what is not frozen: %v", err)
		}
	}
	verified(t, l)
}

// testUnfreezeAsked: each caller asks for the end of each freeze by itself, and again after a rejection; it ends with the last
// approval only.
func testUnfreezeAsked(t *testing.T, f *fixture) {
	ctx, l := t.Context(), f.open(t)
	issue(t, l, use("acme", "csr 0", "key 0", "vendor"))
	everything, customer := ledger.Freeze{Scope: ledger.FreezeAll, Reason: "x"}, ledger.Freeze{Scope: ledger.FreezeCaller, Name: "portal", Reason: "x"}
	must(t, l.Freeze(ctx, "ada", "tls", everything))
	must(t, l.Freeze(ctx, "ada", "tls", customer))
	must(t, l.Freeze(ctx, "ada", "tls", ledger.Freeze{Scope: ledger.FreezeCaller, Name: "backend", Reason: "x"}))
	ask := func(actor string, about ledger.Freeze) record.ID {
		t.Helper()
		about.Ask = &record.Ask{Need: map[string]int{record.EventUnfreeze: 2}, Expiry: time.Hour, Approvers: people{}, Requester: record.Requester{Caller: actor, Person: actor}}
		w, ok := errors.AsType[*record.Waiting](l.Unfreeze(ctx, actor, "tls", about))
		if !ok {
			t.Fatalf("the end of a freeze is not asked for")
		}
		return w.ID
	}
	first := ask("ada", everything)
	other := customer
	other.Name = "backend"
	seen := map[record.ID]bool{first: true}
	for what, id := range map[string]record.ID{"another caller": ask("ed", everything), "another scope": ask("ada", customer), "another name": ask("ada", other)} {
		if seen[id] {
			t.Errorf("%s: the same question", what)
		}
		seen[id] = true
	}
	d := record.Decision{Request: first, Actor: "bo", Person: "bo", Channel: "tls", Reason: "a test", Approvers: people{}, Shown: record.Shown{Scope: ledger.FreezeAll}, Allowed: func(record.Asked, string) error { return nil }}
	must(t, l.Decide(ctx, d))
	second := ask("ada", everything)
	if seen[second] {
		t.Error("a question that was rejected waits again")
	}
	d.Request, d.Approve = second, true
	must(t, l.Decide(ctx, d))
	if frozen, err := l.Freezes(ctx); err != nil || len(frozen) != 3 {
		t.Errorf("after one approval of two: %+v, %v", frozen, err)
	}
	d.Actor, d.Person = "cy", "cy"
	must(t, l.Decide(ctx, d))
	if frozen, err := l.Freezes(ctx); err != nil || len(frozen) != 2 {
		t.Errorf("after the last one: %+v, %v", frozen, err)
	}
	verified(t, l)
	f.exec(t, "DELETE FROM approvals")
	other.Ask = &record.Ask{Need: map[string]int{record.EventUnfreeze: 1}, Expiry: time.Hour, Approvers: people{}}
	if err := l.Unfreeze(ctx, "ada", "tls", other); !errors.Is(err, ledger.ErrTampered) {
		t.Errorf("the questions are missing in the list of approvals: %v", err)
	}
}

// testUnfreezeEnded: a freeze that ended meanwhile cannot be ended by an approval, which is not recorded.
func testUnfreezeEnded(t *testing.T, f *fixture) {
	ctx, l := t.Context(), f.open(t)
	all := ledger.Freeze{Scope: ledger.FreezeAll, Reason: "x"}
	must(t, l.Freeze(ctx, "ada", "tls", all))
	end := all
	end.Ask = &record.Ask{Need: map[string]int{record.EventUnfreeze: 1}, Expiry: time.Hour, Approvers: people{}, Requester: record.Requester{Caller: "ada", Person: "ada"}}
	w, ok := errors.AsType[*record.Waiting](l.Unfreeze(ctx, "ada", "tls", end))
	if !ok {
		t.Fatal("the end of the freeze needs no approval")
	}
	must(t, l.Unfreeze(ctx, "uid 0", "local", all))
	d := approval(w.ID, record.Use{}, "bo")
	d.Shown = record.Shown{Scope: ledger.FreezeAll}
	if err := l.Decide(ctx, d); fault.KindOf(err) != fault.NotFound {
		t.Errorf("an approval of what is not frozen: %v", err)
	}
	if got, want := kinds(t, l), "genesis frozen pending unfrozen"; got != want {
		t.Errorf("entries %s; want %s", got, want)
	}
	verified(t, l)
}
