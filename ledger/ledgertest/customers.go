package ledgertest

import (
	"strings"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
)

// testErased: after an erasure nothing of the customer is in the store but random ids and hashes, and the ledger is whole.
func testErased(t *testing.T, f *fixture) {
	ctx, l := t.Context(), f.open(t)
	must(t, l.AddCustomer(ctx, "uid 1000", "local", ledger.Customer{Name: "acme", Contact: "it@acme.example"}))
	issue(t, l, use("acme", "the CSR of acme", "key 1", "vendor"))
	must(t, l.Attach(ctx, "uid 1000", "local", "acme", ledger.Push{Topic: "com.apple.mgmt.External.acme", NotAfter: f.cfg.Now(), SPKI: "cd"}))
	issue(t, l, use("bolt", "csr 2", "key 2", "vendor"))
	if err := l.EraseCustomer(ctx, "uid 1000", "local", "coil"); fault.KindOf(err) != fault.NotFound {
		t.Errorf("an unknown customer: %v", err)
	}
	must(t, l.EraseCustomer(ctx, "uid 1000", "local", "acme"))
	if got := kinds(t, l); !strings.HasSuffix(got, " erased") {
		t.Errorf("entries %s", got)
	}
	for _, query := range []string{
		"SELECT count(*) FROM customers WHERE name = 'acme'", "SELECT count(*) FROM pushes",
		"SELECT count(*) FROM requests r WHERE NOT EXISTS (SELECT 1 FROM customers c WHERE c.id = r.customer)",
		"SELECT count(*) FROM openings o JOIN entries e ON e.idx = o.entry WHERE e.customer NOT IN (SELECT id FROM customers)",
	} {
		var n int
		must(t, f.cfg.Store.DB.QueryRowContext(ctx, query).Scan(&n))
		if n != 0 {
			t.Errorf("%s: %d", query, n)
		}
	}
	verified(t, l)
	// The customer may come back, with its key.
	issue(t, l, use("acme", "the CSR of acme", "key 1", "vendor"))
	verified(t, l)
}

// Daily does what the role of a running program must be allowed to do.
func Daily(t *testing.T, l *ledger.Ledger) {
	t.Helper()
	issue(t, l, use("acme", "csr 1", "key 1", "vendor 1"))
	issue(t, l, use("acme", "csr 1", "key 1", "vendor 1"))
	issue(t, l, use("acme", "csr 1", "key 1", "vendor 2"))
	for range 2 {
		if _, err := l.Authorize(t.Context(), use("bolt", "csr 1", "key 1", "vendor 1")); fault.KindOf(err) != fault.Conflict {
			t.Errorf("the key of another customer: %v", err)
		}
	}
	must(t, l.AddCustomer(t.Context(), "uid 1000", "local", ledger.Customer{Name: "bolt"}))
	must(t, l.EditCustomer(t.Context(), "uid 1000", "local", "bolt", func(c ledger.Customer) ledger.Customer {
		c.Contact = "it@bolt.example"
		return c
	}))
	for n := range 2 {
		must(t, l.Attach(t.Context(), "uid 1000", "local", "acme", ledger.Push{Topic: "com.apple.mgmt.x", NotAfter: time.Now().AddDate(n, 0, 0).UTC(), SPKI: "x"}))
	}
	must(t, l.Reassign(t.Context(), "uid 1000", "local", record.SHA256([]byte("key 1")), "acme", "bolt"))
	must(t, l.Watch(t.Context(), "uid 1000", "local", "mdm.example:443"))
	must(t, l.Unwatch(t.Context(), "uid 1000", "local", "mdm.example:443"))
	must(t, l.Freeze(t.Context(), "uid 1000", "local", ledger.Freeze{Scope: ledger.FreezeCustomer, Name: "acme", Reason: "x"}))
	must(t, l.Unfreeze(t.Context(), "uid 1000", "local", ledger.Freeze{Scope: ledger.FreezeCustomer, Name: "acme", Reason: "x"}))
	for range 2 {
		must(t, l.StartPolicy(t.Context(), "uid 1000", "local", "host-1", record.SHA256([]byte("the policy"))))
		must(t, l.Seen(t.Context(), "host-1"))
	}
	if all, err := l.Replicas(t.Context()); err != nil || len(all) != 1 {
		t.Errorf("replicas %+v, %v", all, err)
	}
	l.Use("token a")
	eventually(t, "the use is written", func() bool {
		all, err := l.Uses(t.Context())
		return err == nil && len(all) == 1
	})
	post(t, l, ledger.MessageMDMCert, record.ID{}, "x")
	about := post(t, l, ledger.MessagePending, record.ID{}, "")
	must(t, l.Hasten(t.Context(), about))
	for m := take(t, l); m != nil; m = take(t, l) {
		must(t, l.Delivered(t.Context(), m.ID, "webhook"))
		must(t, l.Retry(t.Context(), m.ID, time.Hour))
		must(t, l.Sent(t.Context(), m.ID))
	}
	if _, err := l.Sweep(t.Context()); err != nil {
		t.Errorf("outbox: %v", err)
	}
	if stored, err := l.Check(t.Context(), use("acme", "csr 9", "key 9", "vendor 1")); err != nil || stored {
		t.Errorf("check: %v, %v", stored, err)
	}
	if all, err := l.Requests(t.Context(), ledger.Query{Limit: 10}); err != nil || len(all) < 2 {
		t.Errorf("requests %+v, %v", all, err)
	}
	verified(t, l)
}
