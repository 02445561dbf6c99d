package postgres_test

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"hsmsign/ledger"
	"hsmsign/ledger/ledgertest"
	"hsmsign/ledger/record"
	"hsmsign/ledger/sqlite"
)

// TestMovesFromSQLite moves ledgers from SQLite files to PostgreSQL, and TestMovesToSQLite back.
func TestMovesFromSQLite(t *testing.T) {
	ledgertest.RunMoves(t, func(t *testing.T) (*ledger.Store, func(t *testing.T) *ledger.Store) {
		path := filepath.Join(t.TempDir(), "ledger.db")
		return openSQLite(t, path), func(t *testing.T) *ledger.Store { return openSQLite(t, path) }
	}, func(t *testing.T) *ledger.Store { return open(t, server.Schema(t)) })
}

func TestMovesToSQLite(t *testing.T) {
	ledgertest.RunMoves(t, func(t *testing.T) (*ledger.Store, func(t *testing.T) *ledger.Store) {
		dsn := server.Schema(t)
		return open(t, dsn), func(t *testing.T) *ledger.Store { return open(t, dsn) }
	}, func(t *testing.T) *ledger.Store { return openSQLite(t, filepath.Join(t.TempDir(), "ledger.db")) })
}

func openSQLite(t testing.TB, path string) *ledger.Store {
	t.Helper()
	store, err := sqlite.Open(t.Context(), path, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.DB.Close() })
	return store
}

// BenchmarkMove moves a ledger of 100,000 entries with 2 KB each from SQLite to PostgreSQL: entries a second from the first step to the
// last, and how long nothing can be signed.
func BenchmarkMove(b *testing.B) {
	signerKey, verifierKey, err := ledger.GenerateKey("example.com/ledger")
	if err != nil {
		b.Fatal(err)
	}
	cfg := ledger.Config{Store: openSQLite(b, filepath.Join(b.TempDir(), "ledger.db")), Key: signerKey, Verifier: verifierKey}
	if _, err := ledger.Init(b.Context(), cfg); err != nil {
		b.Fatal(err)
	}
	l, err := ledger.Open(b.Context(), cfg)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = l.Close() }() // nothing is kept
	const entries, data = 100_000, 2000
	for range entries / 1000 {
		if err := l.Append(b.Context(), func(_ context.Context, tx *ledger.Tx) error {
			for range 1000 {
				if _, err := tx.Append(&record.Entry{Kind: "bench", Customer: record.NewID()}, record.NewOpening("actor", make([]byte, data))); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			b.Fatal(err)
		}
	}
	to, began := open(b, server.Schema(b)), time.Now()
	var closed time.Time
	result, err := l.Move(b.Context(), ledger.Move{
		Open: func(bool) (*ledger.Store, error) { return to, nil }, Actor: "uid 0", Channel: "local",
		Step: func(step string, _, _ int64) error {
			if step == ledger.StepClose {
				closed = time.Now()
			}
			return nil
		},
	})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(result.Entries)/time.Since(began).Seconds(), "entries/s")
	b.ReportMetric(time.Since(closed).Seconds(), "stopped-s")
	b.ReportMetric(0, "ns/op")
}
