package ledgertest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"hsmsign/ledger"
	"hsmsign/ledger/record"
)

// testFrozenTampered: a freeze that is hidden in the store is noticed: at once by a process that has seen it, and by Verify.
func testFrozenTampered(t *testing.T, f *fixture) {
	ctx, l := t.Context(), f.open(t)
	first := issue(t, l, frozenUse("acme", "csr 1"))
	must(t, l.Freeze(ctx, "uid 0", "local", scopes[2]))
	must(t, l.Freeze(ctx, "uid 0", "local", scopes[1]))
	restore := f.snapshot(t)
	for _, tt := range []struct{ attack, defect string }{
		{"UPDATE entries SET kind = 'watched' WHERE idx = (SELECT max(idx) FROM entries)", "the list of entries does not say"},
		{"UPDATE entries SET kind = 'watched' WHERE kind = 'frozen'", "the list of entries does not say"},
		{"DELETE FROM entries WHERE kind = 'frozen'", "the entry is missing"},
	} {
		f.exec(t, tt.attack)
		for what, try := range map[string]func() error{
			"authorize": func() error { _, err := l.Authorize(ctx, frozenUse("acme", "csr 2")); return err },
			"check":     func() error { _, err := l.Check(ctx, frozenUse("acme", "csr 2")); return err },
			"release":   func() error { return l.Release(ctx, first) },
			"freezes":   func() error { _, err := l.Freezes(ctx); return err },
		} {
			if err := try(); !errors.Is(err, ledger.ErrTampered) || !strings.Contains(err.Error(), "which says what is frozen, is hidden") {
				t.Errorf("%s, %s: %v", tt.attack, what, err)
			}
		}
		report, err := l.Verify(ctx, nil)
		must(t, err)
		if got := fmt.Sprint(report.Defects); !strings.Contains(got, tt.defect) {
			t.Errorf("%s: %s", tt.attack, got)
		}
		restore(t)
	}
	for _, tt := range []struct{ attack, defect string }{
		{"UPDATE openings SET data = salt WHERE name = 'freezes'", "the stored freezes is not the one that was recorded"},
		{"DELETE FROM openings WHERE name = 'freezes'", "what is frozen from the entry on is missing"},
		{"UPDATE entries SET kind = 'frozen' WHERE kind = 'intent'; UPDATE entries SET kind = 'x' WHERE idx > 3", "the list of entries does not say"},
	} {
		for statement := range strings.SplitSeq(tt.attack, "; ") {
			f.exec(t, statement)
		}
		if _, err := f.another(t).Authorize(ctx, frozenUse("bolt", "csr 2")); !errors.Is(err, ledger.ErrTampered) {
			t.Errorf("%s: a new process: %v", tt.attack, err)
		}
		report, err := l.Verify(ctx, nil)
		must(t, err)
		if got := fmt.Sprint(report.Defects); !strings.Contains(got, tt.defect) {
			t.Errorf("%s: %s", tt.attack, got)
		}
		restore(t)
	}
	verified(t, l)
	// A process that a hidden freeze deceived leaves an entry that shows it.
	f.exec(t, "UPDATE entries SET kind = 'x' WHERE kind = 'frozen'")
	deceived := f.another(t)
	issue(t, deceived, frozenUse("acme", "csr 2"))
	f.exec(t, "UPDATE entries SET kind = 'frozen' WHERE kind = 'x'")
	report, err := l.Verify(ctx, nil)
	must(t, err)
	if got := fmt.Sprint(report.Defects); strings.Count(got, "the entry was made while signing was frozen") != 2 {
		t.Errorf("defects %s", got)
	}
}

// testFrozenForged: somebody who has the checkpoint key appends an entry that ends a freeze among others. Verify tells.
func testFrozenForged(t *testing.T, f *fixture) {
	ctx, l := t.Context(), f.open(t)
	issue(t, l, frozenUse("acme", "csr 1"))
	customers, err := l.Customers(ctx, "acme")
	must(t, err)
	acme := customers[0].ID
	must(t, l.Freeze(ctx, "uid 0", "local", scopes[2])) // entry 4
	must(t, l.Freeze(ctx, "uid 0", "local", scopes[1])) // entry 5
	portal := `{"entry":5,"scope":"caller","name":"portal"}`
	ofAcme := fmt.Sprintf(`{"entry":4,"scope":"customer","customer":"%s"}`, acme)
	for _, tt := range []struct {
		kind     string
		customer record.ID
		list     string
		ok       bool
	}{
		{record.KindUnfrozen, acme, "[" + portal + "]", true}, {record.KindUnfrozen, record.ID{}, "[" + ofAcme + "]", true},
		{record.KindUnfrozen, record.ID{}, "[" + portal + "]", false}, // it does not say which customer
		{record.KindUnfrozen, acme, "[]", false}, {record.KindUnfrozen, acme, "[" + ofAcme + "," + portal + "]", false},
		{record.KindFrozen, record.ID{}, "[" + ofAcme + "," + portal + `,{"entry":6,"scope":"all"}]`, true},
		{record.KindFrozen, record.ID{}, "[" + ofAcme + "," + portal + `,{"entry":5,"scope":"all"}]`, false},
		{record.KindFrozen, record.ID{}, "[" + ofAcme + `,{"entry":6,"scope":"all"}]`, false}, {record.KindFrozen, acme, "{}", false},
	} {
		restore := f.snapshot(t)
		forger := f.another(t)
		must(t, forger.Append(ctx, func(_ context.Context, tx *ledger.Tx) error {
			_, err := tx.Append(&record.Entry{Kind: tt.kind, Customer: tt.customer}, record.NewOpening("freezes", []byte(tt.list)))
			return err
		}))
		report, err := forger.Verify(ctx, nil)
		must(t, err)
		if got := fmt.Sprint(report.Defects); (len(report.Defects) == 0) != tt.ok || !tt.ok && !strings.Contains(got, "what is frozen from the entry on") {
			t.Errorf("%s %s: %s", tt.kind, tt.list, got)
		}
		if strings.Contains(tt.list, `{"entry":5,"scope":"all"}`) {
			if now, err := forger.Freezes(ctx); !errors.Is(err, ledger.ErrTampered) {
				t.Errorf("a freeze that its entry does not say: %+v, %v", now, err)
			}
		}
		must(t, forger.Close())
		restore(t)
		for _, table := range tables {
			f.exec(t, "DROP TABLE old_"+table)
		}
	}
}
