package ledgertest

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"hsmsign/ledger"
	"hsmsign/ledger/record"
)

// Benchmark measures appends by 64 callers, verifying and listing.
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
