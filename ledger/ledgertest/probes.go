package ledgertest

import (
	"crypto/ed25519"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
)

// testProbes: a probe is an entry with the names of its operations, and no request.
func testProbes(t *testing.T, f *fixture) {
	ctx, l := t.Context(), f.open(t)
	began := f.cfg.Now()
	issue(t, l, use("acme", "csr 1", "key 1", "vendor"))
	many := make([]string, 10_001)
	for i := range many {
		many[i] = fmt.Sprint("id-", i)
	}
	f.pass(time.Minute)
	for _, p := range []record.Probe{
		{SPKI: []byte("vendor key")},
		{Actor: "ada", Channel: "local", Credential: "token abcd2345", SPKI: []byte("vendor key"), Operations: []string{"one"}},
		{Actor: "ada", Channel: "local", Began: began, Operations: []string{"first", ""}, Err: fault.Unavailable.Errorf("down")},
		{Actor: "bo", Began: began, Operations: []string{""}},
		{Actor: "cy", Began: began, Operations: many},
	} {
		must(t, l.Probe(ctx, p))
	}
	if got := kinds(t, l); got != "genesis customer intent issued probe probe probe probe probe probe" {
		t.Errorf("entries %s", got)
	}
	show := func(index int64) *record.Record {
		r, err := l.Record(ctx, index)
		must(t, err)
		return r
	}
	if r := show(4); r.Entry.SPKI != record.SHA256([]byte("vendor key")) || r.Actor != "" || r.Entry.Commitments != nil || r.Probed != nil || r.Entry.Rule != "" || r.Entry.Request != (record.ID{}) {
		t.Errorf("a probe of a service: %+v", r)
	}
	if r := show(5); r.Actor != "ada" || r.Entry.Channel != "local" || r.Entry.Operation != "one" || r.Probed != nil || r.Entry.Credential == (record.ID{}) {
		t.Errorf("one operation: %+v", r)
	}
	if r := show(6); r.Probed == nil || !slices.Equal(r.Probed.Operations, []string{"first", ""}) || !r.Probed.Began.Equal(began) || r.Entry.Rule != fault.Unavailable.String() || r.Entry.Operation != "" {
		t.Errorf("two operations: %+v", r)
	}
	if r, rest := show(8), show(9); r.Actor != "cy" || rest.Actor != "cy" || len(r.Probed.Operations) != 10_000 || rest.Entry.Operation != "id-10000" {
		t.Errorf("many operations: %+v", rest)
	}
	verified(t, l)
	for _, p := range []record.Probe{{Vendor: []byte("no certificate")}, {Operations: []string{strings.Repeat("x", 129)}}} {
		if err := l.Probe(ctx, p); fault.KindOf(err) != fault.Usage {
			t.Errorf("%.40v: %v", p, err)
		}
	}
	must(t, l.Probe(ctx, record.Probe{Vendor: certificate(t)}))
	cert, err := x509.ParseCertificate(certificate(t))
	must(t, err)
	if r := show(10); r.Entry.Vendor != record.SHA256(cert.Raw) || r.Entry.SPKI != record.SHA256(cert.RawSubjectPublicKeyInfo) {
		t.Errorf("of a vendor certificate: %+v", r)
	}
	// A ledger that continues this one has no probes.
	next := f.next(t, ledger.Continuation{})
	if got := kinds(t, next.Ledger); got != "genesis customer issued" {
		t.Errorf("continued: %s", got)
	}
	verified(t, next.Ledger)
	testProbeSignings(t, l, began)
}

// certificate returns the DER of a certificate, which is always the same.
func certificate(t *testing.T) []byte {
	t.Helper()
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(nil, template, template, key.Public(), key)
	must(t, err)
	return der
}

// testProbeSignings: each operation of a probe is known for the time of the probe.
func testProbeSignings(t *testing.T, l *ledger.Ledger, began time.Time) {
	t.Helper()
	all, err := l.Signings(t.Context(), began, began.Add(time.Minute))
	must(t, err)
	found := map[int64]string{}
	for _, s := range all {
		if s.Kind == record.KindProbe {
			found[s.Index] = fmt.Sprintf("%s %d %v", s.Operation, len(s.Attempts), s.End.Sub(s.Intent))
		}
	}
	want := map[int64]string{4: " 0 15m0s", 5: "one 0 15m0s", 6: " 2 1m0s", 7: " 1 1m0s", 8: " 10000 1m0s", 9: "id-10000 0 15m0s", 10: " 0 15m0s"}
	if fmt.Sprint(found) != fmt.Sprint(want) {
		t.Errorf("signings %v; want %v", found, want)
	}
	for _, from := range []time.Time{began.Add(-time.Hour), began.Add(2 * time.Minute)} {
		all, err := l.Signings(t.Context(), from, from.Add(time.Minute))
		must(t, err)
		if len(all) != 0 {
			t.Errorf("an hour before, or later: %+v", all)
		}
	}
	// A probe cannot say that it began long ago.
	must(t, l.Probe(t.Context(), record.Probe{Began: began.AddDate(-1, 0, 0), Operations: []string{"", ""}}))
	if all, err = l.Signings(t.Context(), began.AddDate(0, 0, -2), began.AddDate(0, 0, -1).Add(-time.Minute)); err != nil || len(all) != 0 {
		t.Errorf("days before: %+v, %v", all, err)
	}
	all, err = l.Signings(t.Context(), began.AddDate(0, 0, -1), began.Add(-time.Hour))
	must(t, err)
	if len(all) != 1 || all[0].End.Sub(all[0].Intent) != 24*time.Hour {
		t.Errorf("the day before: %+v", all)
	}
}

// testProbesTampered: the operations of a probe cannot be changed or removed.
func testProbesTampered(t *testing.T, f *fixture) {
	l := f.open(t)
	must(t, l.Probe(t.Context(), record.Probe{Operations: []string{"one", "two"}}))
	verified(t, l)
	for _, attack := range []string{"UPDATE openings SET data = salt WHERE name = 'operations'", "DELETE FROM openings WHERE name = 'operations'"} {
		f.exec(t, attack)
		report, err := l.Verify(t.Context(), nil)
		must(t, err)
		if len(report.Defects) == 0 || report.Defects[0].Entry != 1 {
			t.Errorf("%s: %+v", attack, report.Defects)
		}
		if _, err := l.Record(t.Context(), 1); !errors.Is(err, ledger.ErrTampered) {
			t.Errorf("%s: shown: %v", attack, err)
		}
		if _, err := l.Signings(t.Context(), f.cfg.Now().Add(-time.Hour), f.cfg.Now()); !errors.Is(err, ledger.ErrTampered) {
			t.Errorf("%s: signings: %v", attack, err)
		}
	}
}
