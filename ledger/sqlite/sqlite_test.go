package sqlite_test

import (
	"path/filepath"
	"testing"

	"hsmsign/ledger"
	"hsmsign/ledger/ledgertest"
	"hsmsign/ledger/sqlite"
)

func open(t testing.TB, path string) *ledger.Store {
	t.Helper()
	store, err := sqlite.Open(t.Context(), path, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.DB.Close() })
	return store
}

func TestBattery(t *testing.T) {
	ledgertest.Run(t, func(t *testing.T) (*ledger.Store, func(t *testing.T) *ledger.Store) {
		path := filepath.Join(t.TempDir(), "ledger.db")
		return open(t, path), func(t *testing.T) *ledger.Store { return open(t, path) }
	})
}

func BenchmarkLedger(b *testing.B) {
	ledgertest.Benchmark(b, open(b, filepath.Join(b.TempDir(), "ledger.db")))
}
