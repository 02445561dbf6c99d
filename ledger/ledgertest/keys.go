package ledgertest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"hsmsign/fault"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
)

// testKeys: a known customer's new key is an entry; a key moves from one customer to another on purpose only.
func testKeys(t *testing.T, f *fixture) {
	ctx, l := t.Context(), f.open(t)
	issue(t, l, use("acme", "csr 1", "key 1", "vendor")) // an unknown customer: the entry is "customer"
	issue(t, l, use("acme", "csr 2", "key 1", "vendor"))
	issue(t, l, use("acme", "csr 3", "key 2", "vendor"))
	must(t, l.AddCustomer(ctx, "uid 1000", "local", ledger.Customer{Name: "bolt"}))
	found, err := l.List(ctx, ledger.Query{Kind: record.KindNewKey, Limit: 10})
	must(t, err)
	if len(found) != 1 || found[0].Customer != "acme" || found[0].Entry.SPKI != record.SHA256([]byte("key 2")) {
		t.Errorf("new keys: %+v", found)
	}
	reassign := func(key, from, to string) error {
		return l.Reassign(ctx, "uid 1000", "local", record.SHA256([]byte(key)), from, to)
	}
	for _, tt := range []struct {
		key, from, to string
		kind          fault.Kind
	}{
		{"key 1", "acme", "acme", fault.Usage}, {"key 1", "coil", "bolt", fault.NotFound}, {"key 1", "acme", "coil", fault.NotFound},
		{"key 9", "acme", "bolt", fault.NotFound}, {"key 1", "bolt", "acme", fault.Conflict},
	} {
		if err := reassign(tt.key, tt.from, tt.to); fault.KindOf(err) != tt.kind || fault.Hint(err) == "" {
			t.Errorf("%+v: %v", tt, err)
		}
	}
	open, err := l.Authorize(ctx, use("acme", "csr 4", "key 1", "vendor"))
	must(t, err)
	must(t, reassign("key 1", "acme", "bolt"))
	// The rules are checked again when the signature was made.
	if err := l.Conclude(ctx, &open, record.Outcome{File: []byte("request")}); fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), "ledger.foreign-key") {
		t.Errorf("concluded for the customer that the key belonged to: %v", err)
	}
	if _, err := l.Authorize(ctx, use("acme", "csr 1", "key 1", "vendor")); fault.KindOf(err) != fault.Conflict {
		t.Errorf("the first customer uses the key: %v", err)
	}
	if again := issue(t, l, use("bolt", "csr 1", "key 1", "vendor")); again.Stored != nil {
		t.Error("the request of the first customer was returned")
	}
	moved, err := l.List(ctx, ledger.Query{Customer: "bolt", Kind: record.KindReassigned, Limit: 10})
	must(t, err)
	if len(moved) != 1 || moved[0].Customer != "bolt" || moved[0].From != "acme" {
		t.Errorf("reassigned: %+v", moved)
	}
	const want = "genesis customer intent issued intent issued new-key intent issued customer intent reassigned failed refused intent issued"
	if got := kinds(t, l); got != want {
		t.Errorf("entries %s; want %s", got, want)
	}
	verified(t, l)
	// An erased customer has no keys: another one may use them, and then they are not new-key of the first.
	must(t, l.EraseCustomer(ctx, "uid 1000", "local", "acme"))
	issue(t, l, use("bolt", "csr 5", "key 2", "vendor"))
	must(t, l.EraseCustomer(ctx, "uid 1000", "local", "bolt"))
	issue(t, l, use("coil", "csr 1", "key 1", "vendor"))
	verified(t, l)
	for _, attack := range []string{"UPDATE keys SET entry = 1", "UPDATE keys SET customer = spki", "DELETE FROM keys"} {
		f.exec(t, attack)
		report, err := l.Verify(ctx, nil)
		must(t, err)
		if len(report.Defects) != 1 {
			t.Errorf("%s: %+v", attack, report.Defects)
		}
	}
}

// testForbidden: entries that the rules do not allow are defects, also under a signature of the right key.
func testForbidden(t *testing.T, f *fixture) {
	l := f.open(t)
	issue(t, l, use("acme", "csr 1", "key 1", "vendor"))
	entries, err := l.List(t.Context(), ledger.Query{Kind: record.KindIntent, Limit: 1})
	must(t, err)
	intent := *entries[0].Entry
	for _, tt := range []struct {
		want   string
		change func(e *record.Entry)
	}{
		{"belongs to another customer", func(e *record.Entry) { e.Customer, e.Request = record.NewID(), record.NewID() }},
		{"is not new", func(e *record.Entry) { e.Kind, e.Request = record.KindNewKey, record.ID{} }},
		{"did not belong to its first customer", func(e *record.Entry) {
			e.Kind, e.Request, e.From = record.KindReassigned, record.ID{}, record.NewID()
		}},
	} {
		forbidden := intent
		forbidden.Commitments = nil
		tt.change(&forbidden)
		appendEntry(t, l, forbidden)
		report, err := l.Verify(t.Context(), nil)
		must(t, err)
		found := false
		for _, d := range report.Defects {
			found = found || d.Entry == report.Entries-1 && strings.Contains(d.Text, tt.want)
		}
		if !found {
			t.Errorf("%q: %+v", tt.want, report.Defects)
		}
	}
}

// appendEntry appends an entry without the rules.
func appendEntry(t *testing.T, l *ledger.Ledger, e record.Entry) {
	t.Helper()
	must(t, l.Append(t.Context(), func(_ context.Context, tx *ledger.Tx) error {
		_, err := tx.Append(&e)
		return err
	}))
}

// testAttempts: the key store's id and the failed attempts are in the entry of the outcome, also of one that was refused.
func testAttempts(t *testing.T, f *fixture) {
	ctx, l := t.Context(), f.open(t)
	attempts := []record.Attempt{{Time: f.cfg.Now(), Operation: "id 1", Error: "throttled"}, {Time: f.cfg.Now(), Error: "no answer"}}
	conclude := func(csr string, o record.Outcome) {
		permit, err := l.Authorize(ctx, use("acme", csr, "key 1", "vendor"))
		must(t, err)
		o.Attempts = attempts
		must(t, l.Conclude(ctx, &permit, o))
	}
	conclude("csr 1", record.Outcome{File: []byte("request"), Operation: "id 2"})
	conclude("csr 2", record.Outcome{Err: fault.Unavailable.Errorf("down")})
	first, err := l.Authorize(ctx, use("acme", "csr 3", "key 1", "vendor"))
	must(t, err)
	second := first
	conclude("csr 3", record.Outcome{File: []byte("request"), Operation: "id 3"})
	must(t, l.Conclude(ctx, &second, record.Outcome{File: []byte("request"), Operation: "id 4", Attempts: attempts[:1]}))
	var got []string
	head, err := l.Head(ctx)
	must(t, err)
	for index := range head.Size {
		r, err := l.Record(ctx, index)
		must(t, err)
		if r.Entry.Kind == record.KindIssued || r.Entry.Kind == record.KindFailed {
			got = append(got, fmt.Sprintf("%s %s %d", r.Entry.Kind, r.Entry.Operation, len(r.Attempts)))
		}
		if len(r.Attempts) == 2 && r.Attempts[1] != attempts[1] {
			t.Errorf("%+v", r.Attempts)
		}
	}
	if want := "issued id 2 2; failed  2; issued id 3 2; failed id 4 1"; strings.Join(got, "; ") != want {
		t.Errorf("%q", got)
	}
	verified(t, l)
	f.exec(t, "UPDATE openings SET data = ? WHERE name = 'attempts'", []byte("[]"))
	if _, err := l.Record(ctx, 3); !errors.Is(err, ledger.ErrTampered) {
		t.Errorf("changed attempts: %v", err)
	}
}
