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

// testCheck: Check says what Authorize would say, and leaves no trace in any table.
func testCheck(t *testing.T, f *fixture) {
	ctx, l := t.Context(), f.open(t)
	limited := use("acme", "csr 1", "key 1", "vendor")
	limited.Actor, limited.Policy, limited.PerDay = "portal", record.SHA256([]byte("the policy")), 1
	issue(t, l, limited)
	left, err := l.Authorize(ctx, use("acme", "csr 2", "key 1", "vendor")) // an intent that a crash left open
	must(t, err)
	f.pass(openFor)
	must(t, l.AddCustomer(ctx, "uid 0", "local", ledger.Customer{Name: "bolt"}))
	before := f.content(t)
	strict := use("nobody", "csr 9", "key 9", "vendor")
	strict.MustExist = true
	another := limited
	another.CSR = []byte("csr 3")
	for _, tt := range []struct {
		name   string
		use    record.Use
		stored bool
		kind   fault.Kind
	}{
		{"stored", limited, true, fault.None},
		{"a new customer", use("coil", "csr 4", "key 4", "vendor"), false, fault.None},
		{"a new key", use("bolt", "csr 5", "key 5", "vendor 2"), false, fault.None},
		{"the key of another", use("bolt", "csr 1", "key 1", "vendor"), false, fault.Conflict},
		{"not known", strict, false, fault.Forbidden},
		{"the second of a day", another, false, fault.Limited},
		{"no customer", use("", "csr 1", "key 1", "vendor"), false, fault.Usage},
	} {
		reader, err := ledger.Open(ctx, ledger.Config{Store: f.cfg.Store, Verifier: f.cfg.Verifier, Now: f.cfg.Now})
		must(t, err)
		for _, checking := range []*ledger.Ledger{l, reader} {
			stored, err := checking.Check(ctx, tt.use)
			if stored != tt.stored || (err == nil) != (tt.kind == fault.None) || err != nil && fault.KindOf(err) != tt.kind {
				t.Errorf("%s: %v, %v", tt.name, stored, err)
			}
		}
		must(t, reader.Close())
	}
	if after := f.content(t); after != before {
		t.Errorf("the store was\n%s\nand is\n%s", before, after)
	}
	// The next append closes the old intent, which a check did not.
	issue(t, l, use("acme", "csr 6", "key 1", "vendor"))
	if err := l.Conclude(ctx, &left, record.Outcome{File: []byte("x")}); fault.KindOf(err) != fault.Conflict {
		t.Errorf("an old intent: %v", err)
	}
	verified(t, l)
}

// content returns all that is in the tables.
func (f *fixture) content(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, table := range tables {
		rows, err := f.cfg.Store.DB.QueryContext(t.Context(), "SELECT * FROM "+table+" ORDER BY 1, 2") // #nosec G202 -- a constant
		must(t, err)
		columns, err := rows.Columns()
		must(t, err)
		for rows.Next() {
			values, into := make([]any, len(columns)), make([]any, len(columns))
			for i := range values {
				into[i] = &values[i]
			}
			must(t, rows.Scan(into...))
			fmt.Fprintln(&all, table, values)
		}
		must(t, errors.Join(rows.Err(), rows.Close()))
	}
	return all.String()
}

// testRequests: requests with their state, proved by their entries, for those who may read them.
func testRequests(t *testing.T, f *fixture) {
	ctx, l := t.Context(), f.open(t)
	first := issue(t, l, use("acme", "csr 1", "key 1", "vendor 1"))
	began := f.cfg.Now()
	f.pass(time.Minute)
	issue(t, l, use("acme", "csr 1", "key 1", "vendor 2")) // supersedes it
	issue(t, l, use("bolt", "csr 2", "key 2", "vendor 1"))
	failed, err := l.Authorize(ctx, use("coil", "csr 3", "key 3", "vendor 1"))
	must(t, err)
	must(t, l.Conclude(ctx, &failed, record.Outcome{Err: fault.Unavailable.Errorf("down")}))
	_, err = l.Authorize(ctx, use("bolt", "csr 4", "key 2", "vendor 1"))
	must(t, err)
	if _, err := l.Authorize(ctx, use("bolt", "csr 5", "key 1", "vendor 1")); fault.KindOf(err) != fault.Conflict { // not a request
		t.Error(err)
	}
	show := func(l *ledger.Ledger, q ledger.Query) string {
		t.Helper()
		q.Limit = max(q.Limit, 1)
		var texts []string
		for {
			page, err := l.Requests(ctx, q)
			if err != nil {
				return fault.KindOf(err).String()
			}
			for _, r := range page {
				if r.Actor != "uid 1000" || r.File != nil || r.Changed.Before(r.Begun) || r.Entry == 0 {
					t.Errorf("%+v", r)
				}
				texts = append(texts, r.Customer+" "+r.State)
				q.Before = r.Entry
			}
			if len(page) < q.Limit {
				return strings.Join(texts, ", ")
			}
		}
	}
	const all = "bolt intent, coil failed, bolt issued, acme issued, acme superseded"
	for _, tt := range []struct {
		q    ledger.Query
		want string
	}{
		{ledger.Query{}, all}, {ledger.Query{Limit: 2}, all}, {ledger.Query{Limit: 100}, all},
		{ledger.Query{Kind: "issued"}, "bolt issued, acme issued"}, {ledger.Query{Customer: "acme"}, "acme issued, acme superseded"},
		{ledger.Query{Customers: []string{"coil", "bolt", "x"}}, "bolt intent, coil failed, bolt issued"},
		{ledger.Query{Customers: []string{}}, ""}, {ledger.Query{Customers: []string{"x"}}, ""},
		{ledger.Query{Customer: "acme", Customers: []string{"bolt"}}, "not-found"}, {ledger.Query{Customer: "x"}, "not-found"},
		{ledger.Query{Customer: "bolt", Customers: []string{"bolt", "acme"}, Kind: "intent"}, "bolt intent"},
	} {
		if got := show(l, tt.q); got != tt.want {
			t.Errorf("%+v: %s; want %s", tt.q, got, tt.want)
		}
	}
	r, err := l.Request(ctx, mustID(t, first.Request))
	must(t, err)
	if r.State != record.KindSuperseded || r.Customer != "acme" || string(r.File) != "request for csr 1" || string(r.CSRDER) != "csr 1" ||
		!r.Begun.Equal(began) || !r.Changed.Equal(began.Add(time.Minute)) || r.CSR != record.SHA256([]byte("csr 1")) || r.SPKI != record.SHA256([]byte("key 1")) || r.Vendor != record.SHA256([]byte("vendor 1")) {
		t.Errorf("%+v", r)
	}
	if _, err := l.Request(ctx, record.NewID()); fault.KindOf(err) != fault.NotFound {
		t.Errorf("an unknown request: %v", err)
	}
	must(t, l.EraseCustomer(ctx, "uid 1000", "local", "bolt"))
	if got := show(l, ledger.Query{}); got != "coil failed, acme issued, acme superseded" {
		t.Errorf("after an erasure: %s", got)
	}
	f.continuedRequests(t, first, began)
	restore := f.snapshot(t)
	for _, attack := range []string{
		"UPDATE requests SET entry = entry - 1", "UPDATE requests SET intent = intent + 1", "UPDATE requests SET intent = 4 WHERE state = 'superseded'", "UPDATE requests SET issued = 6 WHERE state = 'superseded'", "UPDATE requests SET issued = -1",
		"UPDATE openings SET data = salt WHERE name = 'csr'", "UPDATE openings SET data = salt WHERE name = 'request'",
	} {
		f.exec(t, attack)
		if r, err := l.Request(ctx, mustID(t, first.Request)); !errors.Is(err, ledger.ErrTampered) {
			t.Errorf("%s: %+v, %v", attack, r, err)
		}
		if report, err := l.Verify(ctx, nil); err != nil || len(report.Defects) == 0 {
			t.Errorf("%s: %+v, %v", attack, report, err)
		}
		restore(t)
	}
	f.exec(t, "UPDATE requests SET begun = begun + 1")
	if report, err := l.Verify(ctx, nil); err != nil || len(report.Defects) == 0 {
		t.Errorf("another beginning: %+v, %v", report, err)
	}
}

// continuedRequests: a request of a previous ledger has the time of its beginning there.
func (f *fixture) continuedRequests(t *testing.T, first record.Permit, began time.Time) {
	t.Helper()
	f.pass(time.Hour)
	s := f.next(t, ledger.Continuation{})
	r, err := s.Request(t.Context(), mustID(t, first.Request))
	if err != nil || r.State != record.KindSuperseded || !r.Begun.Equal(began.Add(time.Minute)) || string(r.File) != "request for csr 1" || string(r.CSRDER) != "csr 1" {
		t.Errorf("in a ledger that continues it: %+v, %v", r, err)
	}
}

// testEntries: a reader finds entries about its customers only, and no names of others.
func testEntries(t *testing.T, f *fixture) {
	ctx, l := t.Context(), f.open(t)
	issue(t, l, use("acme", "csr 1", "key 1", "vendor"))
	issue(t, l, use("bolt", "csr 2", "key 2", "vendor"))
	must(t, l.Reassign(ctx, "uid 0", "local", record.SHA256([]byte("key 1")), "acme", "bolt"))
	for _, tt := range []struct {
		customers []string
		want      int
		from      string
	}{{nil, 8, "acme"}, {[]string{"bolt"}, 4, ""}, {[]string{"bolt", "acme"}, 7, "acme"}, {[]string{}, 0, ""}} {
		found, err := l.List(ctx, ledger.Query{Customers: tt.customers, Limit: 50})
		must(t, err)
		if len(found) != tt.want || len(found) > 0 && found[0].From != tt.from {
			t.Errorf("%v: %+v", tt.customers, found)
		}
	}
}

// testCredentials: entries have an id of the credential, and the answer of the role's program, which an erasure deletes.
func testCredentials(t *testing.T, f *fixture) {
	ctx, l := t.Context(), f.open(t)
	u := use("acme", "csr 1", "key 1", "vendor")
	u.Credential, u.Entitlement = "token abcd2345", []byte(`{"contract":7}`)
	permit := issue(t, l, u)
	foreign := u
	foreign.Customer = "bolt"
	if _, err := l.Authorize(ctx, foreign); fault.KindOf(err) != fault.Conflict {
		t.Error(err)
	}
	must(t, l.Refuse(ctx, foreign, "policy.subject"))
	for index, entitled := range map[int64]bool{2: true, 3: false, 4: true, 5: true} {
		r, err := l.Record(ctx, index)
		must(t, err)
		if r.Entry.Credential != record.CredentialID("token abcd2345") || r.Entry.Credential == (record.ID{}) || (string(r.Entitlement) == `{"contract":7}`) != entitled {
			t.Errorf("entry %d: %+v", index, r)
		}
	}
	for _, wrong := range []string{"", "{", strings.Repeat(" ", 64<<10) + "1"} {
		u.Entitlement = []byte(wrong)
		if _, err := l.Authorize(ctx, u); fault.KindOf(err) != fault.Usage {
			t.Errorf("%.9q: %v", wrong, err)
		}
		if err := l.Refuse(ctx, u, "policy.subject"); fault.KindOf(err) != fault.Usage {
			t.Errorf("%.9q, refused: %v", wrong, err)
		}
	}
	must(t, l.EraseCustomer(ctx, "uid 0", "local", "acme"))
	if r, err := l.Record(ctx, 2); err != nil || r.Entitlement != nil {
		t.Errorf("after an erasure: %+v, %v", r, err)
	}
	if _, err := l.Request(ctx, mustID(t, permit.Request)); fault.KindOf(err) != fault.NotFound {
		t.Errorf("an erased request: %v", err)
	}
	verified(t, l)
}

// testUses: the last use of a credential is written without delaying anybody, once a minute.
func testUses(t *testing.T, f *fixture) {
	ctx, l, other := t.Context(), f.open(t), f.another(t)
	began := f.cfg.Now()
	uses := func() map[string]time.Time {
		t.Helper()
		all, err := l.Uses(ctx)
		must(t, err)
		return all
	}
	l.Use("token a")
	other.Use("token b")
	l.Use("")
	l.Use(strings.Repeat("x", 257))
	eventually(t, "both are written", func() bool { return len(uses()) == 2 })
	f.pass(30 * time.Second)
	l.Use("token a")
	f.pass(29 * time.Second)
	l.Use("token c")
	eventually(t, "the third is written", func() bool { return len(uses()) == 3 })
	if all := uses(); !all["token a"].Equal(began) || !all["token c"].Equal(began.Add(59*time.Second)) {
		t.Errorf("%v", all)
	}
	f.pass(time.Second)
	l.Use("token a")
	must(t, l.Close()) // which waits for it
	if all := uses(); !all["token a"].Equal(began.Add(time.Minute)) {
		t.Errorf("a minute later: %v", all)
	}
	f.pass(-time.Hour) // another process with an older clock
	other.Use("token a")
	must(t, other.Close())
	if all := uses(); !all["token a"].Equal(began.Add(time.Minute)) {
		t.Errorf("an older use: %v", all)
	}
}

// testReplicas: each start of a program is an entry with the hash of its policy, and the replicas of the last hour are listed.
func testReplicas(t *testing.T, f *fixture) {
	ctx, l, other := t.Context(), f.open(t), f.another(t)
	old, changed := record.SHA256([]byte("old")), record.SHA256([]byte("changed"))
	must(t, l.StartPolicy(ctx, "uid 0", "local", "host-1", old))
	must(t, other.StartPolicy(ctx, "uid 0", "local", "host-2", old))
	must(t, l.StartPolicy(ctx, "uid 0", "local", "host-1", changed))
	show := func() string {
		t.Helper()
		all, err := other.Replicas(ctx)
		must(t, err)
		var texts []string
		for _, r := range all {
			texts = append(texts, fmt.Sprintf("%s %.6s %v", r.Name, r.Policy, f.cfg.Now().Sub(r.Seen)))
		}
		return strings.Join(texts, ", ")
	}
	if got, want := show(), fmt.Sprintf("host-1 %.6s 0s, host-2 %.6s 0s", changed, old); got != want {
		t.Errorf("%s; want %s", got, want)
	}
	f.pass(50 * time.Minute)
	must(t, l.Seen(ctx, "host-1"))
	if err := l.Seen(ctx, "host-2"); fault.KindOf(err) != fault.NotFound {
		t.Errorf("that of another process: %v", err)
	}
	f.pass(20 * time.Minute)
	if got, want := show(), fmt.Sprintf("host-1 %.6s 20m0s", changed); got != want {
		t.Errorf("%s; want %s", got, want)
	}
	must(t, other.StartPolicy(ctx, "uid 0", "local", "host-3", changed)) // deletes the row of host-2
	var rows int
	must(t, f.cfg.Store.DB.QueryRowContext(ctx, "SELECT count(*) FROM replicas").Scan(&rows))
	if rows != 2 {
		t.Errorf("%d replicas are stored", rows)
	}
	must(t, other.Seen(ctx, "host-2")) // which is back
	if got, want := show(), fmt.Sprintf("host-1 %.6s 20m0s, host-2 %.6s 0s, host-3 %.6s 0s", changed, old, changed); got != want {
		t.Errorf("%s; want %s", got, want)
	}
	must(t, other.Leave(ctx, "host-2"))
	if got, want := show(), fmt.Sprintf("host-1 %.6s 20m0s, host-3 %.6s 0s", changed, changed); got != want {
		t.Errorf("after one has left: %s; want %s", got, want)
	}
	if err := other.Seen(ctx, "host-2"); fault.KindOf(err) != fault.NotFound {
		t.Errorf("one that has left: %v", err)
	}
	verified(t, l)
	must(t, other.StartPolicy(ctx, "uid 0", "local", "host-2", old))
	r, err := l.Record(ctx, 3)
	must(t, err)
	if r.Entry.Kind != record.KindPolicy || r.Entry.Policy != changed || r.Replica != "host-1" || r.Actor != "uid 0" {
		t.Errorf("%+v", r)
	}
	for _, name := range []string{"", "a\nb", strings.Repeat("x", 129)} {
		if err := l.StartPolicy(ctx, "uid 0", "local", name, old); fault.KindOf(err) != fault.Usage {
			t.Errorf("%q: %v", name, err)
		}
	}
	if err := l.StartPolicy(ctx, "uid 0", "local", "host-1", record.Hash{}); fault.KindOf(err) != fault.Usage {
		t.Errorf("no hash: %v", err)
	}
	verified(t, l)
	restore := f.snapshot(t)
	for _, attack := range []string{"UPDATE replicas SET policy = (SELECT policy FROM replicas WHERE name = 'host-2')", "UPDATE replicas SET entry = 1 WHERE name = 'host-1'", "UPDATE replicas SET name = 'x' WHERE name = 'host-3'"} {
		f.exec(t, attack)
		if report, err := l.Verify(ctx, nil); err != nil || !strings.Contains(fmt.Sprint(report.Defects), "the list of replicas does not say") {
			t.Errorf("%s: %+v, %v", attack, report, err)
		}
		if _, err := l.Replicas(ctx); !errors.Is(err, ledger.ErrTampered) && !strings.Contains(attack, "entry = 1") {
			t.Errorf("%s: %v", attack, err)
		}
		restore(t)
	}
}

// testReplicated: limits and stored requests are those of all processes together.
func testReplicated(t *testing.T, f *fixture) {
	ctx, l, other := t.Context(), f.open(t), f.another(t)
	limited := func(csr string) record.Use {
		u := use("acme", csr, "key 1", "vendor")
		u.Actor, u.Policy, u.PerDay = "portal", record.SHA256([]byte("the policy")), 2
		return u
	}
	today := func(want int) {
		t.Helper()
		for _, l := range []*ledger.Ledger{l, other} {
			if n, err := l.Today(ctx, "portal"); err != nil || n != want {
				t.Errorf("%d today, %v; want %d", n, err, want)
			}
		}
	}
	today(0)
	first := issue(t, l, limited("csr 1"))
	if again := issue(t, other, limited("csr 1")); again.Request != first.Request || again.Stored == nil {
		t.Errorf("the same use in another process: %+v", again)
	}
	issue(t, other, limited("csr 2"))
	today(2)
	for _, l := range []*ledger.Ledger{l, other} {
		if _, err := l.Authorize(ctx, limited("csr 3")); fault.KindOf(err) != fault.Limited {
			t.Errorf("the third: %v", err)
		}
	}
	f.pass(24 * time.Hour)
	today(0)
	verified(t, l)
}
