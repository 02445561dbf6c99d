package ledgertest

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"hsmsign/ledger"
)

// exec changes the store behind the ledger's back.
func (f *fixture) exec(t *testing.T, query string, args ...any) {
	t.Helper()
	if f.cfg.Store.Numbered {
		for n := 1; strings.Contains(query, "?"); n++ {
			query = strings.Replace(query, "?", fmt.Sprintf("$%d", n), 1)
		}
	}
	if _, err := f.cfg.Store.DB.ExecContext(t.Context(), query, args...); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

func testTampered(t *testing.T, f *fixture) {
	l := f.open(t)
	issue(t, l, use("acme", "csr 1", "key 1", "vendor"))
	issue(t, l, use("bolt", "csr 2", "key 2", "vendor"))
	verified(t, l)
	leaf := func(index int64) (leaf []byte) {
		must(t, f.cfg.Store.DB.QueryRowContext(t.Context(), fmt.Sprintf("SELECT leaf FROM entries WHERE idx = %d", index)).Scan(&leaf))
		return leaf
	}
	row := func(query string, into ...any) {
		must(t, f.cfg.Store.DB.QueryRowContext(t.Context(), query).Scan(into...))
	}
	second, third := leaf(2), leaf(3)
	changed := append([]byte{}, second...)
	changed[10] ^= 1
	var salt, data, id []byte
	row("SELECT salt, data FROM openings WHERE entry = 3 AND name = 'request'", &salt, &data)
	row("SELECT id FROM customers WHERE name = 'bolt'", &id)
	for _, tt := range []struct {
		name    string
		attack  func()
		mend    func()
		defects []string
	}{
		{"a changed entry", func() { f.exec(t, "UPDATE entries SET leaf = ? WHERE idx = 2", changed) },
			func() { f.exec(t, "UPDATE entries SET leaf = ? WHERE idx = 2", second) },
			[]string{"2: the entry was changed"}},
		{"a deleted entry", func() { f.exec(t, "DELETE FROM entries WHERE idx = 2") },
			func() {
				f.exec(t, "INSERT INTO entries (idx, leaf, kind, customer) SELECT 2, ?, kind, customer FROM entries WHERE idx = 3", second)
				f.exec(t, "UPDATE entries SET kind = 'intent' WHERE idx = 2")
			},
			[]string{"2: the entry is missing", "2: there is data for an entry"}},
		{"swapped entries", func() {
			f.exec(t, "UPDATE entries SET leaf = ? WHERE idx = 2", third)
			f.exec(t, "UPDATE entries SET leaf = ? WHERE idx = 3", second)
		}, func() {
			f.exec(t, "UPDATE entries SET leaf = ? WHERE idx = 2", second)
			f.exec(t, "UPDATE entries SET leaf = ? WHERE idx = 3", third)
		}, []string{"2: the entry was changed"}},
		{"an inserted entry", func() {
			f.exec(t, "INSERT INTO entries (idx, leaf, kind, customer) SELECT 7, leaf, kind, customer FROM entries WHERE idx = 2")
		},
			func() { f.exec(t, "DELETE FROM entries WHERE idx = 7") },
			[]string{"7: the entry is not under the signed checkpoint"}},
		{"data for an entry that does not exist", func() {
			f.exec(t, "INSERT INTO openings (entry, name, salt, data) VALUES (99, 'actor', ?, ?)", salt, data)
		},
			func() { f.exec(t, "DELETE FROM openings WHERE entry = 99") },
			[]string{"99: there is data for an entry that does not exist"}},
		{"another request file", func() { f.exec(t, "UPDATE openings SET data = ? WHERE entry = 3 AND name = 'request'", []byte("x")) },
			func() { f.exec(t, "UPDATE openings SET data = ? WHERE entry = 3 AND name = 'request'", data) },
			[]string{"3: the stored request is not the one that was recorded"}},
		{"a request file that is gone", func() { f.exec(t, "DELETE FROM openings WHERE entry = 3 AND name = 'request'") },
			func() {
				f.exec(t, "INSERT INTO openings (entry, name, salt, data) VALUES (3, 'request', ?, ?)", salt, data)
			},
			[]string{"3: data of the entry is missing"}},
		{"a hidden customer", func() { f.exec(t, "UPDATE customers SET id = ? WHERE name = 'bolt'", make([]byte, 16)) },
			func() { f.exec(t, "UPDATE customers SET id = ? WHERE name = 'bolt'", id) },
			[]string{`no entry adds the customer "bolt"`, "4: the customer of the entry is missing"}},
		{"another state of a request", func() { f.exec(t, "UPDATE requests SET state = 'failed' WHERE entry = 3") },
			func() { f.exec(t, "UPDATE requests SET state = 'issued' WHERE entry = 3") },
			[]string{"3: the list of requests does not say"}},
		{"another kind in the list", func() { f.exec(t, "UPDATE entries SET kind = 'refused' WHERE idx = 3") },
			func() { f.exec(t, "UPDATE entries SET kind = 'issued' WHERE idx = 3") },
			[]string{"3: the list of entries does not say"}},
		{"another stored hash", func() { f.exec(t, "UPDATE hashes SET hash = ? WHERE idx = 2", make([]byte, 32)) }, nil,
			[]string{"a stored hash above the entry was changed"}},
	} {
		tt.attack()
		report, err := l.Verify(t.Context(), nil)
		must(t, err)
		for _, want := range tt.defects {
			found := false
			for _, d := range report.Defects {
				found = found || strings.Contains(fmt.Sprintf("%d: %s", d.Entry, d.Text), want)
			}
			if !found {
				t.Errorf("%s: %+v, want %q", tt.name, report.Defects, want)
			}
		}
		if tt.mend != nil {
			tt.mend()
			verified(t, l)
		}
	}
}

// testRewritten: an entry is changed and every stored hash rewritten to fit. The next honest append must not sign that past.
func testRewritten(t *testing.T, f *fixture) {
	l := f.open(t)
	issue(t, l, use("acme", "csr 1", "key 1", "vendor"))
	forge(t, f)
	if _, err := l.Authorize(t.Context(), use("acme", "csr 2", "key 1", "vendor")); !errors.Is(err, ledger.ErrTampered) {
		t.Errorf("an append to a forged past: %v", err)
	}
	if _, err := ledger.Open(t.Context(), f.cfg); !errors.Is(err, ledger.ErrTampered) {
		t.Errorf("opening it: %v", err)
	}
}

// forge changes entry 2 and rewrites the stored hashes.
func forge(t *testing.T, f *fixture) {
	t.Helper()
	rows, err := f.cfg.Store.DB.QueryContext(t.Context(), "SELECT leaf FROM entries ORDER BY idx")
	must(t, err)
	var hashes []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		var out []tlog.Hash
		for _, index := range indexes {
			out = append(out, hashes[index])
		}
		return out, nil
	})
	for n := int64(0); rows.Next(); n++ {
		var leaf []byte
		must(t, rows.Scan(&leaf))
		if n == 2 {
			leaf[12] ^= 1
		}
		more, err := tlog.StoredHashes(n, leaf, reader)
		must(t, err)
		hashes = append(hashes, more...)
	}
	must(t, rows.Close())
	for index, hash := range hashes {
		f.exec(t, fmt.Sprintf("UPDATE hashes SET hash = ? WHERE idx = %d", index), hash[:])
	}
}

// tables are the tables of a ledger.
var tables = []string{"head", "entries", "hashes", "chains", "watches", "keys", "openings", "actors", "customers", "pushes", "requests", "refusals", "cosignatures", "witnesses", "daily", "replicas", "uses", "approvals", "outbox", "once", "sessions", "logins", "destination"}

// snapshot copies the ledger's tables, and returns a function that puts the copy back.
func (f *fixture) snapshot(t *testing.T) (restore func(t *testing.T)) {
	t.Helper()
	for _, table := range tables {
		f.exec(t, "CREATE TABLE old_"+table+" AS SELECT * FROM "+table)
	}
	return func(t *testing.T) {
		for _, table := range tables {
			f.exec(t, "DELETE FROM "+table)
			f.exec(t, "INSERT INTO "+table+" SELECT * FROM old_"+table)
		}
	}
}

func testRolledBack(t *testing.T, f *fixture) {
	f.cfg.LastCheckpoint = t.TempDir() + "/last"
	l := f.open(t)
	issue(t, l, use("acme", "csr 1", "key 1", "vendor"))
	restore := f.snapshot(t)
	issue(t, l, use("acme", "csr 2", "key 1", "vendor"))
	other := f.cfg
	other.LastCheckpoint = ""
	restore(t)
	if _, err := l.Authorize(t.Context(), use("acme", "csr 3", "key 1", "vendor")); !errors.Is(err, ledger.ErrTampered) {
		t.Errorf("an append by a process that saw more: %v", err)
	}
	must(t, l.Close())
	if _, err := ledger.Open(t.Context(), f.cfg); !errors.Is(err, ledger.ErrTampered) || !strings.Contains(err.Error(), "older copy") {
		t.Errorf("opened after a restart: %v", err)
	}
	if _, err := ledger.Open(t.Context(), other); err != nil {
		t.Errorf("an old copy verifies by itself: %v", err)
	}
}

// testFork: a rolled-back store grows another way, signed with the right key.
func testFork(t *testing.T, f *fixture) {
	l := f.open(t)
	issue(t, l, use("acme", "csr 1", "key 1", "vendor"))
	restore := f.snapshot(t)
	issue(t, l, use("acme", "csr 2", "key 1", "vendor"))
	restore(t)
	thief := f.open(t)
	for i := range 3 {
		issue(t, thief, use("acme", fmt.Sprint("csr of the thief ", i), "key 1", "vendor"))
	}
	verified(t, thief)
	if _, err := l.Authorize(t.Context(), use("acme", "csr 3", "key 1", "vendor")); !errors.Is(err, ledger.ErrTampered) || !strings.Contains(err.Error(), "not those of the checkpoint") {
		t.Errorf("an append to a fork: %v", err)
	}
}
