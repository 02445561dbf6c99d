package server

import (
	"net/http"
	"slices"
	"testing"
	"time"

	"hsmsign/internal/testkit"
	"hsmsign/ledger/ledgertest"
)

// BenchmarkConsolePages measures pages of 50 rows over a ledger of a million entries, from the request to the last byte of the HTML, and
// how many times as long each takes as the query of its rows alone. None may take more than 100 ms.
func BenchmarkConsolePages(b *testing.B) {
	f := newConsole(b)
	for _, customer := range []string{"acme", "bolt"} {
		f.as(b, backend, "POST", "/v1/requests?customer="+customer, newCSR(customer), nil)
	}
	ledgertest.Grow(b, f.ledger, 1_000_000)
	raw := medianOf(b, func() {
		rows := testkit.Value(f.store.DB.QueryContext(b.Context(), "SELECT idx, leaf FROM entries ORDER BY idx DESC LIMIT 50"))(b)
		defer func() { _ = rows.Close() }() // Err has the error
		for rows.Next() {
			var index int64
			var leaf []byte
			testkit.OK(b, rows.Scan(&index, &leaf))
		}
		testkit.OK(b, rows.Err())
	})
	for name, path := range map[string]string{
		"ledger": "/console/ledger", "older": "/console/ledger?before=500000", "kind": "/console/ledger?kind=issued", "customer": "/console/ledger?customer=acme",
		"until": "/console/ledger?until=" + time.Now().UTC().Format(time.DateOnly), "entry": "/console/ledger/500000", "customers": "/console/customers",
	} {
		took := medianOf(b, func() {
			if got := f.fetch(b, "ops", path); got.status != http.StatusOK {
				b.Fatalf("%s: %d", path, got.status)
			}
		})
		b.ReportMetric(float64(took.Microseconds())/1000, name+"-ms")
		b.ReportMetric(float64(took)/float64(raw), name+"-ratio")
		if took > 100*time.Millisecond {
			b.Errorf("%s took %v", path, took)
		}
	}
	b.ReportMetric(0, "ns/op")
}

// medianOf returns the median time of 21 runs.
func medianOf(b *testing.B, run func()) time.Duration {
	b.Helper()
	var all []time.Duration
	for range 21 {
		began := time.Now()
		run()
		all = append(all, time.Since(began))
		time.Sleep(50 * time.Millisecond) // below the rate of a caller: a page is several requests of the API
	}
	slices.Sort(all)
	return all[len(all)/2]
}
