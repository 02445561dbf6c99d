package ledgertest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
	"hsmsign/ledger/witnesstest"
)

// origin is that of the fixture's ledger.
const origin = "example.com/ledger"

// witnesses starts n witnesses of the ledger, of both algorithms in turn, and configures them.
func (f *fixture) witnesses(t *testing.T, n int) (all []*witnesstest.Witness) {
	t.Helper()
	for i := range n {
		algorithm := []witnesstest.Algorithm{witnesstest.Ed25519, witnesstest.MLDSA44}[i%2]
		name := fmt.Sprintf("w%d", i)
		w, err := witnesstest.Start("witness.example/"+name, algorithm, f.cfg.Verifier)
		must(t, err)
		t.Cleanup(w.Stop)
		all = append(all, w)
		f.cfg.Witnesses = append(f.cfg.Witnesses, ledger.Witness{Name: name, Operator: "operator of " + name, URL: w.URL, Verifier: w.Key})
	}
	return all
}

// eventually waits until a condition is true.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); !condition(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after 15 seconds: %s", what)
		}
	}
}

// size returns the size of the ledger.
func size(t *testing.T, l *ledger.Ledger) int64 {
	t.Helper()
	head, err := l.Head(t.Context())
	must(t, err)
	return head.Size
}

// testWitnesses: after each commit the newest checkpoint is cosigned, and every process and every proof has the cosignatures.
func testWitnesses(t *testing.T, f *fixture) {
	ctx, all := t.Context(), f.witnesses(t, 2)
	f.cfg.Required = 2
	l := f.open(t)
	for i := range 3 {
		permit := issue(t, l, use("acme", fmt.Sprint("csr ", i), "key 1", "vendor"))
		id, err := record.ParseID(permit.Request)
		must(t, err)
		data, err := l.Prove(ctx, id)
		must(t, err)
		proven, err := ledger.CheckProof(data, f.cfg.Verifier)
		must(t, err)
		found, err := ledger.FindCosignatures(proven.Checkpoint, f.cfg.Witnesses)
		must(t, err)
		if proven.Entry.Request != id || found.Operators() != 2 || time.Since(found.Cosignatures[1].Time).Abs() > time.Minute {
			t.Errorf("a proof with %+v", found.Cosignatures)
		}
	}
	must(t, l.Close())
	reader := f.cfg
	reader.Key, reader.Store = "", f.again(t)
	for i := range reader.Witnesses {
		reader.Witnesses[i].URL = ""
	}
	r, err := ledger.Open(ctx, reader)
	must(t, err)
	cosigned, err := r.Cosigned(ctx, 2)
	must(t, err)
	if cosigned.Operators() != 2 || cosigned.Size != size(t, r) || all[0].Size(origin) != cosigned.Size {
		t.Errorf("another process sees %+v", cosigned)
	}
	statuses, err := r.WitnessStatuses(ctx)
	must(t, err)
	for i, s := range statuses {
		if s.Size != cosigned.Size || s.Failure != "" || s.Alarm || s.Name != fmt.Sprint("w", i) {
			t.Errorf("status %+v", s)
		}
	}
	verified(t, r)
	must(t, r.Close())
}

// within issues with a time limit.
func within(t *testing.T, l *ledger.Ledger, d time.Duration, u record.Use) error {
	t.Helper()
	permit, err := l.Authorize(t.Context(), u)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	if permit.Stored == nil {
		if err := l.Conclude(ctx, &permit, record.Outcome{File: []byte("request for " + string(u.CSR))}); err != nil {
			return err
		}
	}
	return l.Release(ctx, permit)
}

// testRequired: without enough witnesses nothing is released, and the next try finds the stored request.
func testRequired(t *testing.T, f *fixture) {
	all := f.witnesses(t, 3)
	f.cfg.Witnesses[2].Operator = f.cfg.Witnesses[1].Operator
	f.cfg.Required = 2
	l := f.open(t)
	// The two witnesses of one operator count once.
	all[0].Answer(witnesstest.Down)
	u := use("acme", "csr 1", "key 1", "vendor")
	began := time.Now()
	err := within(t, l, 15*time.Second, u)
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it gave up after %v", took)
	}
	if !errors.Is(err, ledger.ErrStore) || !strings.Contains(err.Error(), "1 of 2 required witnesses") || !strings.Contains(err.Error(), "w0: ") || fault.Hint(err) == "" {
		t.Errorf("one of two operators: %v", err)
	}
	if err := within(t, l, 50*time.Millisecond, u); !errors.Is(err, ledger.ErrStore) || !strings.Contains(err.Error(), "1 of 2") {
		t.Errorf("the stored request: %v", err)
	}
	permit, err := l.Authorize(t.Context(), u)
	must(t, err)
	interrupted, cancel := context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	if err := l.Release(interrupted, permit); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	all[0].Answer(nil)
	if err := l.Release(t.Context(), permit); err != nil || string(permit.Stored) != "request for csr 1" {
		t.Errorf("when the witness is back: %+v, %v", permit, err)
	}
	// One that is slow does not delay the others.
	all[2].Answer(witnesstest.Slow)
	for i := range 3 {
		if err := within(t, l, 5*time.Second, use("acme", fmt.Sprint("csr 2", i), "key 1", "vendor")); err != nil {
			t.Errorf("with a slow one: %v", err)
		}
	}
	if got := strings.Count(kinds(t, l), "issued"); got != 4 {
		t.Errorf("%d issued", got)
	}
	began = time.Now()
	must(t, l.Close()) // the slow one is left
	if took := time.Since(began); took > 6*time.Second {
		t.Errorf("Close took %v", took)
	}
	f.cfg.Required = 3
	if _, err := ledger.Open(t.Context(), f.cfg); fault.KindOf(err) != fault.Usage {
		t.Errorf("more operators than there are: %v", err)
	}
	f.cfg.Required, f.cfg.Witnesses[0].URL = 2, ""
	if _, err := ledger.Open(t.Context(), f.cfg); fault.KindOf(err) != fault.Usage || !strings.Contains(err.Error(), "with a URL have 1") {
		t.Errorf("a required witness that cannot be asked: %v", err)
	}
}

// testLies: what is not a valid cosignature of this checkpoint does not count.
func testLies(t *testing.T, f *fixture) {
	w := f.witnesses(t, 2)[1]
	f.cfg.Witnesses = f.cfg.Witnesses[1:]
	f.cfg.Required = 1
	l := f.open(t)
	issue(t, l, use("acme", "csr 1", "key 1", "vendor"))
	for name, answer := range map[string]http.HandlerFunc{
		"garbage": w.Garbage, "another checkpoint": w.Other, "forbidden": witnesstest.Status(403, ""), "smaller size": witnesstest.Conflict(1),
	} {
		w.Answer(answer)
		err := within(t, l, 300*time.Millisecond, use("acme", name, "key 1", "vendor"))
		if !errors.Is(err, ledger.ErrStore) || !strings.Contains(err.Error(), "0 of 1 required witnesses") {
			t.Errorf("%s: %v", name, err)
		}
	}
	w.Answer(nil)
	issue(t, l, use("acme", "garbage", "key 1", "vendor"))
	verified(t, l)
	must(t, l.Close())
}

// awaitAlarm waits for a stored alarm.
func (f *fixture) awaitAlarm(t *testing.T) {
	t.Helper()
	eventually(t, "no alarm", func() bool {
		var n int
		must(t, f.cfg.Store.DB.QueryRowContext(t.Context(), "SELECT count(*) FROM witnesses WHERE alarm = 1").Scan(&n))
		return n > 0
	})
}

// alarmed waits for an alarm, and checks that the ledger stops, and what is said.
func (f *fixture) alarmed(t *testing.T, l *ledger.Ledger, want string) {
	t.Helper()
	f.awaitAlarm(t)
	_, err := l.Authorize(t.Context(), use("acme", "csr "+record.NewID().String(), "key 1", "vendor"))
	if !errors.Is(err, ledger.ErrTampered) || !strings.Contains(err.Error(), `alarm of the witness "w0"`) || !strings.Contains(err.Error(), want) || fault.Hint(err) == "" {
		t.Errorf("%v, want %q", err, want)
	}
}

// testAlarms: a rollback of the store with everything beside it is found by a witness, and the ledger stays stopped until the
// witness cosigns.
func testAlarms(t *testing.T, f *fixture) {
	w := f.witnesses(t, 1)[0]
	l := f.open(t)
	issue(t, l, use("acme", "csr 1", "key 1", "vendor"))
	restore := f.snapshot(t)
	for i := range 9 {
		issue(t, l, use("acme", fmt.Sprint("csr ", i), "key 1", "vendor"))
	}
	must(t, l.Close())
	before := size(t, l)
	if got := w.Size(origin); got != before {
		t.Fatalf("the witness has %d of %d", got, before)
	}
	restore(t)
	l = f.open(t)
	f.alarmed(t, l, fmt.Sprintf("it has cosigned %d entries, and the store has", before))
	must(t, l.Close()) // the alarm was reported
	if _, err := ledger.Open(t.Context(), f.cfg); !errors.Is(err, ledger.ErrTampered) {
		t.Errorf("opened after an alarm: %v", err)
	}
	w.Answer(witnesstest.Down)
	if _, err := ledger.Open(t.Context(), f.cfg); !errors.Is(err, ledger.ErrTampered) || !strings.Contains(err.Error(), "since ") {
		t.Errorf("opened after an alarm, the witness is down: %v", err)
	}
	reader := f.cfg
	reader.Key = ""
	r, err := ledger.Open(t.Context(), reader)
	must(t, err)
	statuses, err := r.WitnessStatuses(t.Context())
	if err != nil || !statuses[0].Alarm || !strings.Contains(statuses[0].Failure, "older copy") || statuses[0].Failed.IsZero() {
		t.Errorf("status %+v, %v", statuses, err)
	}
	// A witness of the same key that has forgotten the log, as after a mistake of its own.
	w.Forget(origin)
	w.Answer(nil)
	l = f.open(t)
	issue(t, l, use("acme", "csr 99", "key 1", "vendor"))
	must(t, l.Close())
	if statuses, err := r.WitnessStatuses(t.Context()); err != nil || statuses[0].Alarm || statuses[0].Size != size(t, l) {
		t.Errorf("status after the alarm %+v, %v", statuses, err)
	}
	// The required cosignatures are not there, so nothing is released by the process that finds it.
	restore(t)
	f.cfg.Required = 1
	w.Answer(w.Late(300 * time.Millisecond))
	l = f.open(t)
	if err := within(t, l, 15*time.Second, use("acme", "csr 100", "key 1", "vendor")); !errors.Is(err, ledger.ErrTampered) {
		t.Errorf("released on an older copy: %v", err)
	}
}

// testWitnessedForks: a fork signed with the right key is found by the witness, whether it has fewer entries, as many or more.
func testWitnessedForks(t *testing.T, f *fixture) {
	w := f.witnesses(t, 1)[0]
	l := f.open(t)
	issue(t, l, use("acme", "csr 1", "key 1", "vendor"))
	restore := f.snapshot(t)
	for i := range 3 {
		issue(t, l, use("acme", fmt.Sprint("csr of the owner ", i), "key 1", "vendor"))
	}
	must(t, l.Close())
	honest := w.Size(origin)
	thief := f.cfg
	thief.Witnesses = nil
	for _, tt := range []struct {
		issues int
		want   string
	}{{1, "it has cosigned"}, {3, "are not those of this tree (409)"}, {5, "are not those of this tree (422)"}} {
		restore(t)
		forger, err := ledger.Open(t.Context(), thief)
		must(t, err)
		for i := range tt.issues {
			issue(t, forger, use("acme", fmt.Sprint("csr of the thief ", i), "key 1", "vendor"))
		}
		verified(t, forger)
		must(t, forger.Close())
		l := f.open(t)
		f.awaitAlarm(t)
		if err := l.Close(); !errors.Is(err, ledger.ErrTampered) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Close: %v, want %q", err, tt.want)
		}
		if _, err := ledger.Open(t.Context(), f.cfg); !errors.Is(err, ledger.ErrTampered) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Open: %v, want %q", err, tt.want)
		}
	}
	if got := w.Size(origin); got != honest {
		t.Errorf("the witness has cosigned %d entries", got)
	}
}

// testSeveralPublish: two processes append and publish at once. What the other has published is no alarm.
func testSeveralPublish(t *testing.T, f *fixture) {
	all := f.witnesses(t, 2)
	f.cfg.Required = 2
	var processes sync.WaitGroup
	for process := range 2 {
		cfg := f.cfg
		cfg.Store = f.again(t)
		l, err := ledger.Open(t.Context(), cfg)
		must(t, err)
		processes.Go(func() {
			for i := range 15 {
				if err := within(t, l, 15*time.Second, use("acme", fmt.Sprint("csr ", i, " of ", process), "key 1", "vendor")); err != nil {
					t.Errorf("process %d: %v", process, err)
					return
				}
			}
			if err := l.Close(); err != nil {
				t.Errorf("process %d: %v", process, err)
			}
		})
	}
	processes.Wait()
	l := f.open(t)
	verified(t, l)
	if got := strings.Count(kinds(t, l), "issued"); got != 30 {
		t.Errorf("%d issued", got)
	}
	eventually(t, "the newest checkpoint is not cosigned", func() bool {
		return all[0].Size(origin) == size(t, l) && all[1].Size(origin) == size(t, l)
	})
	var rows int
	must(t, f.cfg.Store.DB.QueryRowContext(t.Context(), "SELECT count(*) FROM cosignatures").Scan(&rows))
	if rows > 2*17 {
		t.Errorf("%d cosignatures are stored", rows)
	}
}

// testPublishedLater: a process that was killed between commit and cosigning leaves the publishing to the next one, which appends
// nothing.
func testPublishedLater(t *testing.T, f *fixture) {
	killed := f.open(t)
	issue(t, killed, use("acme", "csr 1", "key 1", "vendor"))
	must(t, killed.Close())
	w := f.witnesses(t, 1)[0]
	l := f.open(t)
	must(t, l.Close())
	if got := w.Size(origin); got != size(t, killed) {
		t.Errorf("the witness has %d of %d", got, size(t, killed))
	}
	// With cosignatures required the request that was not released is released by the next try.
	f.cfg.Required = 1
	l = f.open(t)
	if permit := issue(t, l, use("acme", "csr 1", "key 1", "vendor")); permit.Stored == nil {
		t.Errorf("%+v", permit)
	}
	must(t, l.Close())
}
