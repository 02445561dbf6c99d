package ledgertest

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"hsmsign/ledger"
	"hsmsign/ledger/record"
)

// testStoredCosignatures: the stored cosignatures are a cache. What does not verify does not count, and Verify reports it.
func testStoredCosignatures(t *testing.T, f *fixture) {
	f.witnesses(t, 2)
	f.cfg.Required = 2
	l := f.open(t)
	permit := issue(t, l, use("acme", "csr 1", "key 1", "vendor"))
	id, err := record.ParseID(permit.Request)
	must(t, err)
	must(t, l.Close())
	restore := f.snapshot(t)
	for _, tt := range []struct {
		name, attack, defect string
		operators            int
	}{
		{"a signature of nobody", "UPDATE cosignatures SET line = checkpoint", "is not valid", 0},
		{"a signature of another witness", "UPDATE cosignatures SET line = (SELECT line FROM cosignatures c WHERE c.size = cosignatures.size ORDER BY witness LIMIT 1)", "is not valid", 1},
		{"another size", "UPDATE cosignatures SET size = size - 1", "it is one of", 0},
		{"a checkpoint of nobody", "UPDATE cosignatures SET checkpoint = line", "it is not signed", 0},
		{"an unknown witness", "UPDATE cosignatures SET witness = 'x' WHERE witness LIKE '%w0%'", "", 1},
		{"a deleted row", "DELETE FROM cosignatures WHERE witness LIKE '%w0%'", "", 1},
	} {
		restore(t)
		f.exec(t, tt.attack)
		r, err := ledger.Open(t.Context(), ledger.Config{Store: f.cfg.Store, Verifier: f.cfg.Verifier, Witnesses: f.cfg.Witnesses})
		must(t, err)
		cosigned, err := r.Cosigned(t.Context(), 2)
		must(t, err)
		if cosigned.Operators() != tt.operators {
			t.Errorf("%s: %d operators count", tt.name, cosigned.Operators())
		}
		data, err := r.Prove(t.Context(), id)
		must(t, err)
		proven, err := ledger.CheckProof(data, f.cfg.Verifier)
		must(t, err)
		if found, err := ledger.FindCosignatures(proven.Checkpoint, f.cfg.Witnesses); err != nil || found.Operators() != tt.operators {
			t.Errorf("%s: the proof has %+v, %v", tt.name, found, err)
		}
		report, err := r.Verify(t.Context(), nil)
		must(t, err)
		if got := fmt.Sprint(report.Defects); tt.defect == "" && len(report.Defects) > 0 || !strings.Contains(got, tt.defect) {
			t.Errorf("%s: defects %s", tt.name, got)
		}
		must(t, r.Close())
	}
	// The entry that the list of requests names must be the one with which the request was issued.
	restore(t)
	f.exec(t, "UPDATE requests SET issued = issued - 1")
	if _, err := l.Prove(t.Context(), id); !errors.Is(err, ledger.ErrTampered) {
		t.Errorf("a proof of another entry: %v", err)
	}
}

// testForeignCosignatures: a cosigned checkpoint of a fork, signed with the right keys, does not count.
func testForeignCosignatures(t *testing.T, f *fixture) {
	w := f.witnesses(t, 1)[0]
	restore := f.snapshot(t)
	forger := f.open(t)
	issue(t, forger, use("acme", "csr of the thief", "key 1", "vendor"))
	must(t, forger.Close())
	size, err := forger.Cosigned(t.Context(), 1)
	must(t, err)
	var id string
	var line []byte
	must(t, f.cfg.Store.DB.QueryRowContext(t.Context(), fmt.Sprintf("SELECT witness, line FROM cosignatures WHERE size = %d", size.Size)).Scan(&id, &line))
	restore(t)
	w.Forget(origin)
	l := f.open(t)
	permit := issue(t, l, use("acme", "csr 1", "key 1", "vendor"))
	issue(t, l, use("acme", "csr 2", "key 1", "vendor"))
	must(t, l.Close())
	f.exec(t, "DELETE FROM cosignatures")
	f.exec(t, "INSERT INTO cosignatures (size, witness, checkpoint, line) VALUES (?, ?, ?, ?)", size.Size, id, size.Signed, line)
	if found, err := l.Cosigned(t.Context(), 1); err != nil || found != nil {
		t.Errorf("the checkpoint of a fork counts: %+v, %v", found, err)
	}
	request, err := record.ParseID(permit.Request)
	must(t, err)
	if data, err := l.Prove(t.Context(), request); err != nil || strings.Contains(string(data), string(line)) {
		t.Errorf("a proof %s, %v", data, err)
	}
	report, err := l.Verify(t.Context(), nil)
	must(t, err)
	if got := fmt.Sprint(report.Defects); !strings.Contains(got, "not those of the checkpoint") {
		t.Errorf("defects %s", got)
	}
}

// testSameCheckpoint: witnesses of different speed cosign the same checkpoints, also while many are made.
func testSameCheckpoint(t *testing.T, f *fixture) {
	all := f.witnesses(t, 2)
	all[0].Answer(all[0].Late(20 * time.Millisecond))
	all[1].Answer(all[1].Late(33 * time.Millisecond))
	l := f.open(t)
	var callers sync.WaitGroup
	for caller := range 4 {
		callers.Go(func() {
			for i := range 50 {
				if err := l.AddCustomer(t.Context(), "uid 1000", "local", ledger.Customer{Name: fmt.Sprint(caller, "/", i)}); err != nil {
					t.Error(err)
				}
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	callers.Wait()
	must(t, l.Close())
	var sizes, rows int
	must(t, f.cfg.Store.DB.QueryRowContext(t.Context(), "SELECT count(DISTINCT size), count(*) FROM cosignatures").Scan(&sizes, &rows))
	if sizes < 3 || rows < 2*sizes-2 {
		t.Errorf("%d cosignatures of %d checkpoints", rows, sizes)
	}
}
