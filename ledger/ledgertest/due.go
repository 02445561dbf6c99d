package ledgertest

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/ledger"
)

// vendorChain returns the DER certificates of a chain, concatenated, that expire at the given times.
func vendorChain(t *testing.T, expire ...time.Time) []byte {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	var all [][]byte
	for i, at := range expire {
		template := &x509.Certificate{SerialNumber: big.NewInt(int64(i) + 1), Subject: pkix.Name{CommonName: "vendor"}, NotBefore: at.AddDate(-1, 0, 0), NotAfter: at}
		der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
		must(t, err)
		all = append(all, der)
	}
	return bytes.Join(all, nil)
}

// testUseBefore: an issued request dies with the first certificate of its chain, which is stored once and verified.
func testUseBefore(t *testing.T, f *fixture) {
	ctx, l := t.Context(), f.open(t)
	first := f.cfg.Now().AddDate(0, 3, 0)
	u := use("acme", "csr 1", "key 1", "vendor")
	u.Chain = vendorChain(t, first.AddDate(1, 0, 0), first, first.AddDate(9, 0, 0))
	issue(t, l, u)
	u.CSR = []byte("csr 2")
	issue(t, l, u)
	issue(t, l, use("acme", "csr 3", "key 1", "vendor")) // whose chain is not readable
	list, err := l.List(ctx, ledger.Query{Limit: 10})
	must(t, err)
	var dates []string
	for _, r := range list {
		shown, err := l.Record(ctx, r.Index)
		must(t, err)
		if !shown.UseBefore.Equal(r.UseBefore) {
			t.Errorf("entry %d: list says %v, show says %v", r.Index, r.UseBefore, shown.UseBefore)
		}
		if !r.UseBefore.IsZero() {
			dates = append(dates, r.Entry.Kind+" "+r.UseBefore.Format(time.DateOnly))
		}
	}
	if got := strings.Join(dates, ", "); got != "issued 2026-09-01, issued 2026-09-01" {
		t.Errorf("use before: %s", got)
	}
	var n int
	must(t, f.cfg.Store.DB.QueryRowContext(ctx, "SELECT count(*) FROM chains").Scan(&n))
	if n != 2 {
		t.Errorf("%d chains are stored", n)
	}
	verified(t, l)
	for name, attack := range map[string]string{
		"another chain":   "UPDATE chains SET data = ?",
		"a missing chain": "DELETE FROM chains WHERE hash <> ?",
	} {
		f.exec(t, attack, []byte("x"))
		if _, err := l.Record(ctx, list[len(list)-4].Index); err == nil {
			t.Errorf("%s: an entry is shown", name)
		}
		report, err := l.Verify(ctx, nil)
		must(t, err)
		if len(report.Defects) == 0 || report.Defects[len(report.Defects)-1].Text != "the vendor chain of the entry is missing" {
			t.Errorf("%s: %+v", name, report.Defects)
		}
	}
}

// testDue: what expires, what was not redeemed, and what must not be attached.
func testDue(t *testing.T, f *fixture) {
	ctx, l := t.Context(), f.open(t)
	now := f.cfg.Now()
	due := func() string {
		list, err := l.Due(ctx)
		must(t, err)
		var all []string
		for _, d := range list {
			if d.What == ledger.DueRequest || d.Deadline().Before(now.AddDate(0, 0, 30)) {
				all = append(all, d.What+" of "+d.Customer.Name)
			}
		}
		return strings.Join(all, ", ")
	}
	must(t, l.AddCustomer(ctx, "uid 1000", "local", ledger.Customer{Name: "bolt", Account: "mdm@bolt.example"}))
	u := use("acme", "csr 1", "key 1", "vendor")
	u.Chain = vendorChain(t, now.AddDate(0, 0, 9))
	permit := issue(t, l, u)
	list, err := l.Due(ctx)
	must(t, err)
	if len(list) != 1 || !list[0].At.Equal(now) || !list[0].Deadline().Equal(now.AddDate(0, 0, 9)) || list[0].Request != permit.Request {
		t.Errorf("after an issue: %+v", list)
	}
	if got := due(); got != "request of acme" {
		t.Errorf("after an issue: %s", got)
	}
	attach := func(customer, topic string, days int) error {
		return l.Attach(ctx, "uid 1000", "local", customer, ledger.Push{Topic: topic, NotAfter: now.AddDate(0, 0, days), SHA256: "ab", SPKI: "cd"})
	}
	must(t, attach("acme", "com.apple.mgmt.External.1", 365))
	must(t, attach("bolt", "com.apple.mgmt.External.2", 20))
	if got := due(); got != "push certificate of bolt" {
		t.Errorf("after the push certificates: %s", got)
	}
	if err := attach("bolt", "com.apple.mgmt.External.3", 365); fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), "enroll again") {
		t.Errorf("another topic: %v", err)
	}
	if err := attach("bolt", "com.apple.mgmt.External.2", 10); fault.KindOf(err) != fault.Conflict {
		t.Errorf("an older certificate: %v", err)
	}
	if err := attach("coil", "com.apple.mgmt.External.4", 365); fault.KindOf(err) != fault.NotFound {
		t.Errorf("an unknown customer: %v", err)
	}
	must(t, attach("bolt", "com.apple.mgmt.External.2", 365))
	if got := due(); got != "" {
		t.Errorf("after the renewal: %s", got)
	}
	verified(t, l)
	f.exec(t, "UPDATE pushes SET expires = expires + 1") // a cache: the date comes from the entry
	if got := due(); got != "" {
		t.Errorf("changed dates: %s", got)
	}
	report, err := l.Verify(ctx, nil)
	must(t, err)
	if len(report.Defects) != 2 {
		t.Errorf("changed dates: %+v", report.Defects)
	}
	f.exec(t, "UPDATE pushes SET entry = (SELECT max(entry) FROM pushes)")
	if _, err := l.Due(ctx); !errors.Is(err, ledger.ErrTampered) {
		t.Errorf("the entry of another customer: %v", err)
	}
	f.exec(t, "UPDATE pushes SET entry = 1")
	if _, err := l.Due(ctx); !errors.Is(err, ledger.ErrTampered) {
		t.Errorf("another entry: %v", err)
	}
}

// testWatched: targets come and go, each with an entry, and a row that no entry explains is found.
func testWatched(t *testing.T, f *fixture) {
	ctx, l := t.Context(), f.open(t)
	watch := func(target string) error { return l.Watch(ctx, "uid 1000", "local", target) }
	unwatch := func(target string) error { return l.Unwatch(ctx, "uid 1000", "local", target) }
	targets := func() string {
		list, err := l.Watched(ctx)
		must(t, err)
		var all []string
		for _, w := range list {
			all = append(all, w.Target)
		}
		return strings.Join(all, " ")
	}
	must(t, watch("push.example.com:443"))
	must(t, watch("/etc/apns.pem"))
	if err := watch("/etc/apns.pem"); fault.KindOf(err) != fault.Conflict {
		t.Errorf("watched twice: %v", err)
	}
	if err := unwatch("other:443"); fault.KindOf(err) != fault.NotFound {
		t.Errorf("not watched: %v", err)
	}
	for _, text := range []string{"", strings.Repeat("x", 1025), "\xff"} {
		if err := watch(text); fault.KindOf(err) != fault.Usage {
			t.Errorf("%q: %v", text, err)
		}
	}
	must(t, unwatch("push.example.com:443"))
	must(t, watch("b:1"))
	must(t, unwatch("b:1"))
	must(t, watch("b:1"))
	if got, entries := targets(), kinds(t, l); got != "/etc/apns.pem b:1" || entries != "genesis watched watched unwatched watched unwatched watched" {
		t.Errorf("%s; %s", got, entries)
	}
	for i := 2; i < 128; i++ {
		must(t, watch(fmt.Sprintf("host%d:443", i)))
	}
	if err := watch("one:443"); fault.KindOf(err) != fault.Conflict {
		t.Errorf("the 129th target: %v", err)
	}
	verified(t, l)
	for _, attack := range []string{
		"INSERT INTO watches (target, entry) VALUES ('evil:443', 6)", "DELETE FROM watches WHERE target = '/etc/apns.pem'",
		"UPDATE watches SET entry = 1 WHERE target = 'b:1'",
	} {
		f.exec(t, attack)
		report, err := l.Verify(ctx, nil)
		must(t, err)
		if len(report.Defects) == 0 {
			t.Errorf("%s: not found", attack)
		}
	}
	if _, err := l.Watched(ctx); !errors.Is(err, ledger.ErrTampered) {
		t.Errorf("a changed list: %v", err)
	}
}

// testChainRolledBack: two requests under a new chain are in one batch, whose commit fails. The chain is not believed to be
// stored after that.
func testChainRolledBack(t *testing.T, f *fixture) {
	ctx, l := t.Context(), f.open(t)
	head, err := l.Head(ctx)
	must(t, err)
	// A row that is there already lets the commit fail.
	f.exec(t, "INSERT INTO entries (idx, leaf, kind, customer) VALUES (?, ?, 'x', ?)", head.Size, []byte("x"), []byte("x"))
	begun, proceed := make(chan struct{}), make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() {
		err := l.Append(ctx, func(context.Context, *ledger.Tx) error { // which lets the others wait together
			close(begun)
			<-proceed
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
	<-begun
	for _, csr := range []string{"csr 1", "csr 2"} {
		all.Go(func() {
			if _, err := l.Authorize(ctx, use("acme", csr, "key 1", "vendor")); !errors.Is(err, ledger.ErrStore) {
				t.Errorf("%s: %v", csr, err)
			}
		})
	}
	time.Sleep(100 * time.Millisecond) // until both wait; otherwise the test proves less
	close(proceed)
	all.Wait()
	f.exec(t, "DELETE FROM entries WHERE kind = 'x'")
	issue(t, l, use("acme", "csr 1", "key 1", "vendor"))
	verified(t, l)
}
