package ledgertest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"hsmsign/fault"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
)

// testApprovalsForbidden: verify reports entries about approvals that the rules do not allow, as a process with the checkpoint key
// could append them.
func testApprovalsForbidden(t *testing.T, f *fixture) {
	ctx, l := t.Context(), f.open(t)
	u := asks("acme", "csr 1", "key 1")
	w := waits(t, l, u)
	found, err := l.Record(ctx, size(t, l)-1)
	must(t, err)
	asked := *found.Entry
	report := func() []string {
		t.Helper()
		r, err := l.Verify(ctx, nil)
		must(t, err)
		var all []string
		for _, d := range r.Defects {
			all = append(all, d.Text)
		}
		return all
	}
	if defects := report(); len(defects) > 0 {
		t.Fatalf("before: %q", defects)
	}
	for _, tt := range []struct {
		kind   string
		change func(e *record.Entry)
		want   string
	}{
		{record.KindIntent, func(*record.Entry) {}, "the entry is about something that was not approved"},
		{record.KindPending, func(*record.Entry) {}, "the same was asked twice under one id"},
		{record.KindApproved, func(*record.Entry) {}, "somebody approved what they had asked for"},
		{record.KindApproved, func(e *record.Entry) { e.Request = record.NewID() }, "the entry decides about something that nobody asked"},
		{record.KindRejected, func(e *record.Entry) { e.Actor = record.NewID() }, ""},
		{record.KindApproved, func(e *record.Entry) { e.Actor = record.NewID() }, "the entry decides about something that was decided"},
	} {
		before := report()
		e := asked
		e.Kind, e.Commitments = tt.kind, nil
		tt.change(&e)
		must(t, l.Append(ctx, func(_ context.Context, tx *ledger.Tx) error {
			_, err := tx.Append(&e)
			return err
		}))
		has := func(all []string) bool {
			return slices.ContainsFunc(all, func(text string) bool { return strings.Contains(text, tt.want) })
		}
		if tt.want != "" && (has(before) || !has(report())) {
			t.Errorf("%s: %q before, then %q; want %q", tt.kind, before, report(), tt.want)
		}
	}
	if err := l.Decide(ctx, approval(w.ID, u, "bo")); err != nil && fault.KindOf(err) != fault.Conflict && !errors.Is(err, ledger.ErrTampered) {
		t.Errorf("a decision after them: %v", err)
	}
}
