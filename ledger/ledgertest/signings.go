package ledgertest

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
)

// testSignings: the uses of the key in a time, from proved entries alone.
func testSignings(t *testing.T, f *fixture) {
	ctx, l := t.Context(), f.open(t)
	began := f.cfg.Now()
	attempts := []record.Attempt{{Time: began, Operation: "id 0", Error: "throttled"}}
	conclude := func(customer, csr string, o record.Outcome) {
		permit, err := l.Authorize(ctx, use(customer, csr, "key of "+customer, "vendor"))
		must(t, err)
		f.pass(time.Second)
		must(t, l.Conclude(ctx, &permit, o))
	}
	conclude("acme", "csr 1", record.Outcome{File: []byte("request"), Operation: "id 1", Attempts: attempts})
	conclude("bolt", "csr 2", record.Outcome{Err: fault.Unavailable.Errorf("down"), Attempts: attempts})
	_, err := l.Authorize(ctx, use("acme", "csr 3", "key of acme", "vendor"))
	must(t, err)
	f.pass(time.Hour)
	_, err = l.Authorize(ctx, use("acme", "csr 4", "key of acme", "vendor 2")) // which closes the one before
	must(t, err)
	issue(t, l, use("acme", "csr 1", "key of acme", "vendor 3")) // and one is superseded
	show := func(from, to time.Time) string {
		t.Helper()
		all, err := l.Signings(ctx, from, to)
		must(t, err)
		var texts []string
		for _, s := range all {
			texts = append(texts, strings.TrimSpace(fmt.Sprintf("%s %d %v %s", s.Kind, len(s.Attempts), s.End.Sub(s.Intent), s.Operation)))
			if s.Erased || s.Vendor == (record.Hash{}) || s.Signed() != (s.Kind != record.KindFailed) {
				t.Errorf("%+v", s)
			}
		}
		return strings.Join(texts, ", ")
	}
	const first, second = "issued 1 1s id 1, failed 1 1s, unknown 0 15m0s", "intent 0 15m0s, issued 0 0s"
	if got := show(began.Add(-time.Hour), began.Add(time.Minute)); got != first {
		t.Errorf("the first minute: %s", got)
	}
	if got := show(began.Add(time.Hour), began.Add(2*time.Hour)); got != second {
		t.Errorf("after an hour: %s", got)
	}
	if got := show(began.Add(10*time.Minute), began.Add(20*time.Minute)); got != "unknown 0 15m0s" {
		t.Errorf("between: %s", got)
	}
	must(t, l.EraseCustomer(ctx, "uid 1000", "local", "bolt"))
	all, err := l.Signings(ctx, began, began.Add(time.Minute))
	must(t, err)
	if len(all) != 3 || !all[1].Erased || all[0].Erased || all[1].Attempts != nil {
		t.Errorf("after an erasure: %+v", all)
	}
	for _, attack := range []string{"UPDATE openings SET data = salt WHERE name = 'attempts'", "UPDATE entries SET leaf = (SELECT leaf FROM entries WHERE idx = 2) WHERE idx = 3", "DELETE FROM entries WHERE idx = 3"} {
		f.exec(t, attack)
		if _, err := l.Signings(ctx, began, began.Add(time.Minute)); !errors.Is(err, ledger.ErrTampered) {
			t.Errorf("%s: %v", attack, err)
		}
	}
}
