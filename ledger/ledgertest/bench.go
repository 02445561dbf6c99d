package ledgertest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"hsmsign/ledger"
	"hsmsign/ledger/record"
)

// Benchmark measures appends by 64 callers, verifying, listing in a ledger of a million entries, and what an entry costs
// beside CSR and request. size returns the size of the store in bytes.
func Benchmark(b *testing.B, store *ledger.Store, size func() int64) {
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
	entryBytes(b, l, size)
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
	grow(b, l, 1_000_000)
	began = time.Now()
	if list, err := l.List(b.Context(), ledger.Query{Limit: 50}); err != nil || len(list) != 50 {
		b.Fatal(len(list), err)
	}
	b.ReportMetric(float64(time.Since(began).Microseconds())/1000, "list-50-ms")
	b.ReportMetric(0, "ns/op")
}

// entryBytes records requests that are signed, and measures the growth of the store for each entry.
func entryBytes(b *testing.B, l *ledger.Ledger, size func() int64) {
	b.Helper()
	before, first := size(), head(b, l)
	for n := range 2000 {
		u := use(fmt.Sprint("customer ", n%100), fmt.Sprint(n), fmt.Sprint("key ", n%100), "vendor")
		permit, err := l.Authorize(b.Context(), u)
		if err == nil {
			err = l.Conclude(b.Context(), &permit, record.Outcome{File: []byte(fmt.Sprint(n))})
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(size()-before)/float64(head(b, l)-first), "bytes/entry")
}

func head(b *testing.B, l *ledger.Ledger) int64 {
	b.Helper()
	c, err := l.Head(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	return c.Size
}

// grow appends entries up to a size of the ledger.
func grow(b *testing.B, l *ledger.Ledger, to int64) {
	b.Helper()
	for head(b, l) < to {
		err := l.Append(b.Context(), func(_ context.Context, tx *ledger.Tx) error {
			for range 5000 {
				if _, err := tx.Append(&record.Entry{Kind: "bench", Customer: record.NewID()}); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
}
