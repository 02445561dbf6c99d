package ledger_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"hsmsign/internal/testkit"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
	"hsmsign/ledger/sqlite"
)

// An intent that was not committed is not remembered: it will never have an outcome, and the next batches would wait for it.
func TestIntentsAfterFailure(t *testing.T) {
	store := testkit.Value(sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "ledger.db"), true))(t)
	t.Cleanup(func() { _ = store.DB.Close() })
	signerKey, verifierKey, err := ledger.GenerateKey("example.com/ledger")
	testkit.OK(t, err)
	cfg := ledger.Config{Store: store, Key: signerKey, Verifier: verifierKey, LastCheckpoint: filepath.Join(t.TempDir(), "last")}
	testkit.Value(ledger.Init(t.Context(), cfg))(t)
	l := testkit.Value(ledger.Open(t.Context(), cfg))(t)
	use := func(n int) record.Use {
		return record.Use{Customer: "acme", Actor: "uid 1000", Channel: "local", CSR: fmt.Append(nil, n), SPKI: []byte("key"), Vendor: []byte("vendor"), Chain: []byte("chain"), Digest: "SHA-256"}
	}
	permit := testkit.Value(l.Authorize(t.Context(), use(0)))(t)
	testkit.OK(t, l.Conclude(t.Context(), &permit, record.Outcome{File: []byte("request")}))
	testkit.Value(l.Authorize(t.Context(), use(1)))(t) // has no outcome
	for _, query := range []string{"ALTER TABLE openings RENAME TO hidden", "ALTER TABLE hidden RENAME TO openings"} {
		testkit.Value(store.DB.ExecContext(t.Context(), query))(t)
		if query[12:20] != "openings" {
			continue
		}
		for n := range 20 {
			if _, err := l.Authorize(t.Context(), use(2+n)); !errors.Is(err, ledger.ErrStore) {
				t.Errorf("without a table: %v", err)
			}
		}
	}
	testkit.OK(t, l.Close())
	if n := l.OpenIntents(); n != 1 {
		t.Errorf("%d intents are remembered, want 1", n)
	}
}
