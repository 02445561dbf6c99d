package ledgertest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
)

// moves are the tests of moving a ledger to another store.
var moves = map[string]func(t *testing.T, f *fixture){
	"moved": testMoved, "moved, interrupted": testMovedInterrupted, "moved twice": testMovedTwice, "moved on": testMovedOn, "moved, refused": testMovedRefused,
	"moved, tampered": testMovedTampered,
}

// RunMoves moves ledgers from the stores that open opens, as in Run, to those of another kind that to opens.
func RunMoves(t *testing.T, open func(t *testing.T) (store *ledger.Store, again func(t *testing.T) *ledger.Store), to func(t *testing.T) *ledger.Store) {
	for name, test := range map[string]func(t *testing.T, f *fixture){"moved": testMoved, "moved, interrupted": testMovedInterrupted} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store, again := open(t)
			f := newFixture(t, store, again)
			f.fresh = func(t *testing.T) *ledger.Store {
				store := to(t)
				store.Clock = ""
				return store
			}
			test(t, f)
		})
	}
}

// errKilled ends a move before a step.
var errKilled = errors.New("killed")

// move moves the ledger to a store, which stays open. step may be nil.
func move(ctx context.Context, l *ledger.Ledger, to *ledger.Store, step func(name string) error) (*ledger.MoveResult, error) {
	return l.Move(ctx, ledger.Move{
		Open: func(bool) (*ledger.Store, error) { return to, nil }, Actor: "uid 0", Channel: "local",
		Step: func(name string, _, _ int64) error {
			if step == nil {
				return nil
			}
			return step(name)
		},
	})
}

// at returns the configuration of the ledger in another store.
func (f *fixture) at(store *ledger.Store) ledger.Config {
	cfg := f.cfg
	cfg.Store = store
	return cfg
}

// appends returns whether the ledger in a store accepts entries.
func (f *fixture) appends(t *testing.T, store *ledger.Store) bool {
	t.Helper()
	l, err := ledger.Open(t.Context(), f.at(store))
	if err != nil {
		return false
	}
	err = l.AddCustomer(t.Context(), "uid 1000", "local", ledger.Customer{Name: record.NewID().String()})
	must(t, l.Close())
	if err != nil && !errors.Is(err, ledger.ErrMoved) {
		t.Errorf("an append: %v", err)
	}
	return err == nil
}

// rows returns the rows of each table that is copied, sorted.
func rows(t *testing.T, store *ledger.Store) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	for _, table := range tables {
		if slices.Contains([]string{"sessions", "logins", "destination"}, table) {
			continue
		}
		found, err := store.DB.QueryContext(t.Context(), "SELECT * FROM "+table) // #nosec G202 -- a constant
		must(t, err)
		columns, err := found.Columns()
		must(t, err)
		for found.Next() {
			row, into := make([]any, len(columns)), make([]any, len(columns))
			for i := range row {
				into[i] = &row[i]
			}
			must(t, found.Scan(into...))
			all[table] = append(all[table], fmt.Sprintf("%s %q", columns, row))
		}
		must(t, found.Err())
		slices.Sort(all[table])
		if len(all[table]) == 0 {
			t.Errorf("the table %s is empty", table)
		}
	}
	return all
}

// fill appends entries of many kinds, and rows to each table.
func (f *fixture) fill(t *testing.T, l *ledger.Ledger) (first record.Permit) {
	t.Helper()
	ctx := t.Context()
	first = issue(t, l, use("acme", "csr 1", "key 1", "vendor 1"))
	issue(t, l, use("bolt", "csr 2", "key 2", "vendor 2"))
	issue(t, l, use("coil", "csr 3", "key 3", "vendor 1"))
	push := ledger.Push{Topic: "com.apple.mgmt.External.acme", NotAfter: f.cfg.Now().AddDate(1, 0, 0), SPKI: "cd"}
	must(t, l.Attach(ctx, "uid 1000", "local", "acme", push))
	must(t, l.Watch(ctx, "uid 1000", "local", "mdm.example:443"))
	must(t, l.StartPolicy(ctx, "uid 1000", "local", "host-1", record.SHA256([]byte("the policy"))))
	_, err := l.Authorize(ctx, use("bolt", "csr 4", "key 1", "vendor 1"))
	if fault.KindOf(err) != fault.Conflict {
		t.Errorf("the key of another customer: %v", err)
	}
	_ = waits(t, l, asks("new", "csr 5", "key 5"))
	must(t, l.Freeze(ctx, "uid 0", "local", ledger.Freeze{Scope: ledger.FreezeCaller, Name: "portal", Reason: "lost"}))
	_, err = l.Once(ctx, record.SHA256([]byte("a signature")), f.cfg.Now().Add(time.Hour))
	must(t, err)
	f.exec(t, "INSERT INTO refusals (day, actor, rule, csr, repeated) VALUES (1, ?, 'x', ?, 7)", []byte("actor"), []byte{})
	f.exec(t, "INSERT INTO uses (credential, at) VALUES ('token abcd2345', 5)")
	f.exec(t, "INSERT INTO daily (day, actor, requests) VALUES (-1, ?, 0)", []byte("actor"))
	return first
}

// testMoved: everything is in the other store, which continues; the old one is read and never appended to.
func testMoved(t *testing.T, f *fixture) {
	ctx := t.Context()
	f.witnesses(t, 1)
	f.cfg.Required = 1
	f.cfg.Copies = []string{filepath.Join(t.TempDir(), "copy")}
	l := f.open(t)
	first := f.fill(t, l)
	replica, err := ledger.Open(ctx, f.at(f.again(t)))
	must(t, err)
	t.Cleanup(func() { _ = replica.Close() }) // it has nothing to publish
	receipt, err := l.Prove(ctx, mustID(t, first.Request))
	must(t, err)
	open, err := replica.Authorize(ctx, use("coil", "csr 6", "key 3", "vendor 1"))
	must(t, err)
	var id record.ID
	to := f.fresh(t)
	result, err := move(ctx, l, to, func(step string) error {
		if step != ledger.StepClose {
			return nil
		}
		// After most was copied, a customer is erased, and another one gets a request.
		if id, err = customerID(ctx, replica, "bolt"); err != nil {
			return err
		}
		issue(t, replica, use("acme", "csr 7", "key 1", "vendor 1"))
		return replica.EraseCustomer(ctx, "uid 1000", "local", "bolt")
	})
	must(t, err)
	head, err := l.Head(ctx)
	must(t, err)
	if result.Again || result.Head.Size != head.Size || result.Entries != head.Size || result.Store == (record.ID{}) || result.Name != to.Name {
		t.Errorf("%+v of %d entries", result, head.Size)
	}
	if err := l.AddCustomer(ctx, "uid 1000", "local", ledger.Customer{Name: "late"}); !errors.Is(err, ledger.ErrMoved) {
		t.Errorf("an append by the process that moved it: %v", err)
	}
	must(t, l.Close())
	old, moved := rows(t, f.cfg.Store), rows(t, to)
	for table, want := range old {
		if table != "cosignatures" && table != "witnesses" && !slices.Equal(moved[table], want) { // a witness may have answered since
			t.Errorf("%s:\n%q\nwant\n%q", table, moved[table], want)
		}
	}
	if strings.Contains(fmt.Sprint(moved), "request for csr 2") {
		t.Error("data of the erased customer was copied")
	}
	// A process that has the old store open releases, accepts and sends nothing.
	for what, err := range map[string]error{
		"authorize": second(replica.Authorize(ctx, use("acme", "csr 8", "key 1", "vendor 1"))), "the same request": second(replica.Authorize(ctx, use("acme", "csr 1", "key 1", "vendor 1"))),
		"conclude": replica.Conclude(ctx, &open, record.Outcome{File: []byte("x")}), "release": replica.Release(ctx, first), "once": second(replica.Once(ctx, record.SHA256([]byte("y")), f.cfg.Now().Add(time.Hour))),
		"take": second(replica.Take(ctx, time.Minute)), "check": second(replica.Check(ctx, use("acme", "csr 1", "key 1", "vendor 1"))), "freeze": replica.Freeze(ctx, "uid 0", "local", ledger.Freeze{Scope: ledger.FreezeAll, Reason: "x"}),
		"here": replica.Here(ctx), "move": second(move(ctx, replica, f.fresh(t), nil)),
	} {
		if !errors.Is(err, ledger.ErrMoved) || !errors.Is(err, ledger.ErrStore) || fault.KindOf(err) != fault.Unavailable || !strings.Contains(err.Error(), to.Name) || fault.Hint(err) == "" {
			t.Errorf("%s with the old store: %v", what, err)
		}
	}
	verified(t, replica)
	f.readsMoved(t, replica, head.Size-1, result)
	f.continuesMoved(t, to, receipt, id)
}

// second returns the error of two results.
func second[T any](_ T, err error) error { return err }

// customerID returns the id of a customer.
func customerID(ctx context.Context, l *ledger.Ledger, name string) (record.ID, error) {
	list, err := l.List(ctx, ledger.Query{Customer: name, Limit: 1})
	if err != nil {
		return record.ID{}, err
	}
	return list[0].Entry.Customer, nil
}

// readsMoved checks what the old store says.
func (f *fixture) readsMoved(t *testing.T, l *ledger.Ledger, last int64, result *ledger.MoveResult) {
	t.Helper()
	said, at, err := l.MovedTo(t.Context())
	must(t, err)
	r, err := l.Record(t.Context(), last)
	must(t, err)
	if at != last || said == nil || *said != *r.Moved || said.Store != result.Store.String() || r.Entry.Kind != record.KindMoved || r.Actor != "uid 0" {
		t.Errorf("moved to %+v by %d: %+v", said, at, r)
	}
	if _, err := l.Freezes(t.Context()); err != nil {
		t.Errorf("what is frozen: %v", err)
	}
	if f.appends(t, f.cfg.Store) {
		t.Error("a new process appends to the old store")
	}
}

// continuesMoved checks that the ledger continues in the new store.
func (f *fixture) continuesMoved(t *testing.T, to *ledger.Store, receipt []byte, erased record.ID) {
	t.Helper()
	ctx := t.Context()
	n, err := ledger.Open(ctx, f.at(to))
	must(t, err)
	defer func() { must(t, n.Close()) }()
	if _, err := ledger.CheckProof(receipt, f.cfg.Verifier); err != nil {
		t.Error(err)
	}
	kept, err := os.Open(f.cfg.Copies[0])
	must(t, err)
	defer func() { _ = kept.Close() }() // it was read
	if checked, err := n.CheckAgainst(ctx, kept); err != nil || checked < 2 {
		t.Errorf("compared with %d kept checkpoints: %v", checked, err)
	}
	if again := issue(t, n, use("acme", "csr 1", "key 1", "vendor 1")); again.Stored == nil {
		t.Error("the stored request is not found")
	}
	if fresh, err := n.Once(ctx, record.SHA256([]byte("a signature")), f.cfg.Now().Add(time.Hour)); err != nil || fresh {
		t.Errorf("accepted a second time: %v", err)
	}
	u := use("acme", "csr 9", "key 1", "vendor 1")
	u.Actor = "portal"
	if _, err := n.Authorize(ctx, u); fault.KindOf(err) != fault.Forbidden {
		t.Errorf("a frozen caller: %v", err)
	}
	issue(t, n, use("acme", "csr 10", "key 1", "vendor 1"))
	if ids, err := n.Unerased(ctx, []record.ID{erased}); err != nil || len(ids) > 0 {
		t.Errorf("unerased: %v, %v", ids, err)
	}
	must(t, n.Here(ctx))
	verified(t, n)
}

// testMovedInterrupted ends a move before each of its steps: never are there two stores that can be appended to, and the next run
// completes it.
func testMovedInterrupted(t *testing.T, f *fixture) {
	ctx := t.Context()
	seen := map[string]bool{}
	for n := 0; ; n++ {
		g := f
		if n > 0 {
			store := f.fresh(t)
			g = newFixture(t, store, func(*testing.T) *ledger.Store { return store })
			g.fresh = f.fresh
		}
		l := g.open(t)
		issue(t, l, use("acme", "csr 1", "key 1", "vendor"))
		to, steps := g.fresh(t), 0
		closed := false
		_, err := move(ctx, l, to, func(step string) error {
			if steps++; steps > n {
				return errKilled
			}
			seen[step], closed = true, closed || step == ledger.StepClose
			return nil
		})
		must(t, l.Close())
		old, moved := g.appends(t, g.cfg.Store), g.appends(t, to)
		if want := err == nil; moved != want || old == closed || err != nil && !errors.Is(err, errKilled) {
			t.Errorf("after %d steps: appends to the old store %v, to the new one %v; %v", n, old, moved, err)
		}
		if !moved {
			if _, err := ledger.Open(ctx, g.at(to)); err == nil {
				t.Errorf("after %d steps: the new store opens", n)
			}
		}
		l = g.open(t)
		again, retry := move(ctx, l, to, nil)
		must(t, retry)
		must(t, l.Close())
		if again.Again != (err == nil) || g.appends(t, g.cfg.Store) || !g.appends(t, to) {
			t.Errorf("after %d steps and a second run: %+v", n, again)
		}
		if err == nil {
			break
		}
	}
	for _, step := range []string{ledger.StepVerify, ledger.StepPrepare, ledger.StepEntries, ledger.StepClose, ledger.StepTables, ledger.StepCompare, ledger.StepComplete} {
		if !seen[step] {
			t.Errorf("the step %q was not reached", step)
		}
	}
}

// testMovedTwice: of several runs at once, to one store or to several, the ledger ends in one, while requests are signed.
func testMovedTwice(t *testing.T, f *fixture) {
	ctx := t.Context()
	first, other := f.fresh(t), f.fresh(t)
	l := f.open(t)
	for i := range 300 {
		must(t, l.AddCustomer(ctx, "uid 1000", "local", ledger.Customer{Name: fmt.Sprint("customer ", i)}))
	}
	var all sync.WaitGroup
	var issued, refused int
	all.Go(func() {
		for i := range 10_000 {
			u := use("acme", fmt.Sprint("csr ", i), "key", "vendor")
			permit, err := l.Authorize(ctx, u)
			if err == nil {
				err = l.Conclude(ctx, &permit, record.Outcome{File: []byte("request for " + string(u.CSR))})
			}
			if err != nil {
				if refused++; !errors.Is(err, ledger.ErrMoved) {
					t.Error(err)
				}
				return
			}
			issued++
		}
	})
	results := make([]error, 4)
	for i, to := range []*ledger.Store{first, first, other, other} {
		all.Go(func() {
			own, err := ledger.Open(ctx, f.at(f.cfg.Store))
			if err == nil {
				_, err = move(ctx, own, to, nil)
				err = errors.Join(err, own.Close())
			}
			results[i] = err
		})
	}
	all.Wait()
	for _, err := range results {
		if err != nil && !errors.Is(err, ledger.ErrMoved) && fault.KindOf(err) != fault.Conflict {
			t.Errorf("one of several runs: %v", err)
		}
	}
	said, _, err := l.MovedTo(ctx)
	must(t, err)
	if said == nil {
		t.Fatalf("no run closed the ledger: %v", results)
	}
	var id []byte
	must(t, first.DB.QueryRowContext(ctx, "SELECT store FROM destination").Scan(&id))
	to := other
	if record.ID(id).String() == said.Store {
		to = first
	}
	if _, err := move(ctx, l, to, nil); err != nil { // if the runs to this store disturbed each other
		t.Error(err)
	}
	n, err := ledger.Open(ctx, f.at(to))
	must(t, err)
	verified(t, n)
	if got := strings.Count(kinds(t, n), "issued"); got != issued || refused != 1 {
		t.Errorf("%d issued in the new store, %d before; %d refused", got, issued, refused)
	}
	must(t, n.Close())
	for _, store := range []*ledger.Store{f.cfg.Store, first, other} {
		if f.appends(t, store) != (store == to) {
			t.Errorf("appends to %s", store.Name)
		}
	}
	if _, err := move(ctx, l, other, nil); (to == first) != errors.Is(err, ledger.ErrMoved) {
		t.Errorf("to the other store: %v", err)
	}
}
