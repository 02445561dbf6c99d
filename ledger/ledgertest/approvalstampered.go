package ledgertest

import (
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
)

// testApprovalsTampered: rows that somebody wrote into the store approve nothing.
func testApprovalsTampered(t *testing.T, f *fixture) {
	ctx, l := t.Context(), f.open(t)
	first := asks("acme", "csr 0", "key 0")
	first.Ask = nil
	issue(t, l, first)
	u := asks("bolt", "csr 1", "key 1")
	w := waits(t, l, u)
	db := func(query string, args ...any) {
		t.Helper()
		f.exec(t, query, args...)
	}
	tampered := func(what string, u record.Use) {
		t.Helper()
		if _, err := l.Authorize(ctx, u); !errors.Is(err, ledger.ErrTampered) {
			t.Errorf("%s: %v", what, err)
		}
		report, err := l.Verify(ctx, nil)
		must(t, err)
		if len(report.Defects) == 0 {
			t.Errorf("%s: verify notices nothing", what)
		}
	}
	// An approved row, with and without an entry that is about something else.
	db("UPDATE requests SET state = 'approved' WHERE id = ?", w.ID[:])
	tampered("a request that is approved in the list of requests", u)
	db("UPDATE requests SET state = 'pending' WHERE id = ?", w.ID[:])
	for _, entry := range []int64{0, 2, 3, 99} {
		db("INSERT INTO approvals (request, entry) VALUES (?, ?)", w.ID[:], entry)
		tampered(fmt.Sprintf("the entry %d as an approval", entry), u)
		db("DELETE FROM approvals WHERE request = ? AND entry = ?", w.ID[:], entry)
	}
	// A key of the customer that it does not have, so that no approval would be needed.
	key := record.SHA256(u.SPKI)
	var bolt []byte
	must(t, f.cfg.Store.DB.QueryRowContext(ctx, "SELECT id FROM customers WHERE name = 'bolt'").Scan(&bolt))
	for _, entry := range []int64{2, 5} { // the intent for acme; the question itself
		db("INSERT INTO keys (spki, customer, entry) VALUES (?, ?, ?)", key[:], bolt, entry)
		tampered("a key that the customer does not have", asks("bolt", "csr 2", "key 1"))
		db("DELETE FROM keys WHERE spki = ?", key[:])
	}
	// A swapped CSR.
	var salt, data []byte
	must(t, f.cfg.Store.DB.QueryRowContext(ctx, "SELECT salt, data FROM openings WHERE entry = 5 AND name = 'csr'").Scan(&salt, &data))
	db("UPDATE openings SET data = ? WHERE entry = 5 AND name = 'csr'", []byte("csr 0"))
	if _, err := l.Request(ctx, w.ID); !errors.Is(err, ledger.ErrTampered) {
		t.Errorf("a swapped CSR: %v", err)
	}
	db("UPDATE openings SET data = ? WHERE entry = 5 AND name = 'csr'", data)
	testApprovalTampered(t, f, l, w, u, db)
}

// testApprovalTampered changes what an approval says, and the time of a question.
func testApprovalTampered(t *testing.T, f *fixture, l *ledger.Ledger, w *record.Waiting, u record.Use, db func(query string, args ...any)) {
	ctx := t.Context()
	must(t, l.Decide(ctx, approval(w.ID, u, "bo")))
	said, err := json.Marshal(record.Decided{Person: "cy", Credential: "certificate of cy"})
	must(t, err)
	var data []byte
	must(t, f.cfg.Store.DB.QueryRowContext(ctx, "SELECT data FROM openings WHERE entry = 6 AND name = 'decided'").Scan(&data))
	db("UPDATE openings SET data = ? WHERE entry = 6 AND name = 'decided'", said)
	if _, err := l.Authorize(ctx, u); !errors.Is(err, ledger.ErrTampered) {
		t.Errorf("another person as the approver: %v", err)
	}
	db("UPDATE openings SET data = ? WHERE entry = 6 AND name = 'decided'", data)
	// A copy of the approval as a second one.
	if _, err := f.cfg.Store.DB.ExecContext(ctx, "INSERT INTO approvals (request, entry) SELECT request, entry FROM approvals WHERE entry = 6"); err == nil {
		t.Error("the same approval twice in the list")
	}
	f.pass(2 * time.Hour)
	db("UPDATE requests SET until = 99999999999999 WHERE id = ?", w.ID[:])
	must(t, ignoreWaiting(l.Decide(ctx, approval(w.ID, u, "cy")), fault.Conflict))
	if report, err := l.Verify(ctx, nil); err != nil || len(report.Defects) == 0 {
		t.Errorf("verify notices no longer time: %v", err)
	}
	if got := waits(t, l, u); got.ID == w.ID {
		t.Error("a question that expired is alive")
	}
}

// ignoreWaiting returns nil for an error of a kind, which is what is wanted.
func ignoreWaiting(err error, want fault.Kind) error {
	if fault.KindOf(err) == want {
		return nil
	}
	return fmt.Errorf("got %w; want an error of kind %v", err, want)
}
