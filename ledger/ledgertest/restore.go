package ledgertest

import (
	"database/sql"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
)

// testErasedAgain: an erasure is noted outside the store, and applied again to a copy that was made before it.
func testErasedAgain(t *testing.T, f *fixture) {
	ctx := t.Context()
	f.cfg.LastCheckpoint = t.TempDir() + "/last"
	l := f.open(t)
	must(t, l.AddCustomer(ctx, "uid 1000", "local", ledger.Customer{Name: "acme", Contact: "it@acme.example"}))
	issue(t, l, use("acme", "the CSR of acme", "key 1", "vendor"))
	issue(t, l, use("bolt", "csr 2", "key 2", "vendor"))
	restore := f.snapshot(t)
	if err := l.EraseCustomer(ctx, "uid 1000", "local", "nobody"); fault.KindOf(err) != fault.NotFound {
		t.Error(err)
	}
	must(t, l.EraseCustomer(ctx, "uid 1000", "local", "acme"))
	must(t, l.Close())
	ids, err := ledger.Erasures(f.cfg.LastCheckpoint)
	must(t, err)
	if len(ids) != 1 {
		t.Fatalf("%d ids were noted", len(ids))
	}
	restore(t)
	f.cfg.LastCheckpoint = ""
	l = f.open(t)
	ids = append(ids, ids[0], record.NewID()) // twice, and one that the copy does not know
	n, err := l.EraseAgain(ctx, "uid 1000", "local", ids)
	must(t, err)
	if got := kinds(t, l); n != 1 || !strings.HasSuffix(got, "issued erased") {
		t.Errorf("%d erased: %s", n, got)
	}
	var left int
	must(t, f.cfg.Store.DB.QueryRowContext(ctx, "SELECT count(*) FROM openings o JOIN entries e ON e.idx = o.entry WHERE e.customer NOT IN (SELECT id FROM customers)").Scan(&left))
	if left != 0 {
		t.Errorf("%d side rows are left", left)
	}
	if n, err := l.EraseAgain(ctx, "uid 1000", "local", ids); err != nil || n != 0 {
		t.Errorf("once more: %d, %v", n, err)
	}
	verified(t, l)
}

// testErasuresFile: an erasure that cannot be noted is not made, and a line that was cut is found.
func testErasuresFile(t *testing.T, f *fixture) {
	dir := t.TempDir()
	f.cfg.LastCheckpoint = dir + "/last"
	path := ledger.ErasuresFile(f.cfg.LastCheckpoint)
	must(t, os.Mkdir(path, 0o700))
	l := f.open(t)
	issue(t, l, use("acme", "csr 1", "key 1", "vendor"))
	if err := l.EraseCustomer(t.Context(), "uid 1000", "local", "acme"); !errors.Is(err, ledger.ErrStore) {
		t.Errorf("the file is a folder: %v", err)
	}
	if got := kinds(t, l); strings.Contains(got, "erased") {
		t.Errorf("entries %s", got)
	}
	must(t, os.Remove(path))
	must(t, os.WriteFile(path, []byte("0123"), 0o600))
	must(t, l.EraseCustomer(t.Context(), "uid 1000", "local", "acme"))
	if _, err := ledger.Erasures(f.cfg.LastCheckpoint); fault.KindOf(err) != fault.Usage || !strings.Contains(err.Error(), "line 1") {
		t.Errorf("a line that was cut: %v", err)
	}
	data, err := os.ReadFile(path) // #nosec G304 -- in the test's folder
	must(t, err)
	must(t, os.WriteFile(path, data[5:], 0o600)) // #nosec G703 -- likewise
	if ids, err := ledger.Erasures(f.cfg.LastCheckpoint); err != nil || len(ids) != 1 {
		t.Errorf("%v, %v", ids, err)
	}
}

// successor is a new ledger that continues another one.
type successor struct {
	*fixture
	*ledger.Ledger
	*ledger.Continued
}

// next continues the ledger of a fixture in a fresh store.
func (f *fixture) next(t *testing.T, c ledger.Continuation) successor {
	t.Helper()
	origin, _, _ := strings.Cut(f.cfg.Verifier, "+")
	signerKey, verifierKey, err := ledger.GenerateKey(origin + "-2")
	must(t, err)
	cfg := ledger.Config{Store: f.fresh(t), Key: signerKey, Verifier: verifierKey, Now: f.cfg.Now}
	c.Actor, c.Channel = "uid 0", "local"
	reader := f.cfg
	reader.Key = ""
	old, err := ledger.Open(t.Context(), reader)
	must(t, err)
	done, err := ledger.Continue(t.Context(), cfg, old, c)
	must(t, err)
	g := &fixture{cfg: cfg, fresh: f.fresh, time: f.time}
	return successor{g, g.open(t), done}
}

// testContinued: a new ledger continues an older copy. The rules of the old one still apply, and everything is proven.
func testContinued(t *testing.T, f *fixture) {
	ctx, l := t.Context(), f.open(t)
	must(t, l.AddCustomer(ctx, "uid 1000", "local", ledger.Customer{Name: "acme", Contact: "it@acme.example"}))
	first := issue(t, l, use("acme", "csr 1", "key 1", "vendor 1"))
	issue(t, l, use("acme", "csr 1", "key 1", "vendor 2")) // supersedes it
	push := ledger.Push{Topic: "com.apple.mgmt.External.acme", NotAfter: f.cfg.Now().AddDate(1, 0, 0), SPKI: "cd"}
	must(t, l.Attach(ctx, "uid 1000", "local", "acme", push))
	issue(t, l, use("bolt", "csr 2", "key 2", "vendor 1"))
	issue(t, l, use("coil", "csr 3", "key 3", "vendor 1"))
	must(t, l.EditCustomer(ctx, "uid 1001", "local", "bolt", func(c ledger.Customer) ledger.Customer { c.Name = "bolt-eu"; return c }))
	issue(t, l, use("coil", "csr 8", "key 7", "vendor 1"))
	must(t, l.EraseCustomer(ctx, "uid 1000", "local", "coil"))
	issue(t, l, use("bolt-eu", "csr 7", "key 3", "vendor 1")) // which was a key of coil
	failed, err := l.Authorize(ctx, use("bolt-eu", "csr 4", "key 4", "vendor 1"))
	must(t, err)
	must(t, l.Conclude(ctx, &failed, record.Outcome{Err: fault.Unavailable.Errorf("down")}))
	_, err = l.Authorize(ctx, use("bolt-eu", "csr 5", "key 5", "vendor 1")) // its outcome is never recorded
	must(t, err)
	must(t, l.Reassign(ctx, "uid 1000", "local", record.SHA256([]byte("key 2")), "bolt-eu", "acme"))
	must(t, l.Watch(ctx, "uid 1000", "local", "mdm.example:443"))
	must(t, l.Watch(ctx, "uid 1000", "local", "old.example:443"))
	must(t, l.Unwatch(ctx, "uid 1000", "local", "old.example:443"))
	began := f.cfg.Now()
	f.pass(time.Hour)
	receipt, err := l.Prove(ctx, mustID(t, first.Request))
	must(t, err)
	head, err := l.Head(ctx)
	must(t, err)
	ahead := *head
	ahead.Size += 7

	s := f.next(t, ledger.Continuation{Last: &ahead})
	if got := kinds(t, s.Ledger); got != "genesis customer customer superseded issued attached issued issued failed unknown reassigned watched" || s.Continued.Customers != 2 || s.Continued.Requests != 6 || s.Pushes != 1 || s.Missing != 7 {
		t.Errorf("entries %s, %+v", got, s.Continued)
	}
	verified(t, s.Ledger)
	if due, err := s.Due(ctx); err != nil || len(due) != 3 || due[1].Customer.Name != "bolt-eu" || !due[1].At.Equal(began) {
		t.Errorf("due: %+v, %v", due, err)
	}
	// A use of the key has the time of the original, and not that of the restore.
	for from, want := range map[time.Time]int{began: 6, f.cfg.Now(): 0} {
		if used, err := s.Signings(ctx, from.Add(-time.Minute), from.Add(time.Minute)); err != nil || len(used) != want {
			t.Errorf("uses of the key at %v: %+v, %v", from, used, err)
		}
	}
	f.pass(16 * time.Minute) // an open intent has become unknown, and is not found to be open again
	s.pass(16 * time.Minute)
	genesis, err := s.Record(ctx, 0)
	must(t, err)
	if p := genesis.Previous; p == nil || p.Checkpoint != string(head.Signed) || p.VerifierKey != f.cfg.Verifier || p.Copied != head.Size {
		t.Errorf("the first entry says %+v", p)
	}
	// The old receipt is verified with the old key, and the request can be proven in the new ledger.
	if _, err := ledger.CheckProof(receipt, f.cfg.Verifier); err != nil {
		t.Error(err)
	}
	if proof, err := s.Prove(ctx, mustID(t, first.Request)); err != nil {
		t.Error(err)
	} else if proven, err := ledger.CheckProof(proof, s.cfg.Verifier); err != nil || proven.Entry.File != record.SHA256([]byte("request for csr 1")) {
		t.Errorf("%+v, %v", proven, err)
	}
	f.continuedRules(t, s, first)
	verified(t, s.Ledger)
}

// continuedRules checks the rules of a ledger that continues another one.
func (f *fixture) continuedRules(t *testing.T, s successor, first record.Permit) {
	t.Helper()
	ctx := t.Context()
	if again := issue(t, s.Ledger, use("acme", "csr 1", "key 1", "vendor 2")); string(again.Stored) != "request for csr 1" {
		t.Errorf("the same use again: %+v", again)
	}
	if again := issue(t, s.Ledger, use("acme", "csr 1", "key 1", "vendor 1")); again.Stored != nil || again.Request == first.Request {
		t.Errorf("the use that was superseded: %+v", again)
	}
	for _, key := range []string{"key 1", "key 3", "key 4", "key 5"} { // of issued requests, a failed one, and an open intent
		if _, err := s.Authorize(ctx, use("dune", "csr of dune", key, "vendor 1")); fault.KindOf(err) != fault.Conflict {
			t.Errorf("%s, of another customer: %v", key, err)
		}
	}
	issue(t, s.Ledger, use("acme", "csr 6", "key 2", "vendor 1")) // it was moved
	if watched, err := s.Watched(ctx); err != nil || len(watched) != 1 || watched[0].Target != "mdm.example:443" {
		t.Errorf("%+v, %v", watched, err)
	}
	issue(t, s.Ledger, use("dune", "csr of dune", "key 7", "vendor 1")) // of an erased customer
	if got := kinds(t, s.Ledger); strings.Count(got, "unknown") != 1 {
		t.Errorf("entries %s", got)
	}
	due, err := s.Due(ctx)
	must(t, err)
	var what []string
	for _, d := range due {
		what = append(what, d.What+" of "+d.Customer.Name)
	}
	slices.Sort(what)
	if got := strings.Join(what, ", "); got != "push certificate of acme, request of acme, request of acme, request of bolt-eu, request of bolt-eu, request of dune" {
		t.Errorf("due: %s", got)
	}
	if err := s.Attach(ctx, "uid 1000", "local", "acme", ledger.Push{Topic: "com.apple.mgmt.External.other", NotAfter: f.cfg.Now().AddDate(3, 0, 0)}); fault.KindOf(err) != fault.Conflict {
		t.Errorf("another topic: %v", err)
	}
	record, err := s.Record(ctx, 3)
	must(t, err)
	if o := record.Original; o == nil || o.Kind == "" || o.Time.IsZero() || o.Entry == 0 {
		t.Errorf("the original is %+v", o)
	}
	must(t, s.EraseCustomer(ctx, "uid 1000", "local", "acme"))
	verified(t, s.Ledger)
	// It can be continued once more; the times are those of the first ledger.
	next := s.next(t, ledger.Continuation{})
	verified(t, next.Ledger)
	again, err := next.Record(ctx, 1)
	must(t, err)
	if o := again.Original; o == nil || o.Kind != "customer" || o.Time != time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC) {
		t.Errorf("after two: %+v", o)
	}
}

func mustID(t *testing.T, text string) record.ID {
	t.Helper()
	id, err := record.ParseID(text)
	must(t, err)
	return id
}

// testContinuedUntil: what was appended after the trusted checkpoint is not continued, and what was erased since is not either.
func testContinuedUntil(t *testing.T, f *fixture) {
	ctx, l := t.Context(), f.open(t)
	issue(t, l, use("acme", "csr 1", "key 1", "vendor"))
	issue(t, l, use("bolt", "csr 2", "key 2", "vendor"))
	must(t, l.Watch(ctx, "uid 1000", "local", "mdm.example:443"))
	trusted, err := l.Head(ctx)
	must(t, err)
	must(t, l.Unwatch(ctx, "uid 1000", "local", "mdm.example:443"))
	must(t, l.Watch(ctx, "uid 1000", "local", "thief.example:443"))
	f.exec(t, "UPDATE watches SET entry = 1") // the list is not trusted
	issue(t, l, use("thief", "csr 3", "key 3", "vendor"))
	must(t, l.EditCustomer(ctx, "uid 1000", "local", "acme", func(c ledger.Customer) ledger.Customer { c.Name = "renamed"; return c }))
	bolt, err := l.Customers(ctx, "bolt")
	must(t, err)
	s := f.next(t, ledger.Continuation{Until: trusted, Erased: []record.ID{bolt[0].ID}})
	customers, err := s.Ledger.Customers(ctx, "")
	must(t, err)
	if len(customers) != 1 || customers[0].Name != "acme" || s.Copied != trusted.Size || s.Missing != 0 {
		t.Errorf("%+v, %+v", customers, s.Continued)
	}
	verified(t, s.Ledger)
	if watched, err := s.Watched(ctx); err != nil || len(watched) != 1 || watched[0].Target != "mdm.example:443" {
		t.Errorf("watched: %+v, %v", watched, err)
	}
	// Whatever is used is checked: a side row, and an entry.
	var data, leaf, second []byte
	row := func(query string, into *[]byte) {
		must(t, f.cfg.Store.DB.QueryRowContext(ctx, query).Scan(into))
	}
	row("SELECT data FROM openings WHERE entry = 2 AND name = 'csr'", &data)
	row("SELECT leaf FROM entries WHERE idx = 2", &second)
	changed, err := record.ParseEntry(second)
	must(t, err)
	changed.SPKI[0] ^= 1 // no side row says it
	leaf, err = changed.Marshal()
	must(t, err)
	const changeLeaf, changeData = "UPDATE entries SET leaf = ? WHERE idx = 2", "UPDATE openings SET data = ? WHERE entry = 2 AND name = 'csr'"
	for _, change := range []string{changeData, changeLeaf} {
		f.exec(t, change, map[string][]byte{changeData: []byte("x"), changeLeaf: leaf}[change])
		cfg := s.cfg
		cfg.Store = f.fresh(t)
		old, err := ledger.Open(ctx, ledger.Config{Store: f.cfg.Store, Verifier: f.cfg.Verifier})
		must(t, err)
		if _, err := ledger.Continue(ctx, cfg, old, ledger.Continuation{Until: trusted}); !errors.Is(err, ledger.ErrTampered) {
			t.Errorf("%s: %v", change, err)
		}
		if _, err := ledger.Open(ctx, cfg); err == nil {
			t.Errorf("%s: a ledger was made", change)
		}
		f.exec(t, changeData, data)
	}
	f.exec(t, changeLeaf, second)
	var chain []byte
	row("SELECT data FROM chains", &chain)
	f.exec(t, "UPDATE chains SET data = ?", []byte("x"))
	reader, err := ledger.Open(ctx, ledger.Config{Store: f.cfg.Store, Verifier: f.cfg.Verifier})
	must(t, err)
	cfg := s.cfg
	cfg.Store = f.fresh(t)
	if _, err := ledger.Continue(ctx, cfg, reader, ledger.Continuation{Until: trusted}); !errors.Is(err, ledger.ErrTampered) {
		t.Errorf("another chain: %v", err)
	}
	f.exec(t, "UPDATE chains SET data = ?", chain)
	old, err := ledger.Open(ctx, ledger.Config{Store: f.cfg.Store, Verifier: f.cfg.Verifier})
	must(t, err)
	if _, err := ledger.Continue(ctx, f.cfg, old, ledger.Continuation{}); fault.KindOf(err) != fault.Usage {
		t.Errorf("the same origin: %v", err)
	}
	if _, err := ledger.Continue(ctx, s.cfg, old, ledger.Continuation{}); fault.KindOf(err) == fault.None {
		t.Error("a store that has a ledger")
	}
	// Verify finds a hidden original.
	s.exec(t, "DELETE FROM openings WHERE name = 'original' AND entry = 2")
	report, err := s.Verify(ctx, nil)
	must(t, err)
	if len(report.Defects) == 0 || !strings.Contains(fmt.Sprint(report.Defects), "data of the entry is missing") {
		t.Errorf("a hidden original: %+v", report.Defects)
	}
	if record, err := s.Record(ctx, 2); err != nil || record.Original != nil {
		t.Errorf("%+v, %v", record, err)
	}
	if err := s.cfg.Store.DB.QueryRowContext(ctx, "SELECT 1 FROM entries WHERE idx = 99").Scan(new(int)); !errors.Is(err, sql.ErrNoRows) {
		t.Error(err)
	}
}
