package ledgertest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
)

// searched returns the indexes of all entries that a query finds, page by page, and how many pages there were.
func searched(t *testing.T, l *ledger.Ledger, q ledger.Query) (found []int64, pages int) {
	t.Helper()
	for pages < 100 {
		part, next, err := l.Search(t.Context(), q)
		must(t, err)
		if len(part) > q.Limit {
			t.Fatalf("%d entries, of at most %d", len(part), q.Limit)
		}
		for _, r := range part {
			found = append(found, r.Index)
		}
		pages++
		if q.Before = next; next == 0 {
			return found, pages
		}
	}
	t.Fatal("the pages do not end")
	return nil, 0
}

// testSearch: each filter finds its entries, whatever the size of the pages.
func testSearch(t *testing.T, f *fixture) {
	ctx, l := t.Context(), f.open(t)
	began := f.cfg.Now()
	acme := issue(t, l, use("acme", "csr 1", "key 1", "vendor")) // entries 1 to 3
	f.pass(time.Minute)
	other := use("bolt", "csr 2", "key 2", "vendor") // entries 4 to 6
	other.Actor = "backend"
	issue(t, l, other)
	must(t, l.AddCustomer(ctx, "uid 1000", "local", ledger.Customer{Name: "coil"})) // entry 7
	f.pass(time.Minute)
	for name, tt := range map[string]struct {
		q    ledger.Query
		want []int64
	}{
		"all": {ledger.Query{}, []int64{7, 6, 5, 4, 3, 2, 1, 0}}, "before": {ledger.Query{Before: 2}, []int64{1, 0}},
		"a customer": {ledger.Query{Customer: "acme"}, []int64{3, 2, 1}}, "a kind": {ledger.Query{Kind: "issued"}, []int64{6, 3}},
		"a kind of a customer": {ledger.Query{Kind: "issued", Customers: []string{"bolt", "coil"}}, []int64{6}},
		"a request":            {ledger.Query{Request: mustID(t, acme.Request)}, []int64{3, 2}},
		"no request":           {ledger.Query{Request: record.NewID()}, nil},
		"an actor":             {ledger.Query{Actor: "backend"}, []int64{6, 5, 4}}, "no actor": {ledger.Query{Actor: "nobody"}, nil},
		"a CSR": {ledger.Query{SHA256: record.SHA256([]byte("csr 2"))}, []int64{6, 5}}, "a key": {ledger.Query{SHA256: record.SHA256([]byte("key 1"))}, []int64{3, 2}},
		"a file":   {ledger.Query{SHA256: record.SHA256([]byte("request for csr 2"))}, []int64{6}},
		"a vendor": {ledger.Query{SHA256: record.SHA256([]byte("vendor"))}, []int64{6, 5, 3, 2}},
		"until":    {ledger.Query{Until: began}, []int64{3, 2, 1, 0}}, "before all": {ledger.Query{Until: began.Add(-time.Hour)}, nil},
		"all of it":            {ledger.Query{Until: began, Before: 3, Actor: "uid 1000", Customer: "acme", Kind: "intent"}, []int64{2}},
		"a customer of others": {ledger.Query{Customers: []string{"bolt"}, Request: mustID(t, acme.Request)}, nil},
	} {
		for _, limit := range []int{1, 2, 50} {
			tt.q.Limit = limit
			if got, _ := searched(t, l, tt.q); !slices.Equal(got, tt.want) {
				t.Errorf("%s, %d a page: %v, want %v", name, limit, got, tt.want)
			}
		}
	}
	must(t, l.Reassign(ctx, "uid 0", "local", record.SHA256([]byte("key 1")), "acme", "bolt"))
	if found, _, err := l.Search(ctx, ledger.Query{Customers: []string{"bolt"}, Limit: 1}); err != nil || found[0].From != "" || found[0].Customer != "bolt" {
		t.Errorf("the name of another customer: %+v, %v", found, err)
	}
}

// testSearchBounded: one search reads a bounded number of entries, and its next page goes on where it ended.
func testSearchBounded(t *testing.T, f *fixture) {
	l := f.open(t)
	issue(t, l, use("acme", "csr 1", "key 1", "vendor"))
	must(t, l.Append(t.Context(), func(_ context.Context, tx *ledger.Tx) error {
		for range 10_100 {
			if _, err := tx.Append(&record.Entry{Kind: "test"}); err != nil {
				return err
			}
		}
		return nil
	}))
	found, pages := searched(t, l, ledger.Query{SHA256: record.SHA256([]byte("csr 1")), Limit: 50})
	if !slices.Equal(found, []int64{3, 2}) || pages != 2 {
		t.Errorf("%v in %d pages", found, pages)
	}
}

// testCustomerPages: customers by name and by the end of their push certificates, with these, each proved.
func testCustomerPages(t *testing.T, f *fixture) {
	ctx, l := t.Context(), f.open(t)
	now := f.cfg.Now().UTC().Truncate(time.Second)
	for name, days := range map[string]int{"Acme": 20, "bolt": 3, "coil_1": 0, "dune": 20, "coil%": 0} {
		must(t, l.AddCustomer(ctx, "uid 0", "local", ledger.Customer{Name: name}))
		if days > 0 {
			must(t, l.Attach(ctx, "uid 0", "local", name, ledger.Push{Topic: "com.apple.mgmt.External." + name, NotAfter: now.AddDate(0, 0, days), SPKI: "cd"}))
		}
	}
	show := func(q ledger.CustomerQuery) string {
		t.Helper()
		var names []string
		for {
			page, next, err := l.CustomerPage(ctx, q)
			must(t, err)
			for _, c := range page {
				if strings.HasPrefix(c.Name, "coil") != (c.Push == nil) || c.Push != nil && c.Push.Topic != "com.apple.mgmt.External."+c.Name {
					t.Errorf("%s: %+v", c.Name, c.Push)
				}
				names = append(names, c.Name)
			}
			if q.After = next; next == "" {
				return strings.Join(names, " ")
			}
		}
	}
	for _, limit := range []int{1, 2, 50} {
		for want, q := range map[string]ledger.CustomerQuery{
			"bolt Acme dune coil% coil_1": {ByExpiry: true}, "Acme bolt": {Names: []string{"Acme", "bolt"}}, "bolt dune": {ByExpiry: true, Names: []string{"dune", "bolt"}},
			"coil_1": {Match: "_"}, "coil%": {Match: "%", ByExpiry: true}, "Acme": {Match: "aCM"}, "": {Match: "!"},
		} {
			q.Limit = limit
			if got := show(q); got != want {
				t.Errorf("%+v: %q, want %q", q, got, want)
			}
		}
	}
	if _, _, err := l.CustomerPage(ctx, ledger.CustomerQuery{ByExpiry: true, After: "soon", Limit: 1}); fault.KindOf(err) != fault.Usage {
		t.Error(err)
	}
	one, err := l.Customers(ctx, "bolt")
	must(t, err)
	if byID, err := l.Customer(ctx, one[0].ID); err != nil || byID.Push == nil || !byID.Push.NotAfter.Equal(now.AddDate(0, 0, 3)) || one[0].Push == nil {
		t.Errorf("%+v, %v", byID, err)
	}
	restore := f.snapshot(t)
	for _, attack := range []string{"UPDATE pushes SET entry = entry - 1", "UPDATE openings SET data = salt WHERE name = 'push'", "UPDATE pushes SET entry = (SELECT max(entry) FROM pushes)"} {
		f.exec(t, attack)
		if page, _, err := l.CustomerPage(ctx, ledger.CustomerQuery{Limit: 50}); !errors.Is(err, ledger.ErrTampered) {
			t.Errorf("%s: %+v, %v", attack, page, err)
		}
		restore(t)
	}
}

// testProveEntry: a proof of any entry verifies without the ledger, and a changed entry has none.
func testProveEntry(t *testing.T, f *fixture) {
	ctx, l := t.Context(), f.open(t)
	issue(t, l, use("acme", "csr 1", "key 1", "vendor"))
	head, err := l.Head(ctx)
	must(t, err)
	for index := range head.Size {
		p, err := l.ProveEntry(ctx, index)
		must(t, err)
		proven, err := ledger.CheckProof(p.Data, f.cfg.Verifier)
		if err != nil || proven.Index != index || p.Entry.Kind != strings.Fields(kinds(t, l))[index] || p.Checkpoint.Size != head.Size || p.Hashes == 0 || p.Cosignatures != nil {
			t.Errorf("entry %d: %+v, %v", index, p, err)
		}
	}
	for _, index := range []int64{-1, head.Size} {
		if _, err := l.ProveEntry(ctx, index); fault.KindOf(err) != fault.NotFound {
			t.Errorf("entry %d: %v", index, err)
		}
	}
	f.exec(t, "UPDATE entries SET leaf = (SELECT leaf FROM entries WHERE idx = 1) WHERE idx = 2")
	if _, err := l.ProveEntry(ctx, 2); !errors.Is(err, ledger.ErrTampered) {
		t.Errorf("a changed entry: %v", err)
	}
}

// testPrevious: the previous request is the one of the same customer that was issued last before.
func testPrevious(t *testing.T, f *fixture) {
	ctx, l := t.Context(), f.open(t)
	var ids []record.ID
	for n, customer := range []string{"acme", "bolt", "acme"} {
		ids = append(ids, mustID(t, issue(t, l, use(customer, fmt.Sprint("csr ", n), "key of "+customer, "vendor")).Request))
	}
	failed, err := l.Authorize(ctx, use("acme", "csr 3", "key of acme", "vendor"))
	must(t, err)
	must(t, l.Conclude(ctx, &failed, record.Outcome{Err: fault.Unavailable.Errorf("down")}))
	ids = append(ids, mustID(t, failed.Request))
	for n, want := range []string{"", "", "csr 0", "csr 2"} {
		r, err := l.Request(ctx, ids[n])
		must(t, err)
		before, err := l.Previous(ctx, r)
		if err != nil || (before == nil) != (want == "") || before != nil && (string(before.CSRDER) != want || before.File != nil) {
			t.Errorf("before request %d: %+v, %v; want %q", n, before, err, want)
		}
	}
}
