package ledgertest

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
)

func sessionID(text string) record.Hash { return record.SHA256([]byte(text)) }

// unauthenticated fails the test if an error is not of kind unauthenticated.
func unauthenticated(t *testing.T, what string, err error) {
	t.Helper()
	if fault.KindOf(err) != fault.Unauthenticated {
		t.Errorf("%s: %v", what, err)
	}
}

// testSessions: a session is the same in every process until it is idle for too long, too old, or signed out.
func testSessions(t *testing.T, f *fixture) {
	const idle, absolute = 30 * time.Minute, 12 * time.Hour
	ctx, l, other := t.Context(), f.open(t), f.another(t)
	begin := f.cfg.Now()
	start := func(name, caller string, signedIn time.Time) {
		t.Helper()
		must(t, l.StartSession(ctx, ledger.Session{ID: sessionID(name), Caller: caller, Credential: "uid 1", How: ledger.SignedInLink, SignedIn: signedIn}))
	}
	start("a", "ada", time.Time{})
	s, err := other.Session(ctx, sessionID("a"), idle, absolute)
	must(t, err)
	if want := (ledger.Session{ID: sessionID("a"), Caller: "ada", Credential: "uid 1", How: "link", Created: begin, SignedIn: begin, Seen: begin, Read: begin}); *s != want {
		t.Errorf("%+v, want %+v", *s, want)
	}
	_, err = l.Session(ctx, sessionID("b"), idle, absolute)
	unauthenticated(t, "no session", err)
	// What a provider says of the sign-in can be older, and not newer.
	start("old", "bo", begin.Add(-time.Hour))
	start("future", "bo", begin.Add(time.Hour))
	for name, want := range map[string]time.Time{"old": begin.Add(-time.Hour), "future": begin} {
		if s, err := l.Session(ctx, sessionID(name), idle, absolute); err != nil || !s.SignedIn.Equal(want) {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
	}
	// It is used, by one process or another, until the absolute limit.
	for range 24 {
		f.pass(idle - time.Millisecond)
		_, err := other.Session(ctx, sessionID("a"), idle, absolute)
		must(t, err)
	}
	_, err = l.Session(ctx, sessionID("old"), idle, absolute)
	unauthenticated(t, "idle", err)
	f.pass(absolute - f.cfg.Now().Sub(begin) - time.Millisecond)
	_, err = l.Session(ctx, sessionID("a"), idle, absolute)
	must(t, err)
	f.pass(time.Millisecond)
	_, err = l.Session(ctx, sessionID("a"), idle, absolute)
	unauthenticated(t, "too old", err)
	// One that has ended does not come back with longer limits.
	_, err = other.Session(ctx, sessionID("a"), 1000*time.Hour, 1000*time.Hour)
	unauthenticated(t, "longer limits", err)

	start("c1", "cy", time.Time{})
	start("c2", "cy", time.Time{})
	start("d", "di", time.Time{})
	must(t, other.EndSession(ctx, sessionID("c1")))
	_, err = l.Session(ctx, sessionID("c1"), idle, absolute)
	unauthenticated(t, "signed out", err)
	_, err = l.Session(ctx, sessionID("c2"), idle, absolute)
	must(t, err)
	must(t, other.EndSessions(ctx, "cy"))
	must(t, other.EndSession(ctx, sessionID("c1"))) // again
	_, err = l.Session(ctx, sessionID("c2"), idle, absolute)
	unauthenticated(t, "signed out everywhere", err)
	_, err = l.Session(ctx, sessionID("d"), idle, absolute)
	must(t, err)
	// A caller has so many; the oldest ends.
	for i := range 33 {
		f.pass(time.Second)
		start(fmt.Sprint("e", i), "eve", time.Time{})
	}
	all, err := other.Sessions(ctx, "eve")
	must(t, err)
	if len(all) != 32 || all[0].ID != sessionID("e32") || all[31].ID != sessionID("e1") || all[0].Read != f.cfg.Now() {
		t.Errorf("%d sessions", len(all))
	}
	if all, err = l.Sessions(ctx, ""); err != nil || len(all) != 34 { // with d and that of bo, which nobody has used since
		t.Errorf("%d sessions of all callers, %v", len(all), err)
	}
	f.pass(24 * time.Hour)
	start("new", "eve", time.Time{})
	if all, err = l.Sessions(ctx, ""); err != nil || len(all) != 1 {
		t.Errorf("%d sessions a day later, %v", len(all), err)
	}
	verified(t, l)
}

// testSessionsTampered: whoever can write the database cannot make or change a session, nor a login.
func testSessionsTampered(t *testing.T, f *fixture) {
	ctx, l := t.Context(), f.open(t)
	exec := func(statement string) {
		t.Helper()
		_, err := f.cfg.Store.DB.ExecContext(ctx, statement)
		must(t, err)
	}
	start := func() {
		t.Helper()
		exec("DELETE FROM sessions")
		must(t, l.StartSession(ctx, ledger.Session{ID: sessionID("a"), Caller: "bo", Credential: "uid 1", How: ledger.SignedInLink}))
		f.pass(time.Minute)
	}
	for _, change := range []string{
		"caller = 'ada'", "credential = 'uid 2'", "how = 'oidc'", "created = created + 1", "signed_in = signed_in + 60000", "caller = 'bou', credential = 'id 1'",
	} {
		start()
		_, err := l.Session(ctx, sessionID("a"), time.Hour, time.Hour)
		must(t, err)
		exec("UPDATE sessions SET " + change)
		_, err = l.Session(ctx, sessionID("a"), time.Hour, time.Hour)
		unauthenticated(t, change, err)
	}
	start()
	exec(fmt.Sprintf("UPDATE sessions SET id = %s", f.literal(sessionID("b"))))
	_, err := l.Session(ctx, sessionID("b"), time.Hour, time.Hour)
	unauthenticated(t, "another id", err)
	for _, change := range []string{"until = until + 1000", fmt.Sprintf("data = %s", f.literal(sessionID("other")))} {
		must(t, l.StartLogin(ctx, sessionID("a"), []byte("data"), time.Minute))
		exec("UPDATE logins SET " + change)
		_, err := l.TakeLogin(ctx, sessionID("a"))
		unauthenticated(t, change, err)
		exec("DELETE FROM logins")
	}
}

// literal returns bytes as a literal of the store's SQL.
func (f *fixture) literal(h record.Hash) string {
	if f.cfg.Store.Numbered {
		return fmt.Sprintf(`'\x%x'::bytea`, h[:])
	}
	return fmt.Sprintf("x'%x'", h[:])
}

// testLogins: what a sign-in begins with is redeemed once, in time, by one of all processes.
func testLogins(t *testing.T, f *fixture) {
	ctx, l, other := t.Context(), f.open(t), f.another(t)
	must(t, l.StartLogin(ctx, sessionID("a"), []byte("data"), 2*time.Minute))
	if data, err := other.TakeLogin(ctx, sessionID("a")); err != nil || string(data) != "data" {
		t.Errorf("%q, %v", data, err)
	}
	for _, name := range []string{"a", "never"} {
		_, err := l.TakeLogin(ctx, sessionID(name))
		unauthenticated(t, name, err)
	}
	must(t, l.StartLogin(ctx, sessionID("last"), []byte("x"), 2*time.Minute))
	must(t, l.StartLogin(ctx, sessionID("late"), []byte("x"), 2*time.Minute))
	f.pass(2*time.Minute - time.Millisecond)
	_, err := l.TakeLogin(ctx, sessionID("last"))
	must(t, err)
	f.pass(time.Millisecond)
	_, err = l.TakeLogin(ctx, sessionID("late"))
	unauthenticated(t, "late", err)
	if err := l.StartLogin(ctx, sessionID("long"), []byte("x"), time.Hour); fault.KindOf(err) != fault.Internal {
		t.Errorf("for an hour: %v", err)
	}
	must(t, l.StartLogin(ctx, sessionID("raced"), []byte("x"), time.Minute))
	var all sync.WaitGroup
	var taken atomic.Int64
	for i := range 20 {
		all.Go(func() {
			process := l
			if i%2 == 1 {
				process = other
			}
			if _, err := process.TakeLogin(ctx, sessionID("raced")); err == nil {
				taken.Add(1)
			} else {
				unauthenticated(t, "raced", err)
			}
		})
	}
	all.Wait()
	if taken.Load() != 1 {
		t.Errorf("%d have redeemed it", taken.Load())
	}
	var rows int
	must(t, l.StartLogin(ctx, sessionID("b"), []byte("x"), time.Minute))
	must(t, f.cfg.Store.DB.QueryRowContext(ctx, "SELECT count(*) FROM logins").Scan(&rows))
	if rows != 1 {
		t.Errorf("%d are stored", rows)
	}
}
