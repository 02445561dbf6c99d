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
	Grow(b, l, 1_000_000)
	pages(b, l, store)
	b.ReportMetric(0, "ns/op")
}

// pages measures pages of 50 entries, and how many times as long each takes as its query alone. None may take more than 100 ms.
func pages(b *testing.B, l *ledger.Ledger, store *ledger.Store) {
	b.Helper()
	const known = "customer IN (SELECT id FROM customers WHERE name = 'customer 7')"
	for _, page := range []struct {
		name  string
		query ledger.Query
		raw   string
	}{
		{"newest", ledger.Query{}, "1 = 1"}, {"middle", ledger.Query{Before: 500_000}, "idx < 500000"},
		{"kind", ledger.Query{Kind: record.KindIssued}, "kind = 'issued'"}, {"no-kind", ledger.Query{Kind: "none"}, "kind = 'none'"},
		{"customer", ledger.Query{Customer: "customer 7"}, known},
		{"customer-kind", ledger.Query{Customer: "customer 7", Kind: record.KindRefused}, known + " AND kind || '' = 'refused'"},
		{"until", ledger.Query{Until: time.Now().Add(-time.Hour)}, "idx < 0"}, {"actor", ledger.Query{Actor: "uid 1000"}, "idx >= 990000"},
	} {
		page.query.Limit = 50
		raw := fastest(b, func() error {
			rows, err := store.DB.QueryContext(b.Context(), "SELECT idx, leaf FROM entries WHERE "+page.raw+" ORDER BY idx DESC LIMIT 50") // #nosec G202 -- constants
			if err != nil {
				return err
			}
			defer func() { _ = rows.Close() }() // Err has the error
			for rows.Next() {
				var index int64
				var leaf []byte
				if err := rows.Scan(&index, &leaf); err != nil {
					return err
				}
			}
			return rows.Err()
		})
		took := fastest(b, func() error {
			_, _, err := l.Search(b.Context(), page.query)
			return err
		})
		b.ReportMetric(float64(took.Microseconds())/1000, page.name+"-50-ms")
		b.ReportMetric(float64(took)/float64(max(raw, 1)), page.name+"-50-ratio")
		if took > 100*time.Millisecond {
			b.Errorf("a page of %s took %v", page.name, took)
		}
	}
}

// fastest returns the shortest time of five runs.
func fastest(b *testing.B, run func() error) time.Duration {
	b.Helper()
	best := time.Hour
	for range 5 {
		began := time.Now()
		if err := run(); err != nil {
			b.Fatal(err)
		}
		best = min(best, time.Since(began))
	}
	return best
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

// Grow appends entries up to a size of the ledger.
func Grow(b *testing.B, l *ledger.Ledger, to int64) {
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
