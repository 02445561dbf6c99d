package ledgertest

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"hsmsign/fault"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
)

// testMovedOn: a ledger that was moved is moved again, and only the newest store is appended to.
func testMovedOn(t *testing.T, f *fixture) {
	ctx := t.Context()
	stores := []*ledger.Store{f.cfg.Store, f.fresh(t), f.fresh(t)}
	for i, to := range stores[1:] {
		l, err := ledger.Open(ctx, f.at(stores[i]))
		must(t, err)
		issue(t, l, use("acme", fmt.Sprint("csr ", i), "key", "vendor"))
		_, err = move(ctx, l, to, nil)
		must(t, err)
		must(t, l.Close())
	}
	for i, store := range stores {
		if f.appends(t, store) != (i == 2) {
			t.Errorf("appends to store %d", i)
		}
		l, err := ledger.Open(ctx, f.at(store))
		must(t, err)
		verified(t, l)
		must(t, l.Close())
	}
	l, err := ledger.Open(ctx, f.at(stores[2]))
	must(t, err)
	defer func() { must(t, l.Close()) }()
	for _, to := range stores { // the first two are older, the last is where it is
		if _, err := move(ctx, l, to, nil); fault.KindOf(err) != fault.Usage {
			t.Errorf("moved back: %v", err)
		}
	}
}

// testMovedRefused: what cannot be moved stays as it is.
func testMovedRefused(t *testing.T, f *fixture) {
	ctx := t.Context()
	l := f.open(t)
	issue(t, l, use("acme", "csr 1", "key 1", "vendor"))
	g := newFixture(t, f.fresh(t), nil)
	if _, err := move(ctx, l, g.cfg.Store, nil); fault.KindOf(err) != fault.Usage || !strings.Contains(err.Error(), "contains a ledger already") {
		t.Errorf("to a ledger: %v", err)
	}
	if _, err := move(ctx, l, f.cfg.Store, nil); fault.KindOf(err) != fault.Usage {
		t.Errorf("to itself: %v", err)
	}
	reader := f.cfg
	reader.Key = ""
	r, err := ledger.Open(ctx, reader)
	must(t, err)
	if _, err := move(ctx, r, f.fresh(t), nil); fault.KindOf(err) != fault.Usage || !strings.Contains(err.Error(), "open for reading") {
		t.Errorf("without the key: %v", err)
	}
	unfinished := f.fresh(t)
	stop := func(at string) func(string) error {
		return func(step string) error {
			if step == at {
				return errKilled
			}
			return nil
		}
	}
	if _, err := move(ctx, l, unfinished, stop(ledger.StepClose)); !errors.Is(err, errKilled) {
		t.Fatal(err)
	}
	if _, err := ledger.Open(ctx, f.at(unfinished)); !errors.Is(err, ledger.ErrStore) || !strings.Contains(err.Error(), "not complete") {
		t.Errorf("an unfinished copy opens: %v", err)
	}
	if _, err := ledger.Init(ctx, f.at(unfinished)); fault.KindOf(err) != fault.Usage {
		t.Errorf("a ledger made in an unfinished copy: %v", err)
	}
	other := g.open(t)
	issue(t, other, use("bolt", "csr 2", "key 2", "vendor"))
	issue(t, other, use("bolt", "csr 3", "key 2", "vendor"))
	if _, err := move(ctx, other, unfinished, nil); fault.KindOf(err) != fault.Usage || !strings.Contains(err.Error(), "not those of the ledger") {
		t.Errorf("an unfinished copy of another ledger: %v", err)
	}
	exec := func(query string) {
		t.Helper()
		_, err := unfinished.DB.ExecContext(ctx, query)
		must(t, err)
	}
	exec("UPDATE destination SET origin = 'example.com/other'")
	if _, err := move(ctx, l, unfinished, nil); fault.KindOf(err) != fault.Usage || !strings.Contains(err.Error(), "example.com/other") {
		t.Errorf("an unfinished copy of another origin: %v", err)
	}
	exec("UPDATE destination SET origin = 'example.com/ledger'")
	// A copy that is changed before it is complete is not used, and a damaged ledger is not closed.
	if _, err := move(ctx, l, unfinished, func(step string) error {
		if step == ledger.StepCompare {
			_, err := unfinished.DB.ExecContext(ctx, "UPDATE requests SET state = 'failed'")
			return err
		}
		return nil
	}); !errors.Is(err, ledger.ErrTampered) {
		t.Errorf("a copy that was changed: %v", err)
	}
	if f.appends(t, unfinished) {
		t.Error("appends to a copy that was changed")
	}
	g.exec(t, "INSERT INTO customers (id, name, entry) VALUES (?, 'nobody', 0)", make([]byte, 16))
	if _, err := move(ctx, other, f.fresh(t), nil); !errors.Is(err, ledger.ErrTampered) {
		t.Errorf("a damaged ledger: %v", err)
	}
	if !g.appends(t, g.cfg.Store) {
		t.Error("the damaged ledger was closed")
	}
}

// testMovedTampered: who changes where the ledger is, is found.
func testMovedTampered(t *testing.T, f *fixture) {
	ctx := t.Context()
	l := f.open(t)
	issue(t, l, use("acme", "csr 1", "key 1", "vendor"))
	to := f.fresh(t)
	f.cfg.Store.Free = func() (uint64, error) { return 1, nil } // a ledger can leave a full disk
	result, err := move(ctx, l, to, nil)
	must(t, err)
	f.cfg.Store.Free = nil
	if err := l.Here(ctx); !errors.Is(err, ledger.ErrMoved) {
		t.Fatal(err)
	}
	restore := f.snapshot(t)
	defects := func(l *ledger.Ledger) string {
		report, err := l.Verify(ctx, nil)
		must(t, err)
		return fmt.Sprint(report.Defects)
	}
	// The entry is hidden in the list: verify and a process that has seen it report it.
	f.exec(t, "UPDATE entries SET kind = 'watched' WHERE kind = 'moved'")
	if got := defects(l); !strings.Contains(got, "the list of entries does not say") {
		t.Errorf("a hidden entry: %s", got)
	}
	if _, err := l.Authorize(ctx, use("acme", "csr 2", "key 1", "vendor")); !errors.Is(err, ledger.ErrMoved) {
		t.Errorf("an append: %v", err)
	}
	if err := l.Here(ctx); !errors.Is(err, ledger.ErrTampered) {
		t.Errorf("hidden: %v", err)
	}
	// Its side row is gone, or says something else.
	restore(t)
	f.exec(t, "DELETE FROM openings WHERE name = 'moved'")
	if got := defects(l); !strings.Contains(got, "where the ledger was moved to is missing") {
		t.Errorf("a missing side row: %s", got)
	}
	if f.appendsAnyhow(t) {
		t.Error("appends without the side row")
	}
	restore(t)
	f.exec(t, "UPDATE openings SET data = ? WHERE name = 'moved'", []byte(`{"store":"`+record.NewID().String()+`","name":"x"}`))
	if got := defects(l); !strings.Contains(got, "the stored moved is not the one") {
		t.Errorf("another side row: %s", got)
	}
	// The old store is given the id of the new one by the owner of its tables: what is appended then is found in each copy.
	restore(t)
	f.exec(t, "INSERT INTO destination (id, store, origin, complete) VALUES (1, ?, 'x', 1)", result.Store[:])
	thief := f.open(t)
	issue(t, thief, use("acme", "csr of the thief", "key 1", "vendor"))
	must(t, thief.Close())
	f.exec(t, "DELETE FROM destination")
	if got := defects(l); !strings.Contains(got, "was appended here after entry") {
		t.Errorf("appended after it: %s", got)
	}
	restore(t)
	f.exec(t, "INSERT INTO destination (id, store, origin, complete) VALUES (1, ?, 'x', 1)", make([]byte, 16))
	if got := defects(l); !strings.Contains(got, "moved to this store, and no entry says so") {
		t.Errorf("a mark that no entry says: %s", got)
	}
}

// appendsAnyhow returns whether a new process can append to the store, whatever the error.
func (f *fixture) appendsAnyhow(t *testing.T) bool {
	t.Helper()
	l, err := ledger.Open(t.Context(), f.cfg)
	if err != nil {
		return false
	}
	defer func() { _ = l.Close() }() // the error of the append is what counts
	return l.AddCustomer(t.Context(), "uid 1000", "local", ledger.Customer{Name: "x"}) == nil
}
