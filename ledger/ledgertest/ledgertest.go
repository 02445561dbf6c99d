// Package ledgertest is the test battery that every store of a ledger passes.
package ledgertest

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
)

// Run runs the battery. open opens a new, empty store; again opens the same store as another process would.
func Run(t *testing.T, open func(t *testing.T) (store *ledger.Store, again func(t *testing.T) *ledger.Store)) {
	all := map[string]func(t *testing.T, f *fixture){
		"rules": testRules, "concurrent": testConcurrent, "tampered": testTampered, "hashes rewritten": testRewritten,
		"rolled back": testRolledBack, "fork": testFork, "clock": testClock, "policy": testPolicy, "low space": testLow, "open intents": testOpenIntents, "init": testInit, "proof": testProof, "due": testDue, "use before": testUseBefore, "watched": testWatched, "keys": testKeys, "attempts": testAttempts, "signings": testSignings, "chain rolled back": testChainRolledBack, "forbidden": testForbidden, "erased": testErased, "migrations": testMigrations,
		"erased again": testErasedAgain, "erasures file": testErasuresFile, "continued": testContinued, "continued until": testContinuedUntil, "rotated": testRotated, "rotated elsewhere": testRotatedElsewhere,
		"rotation, tampered": testRotationTampered, "rotated, witnessed": testRotatedWitnessed, "rotated, cosigned before": testRotatedPast,
		"witnesses": testWitnesses, "required": testRequired, "alarms": testAlarms, "forks": testWitnessedForks, "lies": testLies, "several publish": testSeveralPublish,
		"published later": testPublishedLater, "copies": testCopies, "copied forks": testCopiedForks, "stored cosignatures": testStoredCosignatures, "foreign cosignatures": testForeignCosignatures,
		"same checkpoint": testSameCheckpoint, "figures": testFigures, "probes": testProbes, "refusals of an actor": testRefusals, "given up": testGivenUp, "probes, tampered": testProbesTampered,
		"freeze": testFreeze, "freeze at once": testFreezeAtOnce, "frozen, conclude": testFrozenConclude, "frozen, release": testFrozenRelease, "frozen customer": testFrozenCustomer,
		"frozen, tampered": testFrozenTampered, "frozen, continued": testFrozenContinued, "frozen, forged": testFrozenForged, "frozen, most": testFrozenMost, "frozen, load": testFrozenLoad,
		"approvals": testApprovals, "approvals, ended": testApprovalsEnd, "approvals, bound": testApprovalsBound, "approvals, elsewhere": testApprovalsElsewhere,
		"search": testSearch, "search, bounded": testSearchBounded, "customer pages": testCustomerPages, "prove an entry": testProveEntry, "previous request": testPrevious,
		"check": testCheck, "requests": testRequests, "entries": testEntries, "credentials": testCredentials, "uses": testUses, "once": testOnce, "sessions": testSessions, "sessions, tampered": testSessionsTampered, "logins": testLogins, "replicas": testReplicas, "replicated": testReplicated,
		"profiles": testProfiles, "profiles, limits": testProfileLimits, "profiles, tampered": testProfilesTampered,
		"outbox": testOutbox, "outbox, leases": testOutboxLeases, "outbox, crash": testOutboxCrash, "outbox, limits": testOutboxLimits, "outbox, hastened": testOutboxHastened, "outbox, erased": testOutboxErased, "outbox, questions": testOutboxQuestions,
		"approvals, tampered": testApprovalsTampered, "approvals, moved": testApprovalsMoved, "approvals, forbidden": testApprovalsForbidden, "approvals, frozen": testApprovalsFrozen, "unfreeze, approved": testUnfreezeApproved, "unfreeze, asked": testUnfreezeAsked, "unfreeze, ended": testUnfreezeEnded, "approvals, erased": testApprovalsErased,
	}
	maps.Copy(all, moves)
	for name, test := range all {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store, again := open(t)
			f := newFixture(t, store, again)
			f.fresh = func(t *testing.T) *ledger.Store {
				store, _ := open(t)
				store.Clock = ""
				return store
			}
			test(t, f)
		})
	}
}

// fixture is a new ledger with its keys and a clock.
type fixture struct {
	cfg   ledger.Config
	again func(t *testing.T) *ledger.Store
	fresh func(t *testing.T) *ledger.Store // another empty store
	mu    sync.Mutex
	time  time.Time
}

func newFixture(t *testing.T, store *ledger.Store, again func(t *testing.T) *ledger.Store) *fixture {
	t.Helper()
	signerKey, verifierKey, err := ledger.GenerateKey("example.com/ledger")
	must(t, err)
	store.Clock = "" // the fixture has one
	f := &fixture{again: func(t *testing.T) *ledger.Store {
		store := again(t)
		store.Clock = ""
		return store
	}, time: time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)}
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
		must(t, l.Conclude(t.Context(), &permit, record.Outcome{File: []byte("request for " + string(u.CSR))}))
	}
	must(t, l.Release(t.Context(), permit))
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
	must(t, l.Conclude(ctx, &permit, record.Outcome{Err: fault.Unavailable.Errorf("down")}))
	if err := l.Conclude(ctx, &permit, record.Outcome{File: []byte("x")}); fault.KindOf(err) != fault.Conflict {
		t.Errorf("concluded twice: %v", err)
	}
	// Two processes sign the same CSR: one request is issued, and both are told which.
	one, err := l.Authorize(ctx, use("coil", "csr 4", "key 3", "vendor 2"))
	must(t, err)
	two, err := l.Authorize(ctx, use("coil", "csr 4", "key 3", "vendor 2"))
	must(t, err)
	first4 := one.Request
	for _, permit := range []*record.Permit{&one, &two} {
		must(t, l.Conclude(ctx, permit, record.Outcome{File: []byte("request for csr 4")}))
		if permit.Request != first4 {
			t.Errorf("the permit is for %s, want %s", permit.Request, first4)
		}
	}
	for _, name := range []string{"", " a", "a\nb", strings.Repeat("x", 129)} {
		if _, err := l.Authorize(ctx, use(name, "csr", "key", "vendor")); fault.KindOf(err) != fault.Usage {
			t.Errorf("customer %q: %v", name, err)
		}
	}
	const want = "genesis customer intent issued intent superseded issued refused customer intent failed intent intent issued failed"
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
						err = l.Conclude(t.Context(), &permit, record.Outcome{File: []byte("request for " + string(u.CSR))})
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

// testLow: below the reserve of free space only refusals are recorded.
func testLow(t *testing.T, f *fixture) {
	free := uint64(1 << 40)
	f.cfg.Store.Free = func() (uint64, error) { return free, nil }
	l := f.open(t)
	issue(t, l, use("acme", "csr 1", "key 1", "vendor"))
	permit, err := l.Authorize(t.Context(), use("acme", "csr 2", "key 1", "vendor"))
	must(t, err)
	f.pass(openFor)
	free = 16<<20 - 1
	if _, err := l.Authorize(t.Context(), use("acme", "csr 3", "key 1", "vendor")); !errors.Is(err, ledger.ErrStore) || !strings.Contains(err.Error(), "16 MiB") {
		t.Errorf("authorized with little space: %v", err)
	}
	if err := l.Conclude(t.Context(), &permit, record.Outcome{File: []byte("x")}); !errors.Is(err, ledger.ErrStore) {
		t.Errorf("issued with little space: %v", err)
	}
	if _, err := l.Authorize(t.Context(), use("bolt", "csr 4", "key 1", "vendor")); fault.KindOf(err) != fault.Conflict {
		t.Errorf("the key of another customer: %v", err)
	}
	everything := ledger.Freeze{Scope: ledger.FreezeAll, Reason: "x"}
	must(t, l.Freeze(t.Context(), "uid 0", "local", everything))
	if err := l.Unfreeze(t.Context(), "uid 0", "local", everything); !errors.Is(err, ledger.ErrStore) {
		t.Errorf("unfrozen with little space: %v", err)
	}
	free++
	must(t, l.Unfreeze(t.Context(), "uid 0", "local", everything))
	issue(t, l, use("acme", "csr 3", "key 1", "vendor"))
	if got := kinds(t, l); got != "genesis customer intent issued intent refused frozen unfrozen unknown intent issued" {
		t.Errorf("entries %s", got)
	}
	verified(t, l)
}

// openFor is longer than an intent may be open.
const openFor = 16 * time.Minute

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
	if err := l.Conclude(t.Context(), &permit, record.Outcome{File: []byte("x")}); fault.KindOf(err) != fault.Conflict {
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
