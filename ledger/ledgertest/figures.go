package ledgertest

import (
	"fmt"
	"testing"

	"hsmsign/fault"
	"hsmsign/ledger"
)

// testFigures: the size, what is cosigned, and what the process counted.
func testFigures(t *testing.T, f *fixture) {
	ctx, all := t.Context(), f.witnesses(t, 2)
	l := f.open(t)
	figures := func() ledger.Figures {
		t.Helper()
		found, err := l.Figures(ctx)
		must(t, err)
		return found
	}
	issue(t, l, use("acme", "csr 0", "key 0", "vendor"))
	eventually(t, "all is cosigned", func() bool {
		found := figures()
		return found.Witnessed && found.Entries == size(t, l) && found.Cosigned == found.Entries && found.Witnesses[0].Size == found.Entries && found.Witnesses[1].Size == found.Entries
	})
	cosigned := figures().Entries
	if c := l.Counts(); c.NewKeys != 0 || c.Failures["w0"]+c.Failures["w1"] != 0 {
		t.Errorf("at the start: %+v", c)
	}
	for _, w := range all {
		w.Stop()
	}
	for i := range 3 { // the last key is not new
		issue(t, l, use("acme", fmt.Sprint("csr ", i+1), fmt.Sprint("key ", min(i+1, 2)), "vendor"))
	}
	if _, err := l.Authorize(ctx, use("bolt", "csr 9", "key 1", "vendor")); fault.KindOf(err) != fault.Conflict || fault.Rule(err) != "ledger.foreign-key" {
		t.Errorf("a foreign key: %v, rule %q", err, fault.Rule(err))
	}
	issue(t, l, use("bolt", "csr of bolt", "key of bolt", "vendor")) // a new customer
	eventually(t, "failures are counted", func() bool { c := l.Counts(); return c.Failures["w0"] > 0 && c.Failures["w1"] > 0 })
	if found := figures(); found.Cosigned != cosigned || found.Entries != size(t, l) || found.Entries <= cosigned {
		t.Errorf("without witnesses: %+v, %d were cosigned", found, cosigned)
	}
	eventually(t, "a failure is shown", func() bool { return figures().Witnesses[0].Failure != "" })
	if c := l.Counts(); c.NewKeys != 2 {
		t.Errorf("%d new keys of known customers", c.NewKeys)
	}
	other, err := ledger.Open(ctx, ledger.Config{Store: f.again(t), Verifier: f.cfg.Verifier})
	must(t, err)
	if c := other.Counts(); c.NewKeys != 0 || c.Failures != nil {
		t.Errorf("a reader: %+v", c)
	}
	found, err := other.Figures(ctx)
	must(t, err)
	if found.Witnessed || found.Cosigned != 0 || found.Entries != size(t, l) {
		t.Errorf("a reader without witnesses: %+v", found)
	}
	must(t, other.Close())
}
