package ledgertest

import (
	"strings"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/ledger"
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

// testDue: what expires, what was not redeemed, and what must not be attached.
func testDue(t *testing.T, f *fixture) {
	ctx, l := t.Context(), f.open(t)
	now := f.cfg.Now()
	due := func() string {
		list, err := l.Due(ctx, now.AddDate(0, 0, 30))
		must(t, err)
		var all []string
		for _, d := range list {
			all = append(all, d.What+" of "+d.Customer.Name)
		}
		return strings.Join(all, ", ")
	}
	must(t, l.AddCustomer(ctx, "uid 1000", "local", ledger.Customer{Name: "bolt", Account: "mdm@bolt.example"}))
	issue(t, l, use("acme", "csr 1", "key 1", "vendor"))
	if got := due(); got != "request of acme" {
		t.Errorf("after an issue: %s", got)
	}
	attach := func(customer, topic string, days int) error {
		return l.Attach(ctx, "uid 1000", "local", customer, ledger.Push{Topic: topic, NotAfter: now.AddDate(0, 0, days), SHA256: "ab", SPKI: "cd"})
	}
	must(t, attach("acme", "com.apple.mgmt.External.1", 365))
	must(t, attach("bolt", "com.apple.mgmt.External.2", 20))
	if got := due(); got != "push certificate of bolt" {
		t.Errorf("after the push certificates: %s", got)
	}
	if err := attach("bolt", "com.apple.mgmt.External.3", 365); fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), "enroll again") {
		t.Errorf("another topic: %v", err)
	}
	if err := attach("bolt", "com.apple.mgmt.External.2", 10); fault.KindOf(err) != fault.Conflict {
		t.Errorf("an older certificate: %v", err)
	}
	if err := attach("coil", "com.apple.mgmt.External.4", 365); fault.KindOf(err) != fault.NotFound {
		t.Errorf("an unknown customer: %v", err)
	}
	must(t, attach("bolt", "com.apple.mgmt.External.2", 365))
	if got := due(); got != "" {
		t.Errorf("after the renewal: %s", got)
	}
	verified(t, l)
	f.exec(t, "UPDATE pushes SET expires = expires + 1")
	report, err := l.Verify(ctx, nil)
	must(t, err)
	if len(report.Defects) != 2 {
		t.Errorf("changed dates: %+v", report.Defects)
	}
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
	verified(t, l)
}
