package ledgertest

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
)

// testOutboxQuestions: a question is one message, whoever asks how often, and none if nothing was recorded. An answer ends it, and makes
// the mail due that waits for the answer. Erasing the customer deletes it.
func testOutboxQuestions(t *testing.T, f *fixture) {
	ctx, l := t.Context(), f.open(t)
	waiting := func(what, want string) {
		t.Helper()
		all, err := l.Backlogs(ctx)
		must(t, err)
		if got := fmt.Sprint(all); got != "map["+want+"]" {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}
	use := asks("acme", "csr 1", "key 1")
	if _, err := l.Check(ctx, use); fault.KindOf(err) != fault.Pending {
		t.Errorf("a check: %v", err)
	}
	waiting("a check", "")
	w := waits(t, l, use)
	_ = waits(t, f.other(t), use)
	waiting("asked twice", "pending:{1 0s}")
	notice := take(t, l)
	if notice == nil || notice.Kind != ledger.MessagePending || notice.About != w.ID || notice.Customer == (record.ID{}) || notice.Payload != nil {
		t.Fatalf("%+v", notice)
	}
	must(t, l.Post(ctx, ledger.Message{Kind: ledger.MessageMDMCert, About: w.ID, Customer: notice.Customer, Payload: []byte("payload")}, 5))
	mail := take(t, l)
	must(t, l.Later(ctx, mail.ID, 15*time.Minute))
	must(t, l.Decide(ctx, approval(w.ID, use, "bo")))
	must(t, l.Decide(ctx, approval(w.ID, use, "cy")))
	waiting("approved and not issued", "mdmcert:{1 0s} pending:{1 0s}")
	if m := take(t, l); m != nil {
		t.Errorf("before it is issued: %+v", m)
	}
	issue(t, l, use)
	waiting("issued", "mdmcert:{1 0s}")
	if m := take(t, l); m == nil || m.ID != mail.ID || string(m.Payload) != "payload" {
		t.Fatalf("after it is issued: %+v", m)
	}
	must(t, l.Sent(ctx, mail.ID))
	issue(t, l, use) // the stored one
	issue(t, l, asks("acme", "csr 2", "key 1"))
	waiting("nobody is asked", "")

	rejected := asks("acme", "csr 3", "key 3")
	no := approval(waits(t, l, rejected).ID, rejected, "bo")
	no.Approve, no.Reason = false, "not a customer of ours"
	must(t, l.Decide(ctx, no))
	waiting("rejected", "")
	_ = waits(t, l, asks("acme", "csr 4", "key 4"))
	f.pass(2 * time.Hour)
	issue(t, l, use) // expired questions are closed by what is recorded next
	issue(t, l, asks("acme", "csr 5", "key 1"))
	waiting("expired", "")

	must(t, l.Freeze(ctx, "ada", "local", ledger.Freeze{Scope: ledger.FreezeAll, Reason: "a test"}))
	thaw := ledger.Freeze{Scope: ledger.FreezeAll, Reason: "a test", Ask: &record.Ask{
		Need: map[string]int{record.EventUnfreeze: 1}, Expiry: time.Hour, Approvers: people{}, Requester: record.Requester{Caller: "ada", Person: "ada"},
	}}
	unfreeze := func() record.ID {
		t.Helper()
		asked, ok := errors.AsType[*record.Waiting](l.Unfreeze(ctx, "ada", "local", thaw))
		if !ok {
			t.Fatal("the freeze ends without approval")
		}
		return asked.ID
	}
	id := unfreeze()
	if unfreeze() != id {
		t.Error("asked again under another id")
	}
	waiting("a freeze", "pending:{1 0s}")
	yes := approval(id, record.Use{}, "bo")
	yes.Shown = record.Shown{Scope: ledger.FreezeAll}
	must(t, l.Decide(ctx, yes))
	waiting("a freeze that has ended", "")

	_ = waits(t, l, asks("bolt", "csr 6", "key 6"))
	waiting("another customer", "pending:{1 0s}")
	must(t, l.EraseCustomer(ctx, "ada", "local", "bolt"))
	waiting("erased", "")
	f.empty(t)
	verified(t, l)
}
