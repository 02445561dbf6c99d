package ledgertest

import (
	"errors"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
)

// testApprovalsMoved: whoever writes the database cannot use what was approved for something else, or what was rejected.
func testApprovalsMoved(t *testing.T, f *fixture) {
	ctx, l := t.Context(), f.open(t)
	known := asks("acme", "csr 0", "key 0")
	known.Ask = nil
	issue(t, l, known)
	approved, other := asks("bolt", "csr 1", "key 1"), asks("cram", "csr 2", "key 2")
	a, b := waits(t, l, approved), waits(t, l, other)
	for _, person := range []string{"bo", "cy"} {
		must(t, l.Decide(ctx, approval(a.ID, approved, person)))
	}
	id := func(customer string) (id []byte) {
		must(t, f.cfg.Store.DB.QueryRowContext(ctx, "SELECT id FROM customers WHERE name = '"+customer+"'").Scan(&id))
		return id
	}
	refused := func(what string, u record.Use) {
		t.Helper()
		_, err := l.Authorize(ctx, u)
		if w, waiting := errors.AsType[*record.Waiting](err); !errors.Is(err, ledger.ErrTampered) && (!waiting || w.ID == a.ID) {
			t.Errorf("%s: %v", what, err)
		}
		if report, err := l.Verify(ctx, nil); err != nil || len(report.Defects) == 0 {
			t.Errorf("%s: verify notices nothing: %v", what, err)
		}
	}
	// The approvals of one request as those of another.
	found, err := l.Request(ctx, a.ID)
	must(t, err)
	for _, given := range found.Approval.Given {
		f.exec(t, "INSERT INTO approvals (request, entry) VALUES (?, ?)", b.ID[:], given.Entry)
	}
	refused("the approvals of another request", other)
	for _, given := range found.Approval.Given {
		f.exec(t, "DELETE FROM approvals WHERE request = ? AND entry = ?", b.ID[:], given.Entry)
	}
	// The request that was approved, in the list, as one of another CSR and of another customer.
	csr, before := record.SHA256([]byte("csr 3")), record.SHA256(approved.CSR)
	f.exec(t, "UPDATE requests SET csr = ? WHERE id = ?", csr[:], a.ID[:])
	refused("another CSR", asks("bolt", "csr 3", "key 1"))
	f.exec(t, "UPDATE requests SET csr = ?, customer = ? WHERE id = ?", before[:], id("cram"), a.ID[:])
	refused("another customer", asks("cram", "csr 1", "key 1"))
	f.exec(t, "UPDATE requests SET customer = ? WHERE id = ?", id("bolt"), a.ID[:])
	testKeysMoved(t, f, refused, id)
	// A customer by the name of another one.
	var entry int64
	must(t, f.cfg.Store.DB.QueryRowContext(ctx, "SELECT entry FROM customers WHERE name = 'bolt'").Scan(&entry))
	f.exec(t, "UPDATE customers SET entry = (SELECT entry FROM customers WHERE name = 'acme') WHERE name = 'bolt'")
	if _, err := l.Request(ctx, a.ID); !errors.Is(err, ledger.ErrTampered) {
		t.Errorf("the approver is shown another customer: %v", err)
	}
	f.exec(t, "UPDATE customers SET entry = ? WHERE name = 'bolt'", entry)
	// It is rejected after it was approved, and the list says that it still waits.
	no := approval(a.ID, approved, "di")
	no.Approve, no.Reason = false, "a test"
	must(t, l.Decide(ctx, no))
	if list, _, err := l.Pending(ctx, 0, 10, func(r *ledger.RequestRecord) bool { return r.ID == b.ID }); err != nil || len(list) != 1 || list[0].ID != b.ID {
		t.Errorf("what waits, without what the caller may not see: %+v, %v", list, err)
	}
	f.exec(t, "UPDATE requests SET until = ? WHERE id = ?", f.time.Add(time.Hour).UnixMilli(), a.ID[:])
	refused("a request that was rejected", approved)
	if err := l.Decide(ctx, approval(a.ID, approved, "ed")); fault.KindOf(err) != fault.Conflict {
		t.Errorf("approved after it was rejected: %v", err)
	}
	f.exec(t, "UPDATE requests SET state = 'approved', entry = ? WHERE id = ?", found.Approval.Given[1].Entry, a.ID[:])
	if err := l.Decide(ctx, approval(a.ID, approved, "ed")); fault.KindOf(err) != fault.Conflict {
		t.Errorf("approved after it was rejected, which the list of requests hides: %v", err)
	}
	f.exec(t, "DELETE FROM approvals WHERE request = ?", b.ID[:])
	if err := l.Decide(ctx, approval(b.ID, other, "ed")); fault.KindOf(err) != fault.NotFound {
		t.Errorf("a question that is missing in the list of approvals: %v", err)
	}
}

// testKeysMoved: a key of another customer, and another key of the customer, in the list of keys.
func testKeysMoved(t *testing.T, f *fixture, refused func(what string, u record.Use), id func(customer string) []byte) {
	known, key := record.SHA256([]byte("key 0")), record.SHA256([]byte("key 9"))
	f.exec(t, "UPDATE keys SET customer = ? WHERE spki = ?", id("bolt"), known[:])
	refused("the key of another customer", asks("bolt", "csr 4", "key 0"))
	f.exec(t, "UPDATE keys SET customer = ? WHERE spki = ?", id("acme"), known[:])
	var entry int64
	must(t, f.cfg.Store.DB.QueryRowContext(t.Context(), "SELECT max(entry) FROM keys").Scan(&entry)) // of known
	f.exec(t, "INSERT INTO keys (spki, customer, entry) VALUES (?, ?, ?)", key[:], id("acme"), entry)
	refused("another key of the customer", asks("acme", "csr 5", "key 9"))
	f.exec(t, "DELETE FROM keys WHERE spki = ?", key[:])
}
