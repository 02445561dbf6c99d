// Package ledgertest is the test battery that every store of a ledger passes.
package ledgertest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/ledger"
	"hsmsign/ledger/record"

	"golang.org/x/mod/sumdb/tlog"
)

// Run runs the battery. open opens a new, empty store; again opens the same store as another process would.
func Run(t *testing.T, open func(t *testing.T) (store *ledger.Store, again func(t *testing.T) *ledger.Store)) {
	for name, test := range map[string]func(t *testing.T, f *fixture){
		"rules": testRules, "concurrent": testConcurrent, "tampered": testTampered, "hashes rewritten": testRewritten,
		"rolled back": testRolledBack, "fork": testFork, "clock": testClock, "open intents": testOpenIntents, "init": testInit, "proof": testProof, "due": testDue, "erased": testErased, "migrations": testMigrations,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store, again := open(t)
			test(t, newFixture(t, store, again))
		})
	}
}

// fixture is a new ledger with its keys and a clock.
type fixture struct {
	cfg   ledger.Config
	again func(t *testing.T) *ledger.Store
	mu    sync.Mutex
	time  time.Time
}

func newFixture(t *testing.T, store *ledger.Store, again func(t *testing.T) *ledger.Store) *fixture {
	t.Helper()
	signerKey, verifierKey, err := ledger.GenerateKey("example.com/ledger")
	must(t, err)
	f := &fixture{again: again, time: time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)}
	f.cfg = ledger.Config{Store: store, Key: signerKey, Verifier: verifierKey, Now: func() time.Time {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.time
	}}
	_, err = ledger.Init(t.Context(), f.cfg)
	must(t, err)
	return f
}

func (f *fixture) pass(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.time = f.time.Add(d)
}

// open opens the ledger; the test closes it.
func (f *fixture) open(t *testing.T) *ledger.Ledger {
	t.Helper()
	l, err := ledger.Open(t.Context(), f.cfg)
	must(t, err)
	t.Cleanup(func() { _ = l.Close() }) // the test has checked it
	return l
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// use is a use of the key; CSRs with the same key text have the same key.
func use(customer, csr, key, vendor string) record.Use {
	return record.Use{
		Customer: customer, Actor: "uid 1000", Channel: "local", CSR: []byte(csr), SPKI: []byte(key),
		Vendor: []byte(vendor), Chain: []byte("chain of " + vendor), Digest: "SHA-256",
	}
}

// issue authorizes a use and records a request for it.
func issue(t *testing.T, l *ledger.Ledger, u record.Use) record.Permit {
	t.Helper()
	permit, err := l.Authorize(t.Context(), u)
	must(t, err)
	if permit.Stored == nil {
		must(t, l.Conclude(t.Context(), permit, record.Outcome{File: []byte("request for " + string(u.CSR))}))
	}
	return permit
}

// kinds returns the kinds of the entries from the first on.
func kinds(t *testing.T, l *ledger.Ledger) string {
	t.Helper()
	var all []string
	must(t, l.Records(t.Context(), func(r record.Record) error {
		all = append(all, r.Entry.Kind)
		return nil
	}))
	return strings.Join(all, " ")
}

// verified checks that a ledger has no defects.
func verified(t *testing.T, l *ledger.Ledger) {
	t.Helper()
	report, err := l.Verify(t.Context(), nil)
	must(t, err)
	if len(report.Defects) > 0 {
		t.Errorf("defects %+v", report.Defects)
	}
}

func testRules(t *testing.T, f *fixture) {
	ctx, l := t.Context(), f.open(t)
	first := issue(t, l, use("acme", "csr 1", "key 1", "vendor 1"))
	again := issue(t, l, use("acme", "csr 1", "key 1", "vendor 1"))
	if again.Request != first.Request || string(again.Stored) != "request for csr 1" {
		t.Errorf("the same use again: %+v", again)
	}
	if other := issue(t, l, use("acme", "csr 1", "key 1", "vendor 2")); other.Request == first.Request || other.Stored != nil {
		t.Errorf("under another vendor certificate: %+v", other)
	}
	for range 3 {
		_, err := l.Authorize(ctx, use("bolt", "csr 2", "key 1", "vendor 2"))
		if fault.KindOf(err) != fault.Conflict || strings.Contains(err.Error(), "acme") {
			t.Errorf("the key of another customer: %v", err)
		}
	}
	permit, err := l.Authorize(ctx, use("coil", "csr 3", "key 3", "vendor 2"))
	must(t, err)
	must(t, l.Conclude(ctx, permit, record.Outcome{Err: fault.Unavailable.Errorf("down")}))
	if err := l.Conclude(ctx, permit, record.Outcome{File: []byte("x")}); fault.KindOf(err) != fault.Conflict {
		t.Errorf("concluded twice: %v", err)
	}
	for _, name := range []string{"", " a", "a\nb", strings.Repeat("x", 129)} {
		if _, err := l.Authorize(ctx, use(name, "csr", "key", "vendor")); fault.KindOf(err) != fault.Usage {
			t.Errorf("customer %q: %v", name, err)
		}
	}
	const want = "genesis customer intent issued intent superseded issued refused customer intent failed"
	if got := kinds(t, l); got != want {
		t.Errorf("entries %s; want %s", got, want)
	}
	verified(t, l)
}

// testConcurrent: several processes and many callers; nothing is lost or doubled.
func testConcurrent(t *testing.T, f *fixture) {
	var ledgers []*ledger.Ledger
	for range 3 {
		cfg := f.cfg
		cfg.Store = f.again(t)
		l, err := ledger.Open(t.Context(), cfg)
		must(t, err)
		ledgers = append(ledgers, l)
	}
	var all sync.WaitGroup
	const callers, each = 8, 20
	for i, l := range ledgers {
		for caller := range callers {
			all.Go(func() {
				for n := range each {
					// Each CSR is asked for by every process.
					u := use("acme", fmt.Sprintf("csr %d/%d", caller, n), "key", "vendor")
					permit, err := l.Authorize(t.Context(), u)
					if err == nil && permit.Stored == nil {
						err = l.Conclude(t.Context(), permit, record.Outcome{File: []byte("request for " + string(u.CSR))})
					}
					if err != nil {
						t.Errorf("process %d: %v", i, err)
						return
					}
				}
			})
		}
	}
	all.Wait()
	issued := strings.Count(kinds(t, ledgers[0]), "issued")
	if issued != callers*each {
		t.Errorf("%d issued, want %d", issued, callers*each)
	}
	verified(t, ledgers[1])
	for _, l := range ledgers {
		must(t, l.Close())
	}
}

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
var tables = []string{"head", "entries", "hashes", "openings", "actors", "customers", "pushes", "requests", "refusals"}

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

func testClock(t *testing.T, f *fixture) {
	l := f.open(t)
	issue(t, l, use("acme", "csr 1", "key 1", "vendor"))
	f.pass(-time.Minute)
	issue(t, l, use("acme", "csr 2", "key 1", "vendor"))
	var before time.Time
	must(t, l.Records(t.Context(), func(r record.Record) error {
		if r.Entry.Time.Before(before) {
			t.Errorf("the time of entry %d falls", r.Index)
		}
		before = r.Entry.Time
		return nil
	}))
	f.pass(-2 * time.Minute)
	if _, err := l.Authorize(t.Context(), use("acme", "csr 3", "key 1", "vendor")); err == nil || !strings.Contains(err.Error(), "the clock is 3m0s behind") {
		t.Errorf("a clock far behind: %v", err)
	}
}

func testOpenIntents(t *testing.T, f *fixture) {
	l := f.open(t)
	permit, err := l.Authorize(t.Context(), use("acme", "csr 1", "key 1", "vendor"))
	must(t, err)
	f.pass(14 * time.Minute)
	issue(t, l, use("acme", "csr 2", "key 1", "vendor"))
	if got := kinds(t, l); strings.Contains(got, "unknown") {
		t.Errorf("after 14 minutes: %s", got)
	}
	f.pass(2 * time.Minute)
	issue(t, l, use("acme", "csr 3", "key 1", "vendor"))
	if got := kinds(t, l); !strings.HasSuffix(got, "unknown intent issued") {
		t.Errorf("after 16 minutes: %s", got)
	}
	if err := l.Conclude(t.Context(), permit, record.Outcome{File: []byte("x")}); fault.KindOf(err) != fault.Conflict {
		t.Errorf("concluded late: %v", err)
	}
	verified(t, l)
}

func testInit(t *testing.T, f *fixture) {
	if _, err := ledger.Init(t.Context(), f.cfg); fault.KindOf(err) != fault.Usage {
		t.Errorf("a second init: %v", err)
	}
	_, other, err := ledger.GenerateKey("example.com/other")
	must(t, err)
	if _, err := ledger.Open(t.Context(), ledger.Config{Store: f.cfg.Store, Verifier: other}); !errors.Is(err, ledger.ErrTampered) {
		t.Errorf("another origin: %v", err)
	}
	reader, err := ledger.Open(t.Context(), ledger.Config{Store: f.cfg.Store, Verifier: f.cfg.Verifier})
	must(t, err)
	if _, err := reader.Authorize(t.Context(), use("acme", "csr", "key", "vendor")); fault.KindOf(err) != fault.Usage {
		t.Errorf("an append without a key: %v", err)
	}
	verified(t, reader)
	must(t, reader.Close())
	l := f.open(t)
	must(t, l.Close())
	if _, err := l.Authorize(t.Context(), use("acme", "csr", "key", "vendor")); !errors.Is(err, ledger.ErrStore) {
		t.Errorf("an append after Close: %v", err)
	}
	f.exec(t, "UPDATE ledger_schema SET version = 99")
	if _, err := ledger.Open(t.Context(), f.cfg); fault.KindOf(err) != fault.Usage || !strings.Contains(err.Error(), "schema 99") {
		t.Errorf("a newer schema: %v", err)
	}
}

// testMigrations: eight processes make the ledger at once; one does.
func testMigrations(t *testing.T, f *fixture) {
	for _, table := range append(tables, "ledger_schema") {
		f.exec(t, "DROP TABLE "+table)
	}
	var mu sync.Mutex
	made := 0
	var all sync.WaitGroup
	for range 8 {
		cfg := f.cfg
		cfg.Store = f.again(t)
		all.Go(func() {
			_, err := ledger.Init(t.Context(), cfg)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				made++
			case fault.KindOf(err) != fault.Usage:
				t.Error(err)
			}
		})
	}
	all.Wait()
	if made != 1 {
		t.Errorf("%d processes made the ledger", made)
	}
	verified(t, f.open(t))
}

// testProof: a proof is checked without the store; whatever is changed in it shows.
func testProof(t *testing.T, f *fixture) {
	l := f.open(t)
	var data []byte
	for i := range 5 {
		permit := issue(t, l, use("acme", fmt.Sprint("csr ", i), "key 1", "vendor"))
		id, err := record.ParseID(permit.Request)
		must(t, err)
		data, err = l.Prove(t.Context(), id)
		must(t, err)
		proven, err := ledger.CheckProof(data, f.cfg.Verifier)
		must(t, err)
		if proven.Entry.Request != id || proven.Entry.Kind != record.KindIssued || proven.Entry.CSR != sha256.Sum256([]byte(fmt.Sprint("csr ", i))) {
			t.Errorf("%+v", proven.Entry)
		}
	}
	for i := range data {
		changed := bytes.Clone(data)
		changed[i] ^= 1
		if _, err := ledger.CheckProof(changed, f.cfg.Verifier); err == nil {
			t.Errorf("byte %d was changed, and the proof accepted", i)
		}
	}
	_, other, err := ledger.GenerateKey("example.com/ledger")
	must(t, err)
	if _, err := ledger.CheckProof(data, other); !errors.Is(err, ledger.ErrTampered) {
		t.Errorf("with another key: %v", err)
	}
	if _, err := l.Prove(t.Context(), record.NewID()); fault.KindOf(err) != fault.NotFound {
		t.Errorf("an unknown request: %v", err)
	}
}

// Benchmark measures appends by 64 callers, verifying and listing. A battery's limits are in docs/performance.md.
func Benchmark(b *testing.B, store *ledger.Store) {
	signerKey, verifierKey, err := ledger.GenerateKey("example.com/bench")
	if err != nil {
		b.Fatal(err)
	}
	cfg := ledger.Config{Store: store, Key: signerKey, Verifier: verifierKey}
	if _, err := ledger.Init(b.Context(), cfg); err != nil {
		b.Fatal(err)
	}
	l, err := ledger.Open(b.Context(), cfg)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = l.Close() }() // nothing is kept
	const callers, entries = 64, 100_000
	var each [callers][]time.Duration
	began := time.Now()
	var all sync.WaitGroup
	for caller := range callers {
		all.Go(func() {
			for range entries / callers {
				start := time.Now()
				err := l.Append(b.Context(), func(_ context.Context, tx *ledger.Tx) error {
					_, err := tx.Append(&record.Entry{Kind: "bench", Customer: record.NewID()}, record.NewOpening("actor", []byte("uid 1000")))
					return err
				})
				if err != nil {
					b.Error(err)
					return
				}
				each[caller] = append(each[caller], time.Since(start))
			}
		})
	}
	all.Wait()
	took := time.Since(began)
	waits := slices.Concat(each[:]...)
	slices.Sort(waits)
	b.ReportMetric(float64(len(waits))/took.Seconds(), "appends/s")
	b.ReportMetric(float64(waits[len(waits)/2].Microseconds())/1000, "p50-ms")
	began = time.Now()
	if report, err := l.Verify(b.Context(), nil); err != nil || len(report.Defects) > 0 {
		b.Fatal(report, err)
	}
	b.ReportMetric(float64(len(waits))/time.Since(began).Seconds(), "verified/s")
	began = time.Now()
	if list, err := l.List(b.Context(), ledger.Query{Limit: 50}); err != nil || len(list) != 50 {
		b.Fatal(len(list), err)
	}
	b.ReportMetric(float64(time.Since(began).Microseconds())/1000, "list-50-ms")
	b.ReportMetric(0, "ns/op")
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
