package ledgertest

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
)

// Benchmark measures appends by 64 callers, verifying and listing. A battery's limits are in docs/performance.md.
func Benchmark(b *testing.B, store *ledger.Store) {
	signerKey, verifierKey, err := ledger.GenerateKey("example.com/bench")
	if err != nil {
		b.Fatal(err)
	}
	cfg := ledger.Config{Store: store, Key: signerKey, Verifier: verifierKey}
	if _, err := ledger.Init(b.Context(), cfg); err != nil {
		b.Fatal(err)
	}
	l, err := ledger.Open(b.Context(), cfg)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = l.Close() }() // nothing is kept
	const callers, entries = 64, 100_000
	var each [callers][]time.Duration
	began := time.Now()
	var all sync.WaitGroup
	for caller := range callers {
		all.Go(func() {
			for range entries / callers {
				start := time.Now()
				err := l.Append(b.Context(), func(_ context.Context, tx *ledger.Tx) error {
					_, err := tx.Append(&record.Entry{Kind: "bench", Customer: record.NewID()}, record.NewOpening("actor", []byte("uid 1000")))
					return err
				})
				if err != nil {
					b.Error(err)
					return
				}
				each[caller] = append(each[caller], time.Since(start))
			}
		})
	}
	all.Wait()
	took := time.Since(began)
	waits := slices.Concat(each[:]...)
	slices.Sort(waits)
	b.ReportMetric(float64(len(waits))/took.Seconds(), "appends/s")
	b.ReportMetric(float64(waits[len(waits)/2].Microseconds())/1000, "p50-ms")
	began = time.Now()
	if report, err := l.Verify(b.Context(), nil); err != nil || len(report.Defects) > 0 {
		b.Fatal(report, err)
	}
	b.ReportMetric(float64(len(waits))/time.Since(began).Seconds(), "verified/s")
	began = time.Now()
	if list, err := l.List(b.Context(), ledger.Query{Limit: 50}); err != nil || len(list) != 50 {
		b.Fatal(len(list), err)
	}
	b.ReportMetric(float64(time.Since(began).Microseconds())/1000, "list-50-ms")
	b.ReportMetric(0, "ns/op")
}

// testDue: what expires, what was not redeemed, and what must not be attached.
func testDue(t *testing.T, f *fixture) {
	ctx, l := t.Context(), f.open(t)
	now := f.cfg.Now()
	due := func() string {
		list, err := l.Due(ctx, now.AddDate(0, 0, 30))
		must(t, err)
		var all []string
		for _, d := range list {
			all = append(all, d.What+" of "+d.Customer.Name)
		}
		return strings.Join(all, ", ")
	}
	must(t, l.AddCustomer(ctx, "uid 1000", "local", ledger.Customer{Name: "bolt", Account: "mdm@bolt.example"}))
	issue(t, l, use("acme", "csr 1", "key 1", "vendor"))
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
	f.exec(t, "UPDATE pushes SET expires = expires + 1")
	report, err := l.Verify(ctx, nil)
	must(t, err)
	if len(report.Defects) != 2 {
		t.Errorf("changed dates: %+v", report.Defects)
	}
}
