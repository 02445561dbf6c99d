package ledgertest

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"hsmsign/ledger"
)

// BenchmarkPending measures a page of 100 of 10,000 requests that wait for approval, each of another customer, and its ratio to
// reading the rows of the same page without proving them.
func BenchmarkPending(b *testing.B, store *ledger.Store) {
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
	const waiting, callers, page = 10_000, 64, 100
	var all sync.WaitGroup
	for caller := range callers {
		all.Go(func() {
			for n := caller; n < waiting; n += callers {
				u := asks(fmt.Sprint("customer ", n), fmt.Sprint("csr ", n), fmt.Sprint("key ", n))
				u.PerDay = waiting
				_, _ = l.Authorize(b.Context(), u) // the page shows whether it waits
			}
		})
	}
	all.Wait()
	everybody := func(*ledger.RequestRecord) bool { return true }
	var proved time.Duration
	for b.Loop() {
		began := time.Now()
		if list, _, err := l.Pending(b.Context(), 0, page, everybody); err != nil || len(list) != page {
			b.Fatal(len(list), err)
		}
		proved += time.Since(began)
	}
	began := time.Now()
	for range b.N {
		rows, err := store.DB.QueryContext(b.Context(), "SELECT r.id, e.leaf, o.data FROM requests r JOIN entries e ON e.idx = r.entry JOIN openings o ON o.entry = r.entry AND o.name = 'asked' WHERE r.until > 0 AND r.state = 'pending' ORDER BY r.intent DESC LIMIT 100")
		if err != nil {
			b.Fatal(err)
		}
		n := 0
		for ; rows.Next(); n++ {
			var id, leaf, data []byte
			if err := rows.Scan(&id, &leaf, &data); err != nil {
				b.Fatal(err)
			}
		}
		if err := rows.Close(); err != nil || n != page {
			b.Fatal(n, err)
		}
	}
	raw := time.Since(began)
	b.ReportMetric(float64(proved.Microseconds())/1000/float64(b.N), "page-ms")
	b.ReportMetric(float64(proved)/float64(raw), "of-raw")
	b.ReportMetric(0, "ns/op")
}
