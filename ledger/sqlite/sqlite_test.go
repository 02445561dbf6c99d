package sqlite_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"hsmsign/fault"
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

// newLedger makes a ledger in a file and opens it.
func newLedger(t *testing.T, path string) *ledger.Ledger {
	t.Helper()
	signerKey, verifierKey, err := ledger.GenerateKey("example.com/ledger")
	if err != nil {
		t.Fatal(err)
	}
	cfg := ledger.Config{Store: open(t, path), Key: signerKey, Verifier: verifierKey}
	if _, err := ledger.Init(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	l, err := ledger.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestBattery(t *testing.T) {
	ledgertest.Run(t, func(t *testing.T) (*ledger.Store, func(t *testing.T) *ledger.Store) {
		path := filepath.Join(t.TempDir(), "ledger.db")
		return open(t, path), func(t *testing.T) *ledger.Store { return open(t, path) }
	})
}

// A file that was deleted or replaced while it is open is no longer written.
func TestReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := newLedger(t, path)
	add := func() error {
		return l.AddCustomer(t.Context(), "uid 1000", "local", ledger.Customer{Name: rand.Text()})
	}
	if err := add(); err != nil {
		t.Fatal(err)
	}
	for _, replace := range []func() error{
		func() error { return os.Rename(path, path+".old") },
		func() error { return os.WriteFile(path, nil, 0o600) },
	} {
		if err := replace(); err != nil {
			t.Fatal(err)
		}
		if err := add(); !errors.Is(err, ledger.ErrStore) || fault.Hint(err) == "" {
			t.Errorf("an append: %v", err)
		}
	}
	if err := os.Rename(path+".old", path); err != nil {
		t.Fatal(err)
	}
	if err := add(); err != nil {
		t.Errorf("the file is back: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// After an erasure the files of the store do not contain the data.
func TestErased(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := newLedger(t, path)
	const contact = "somebody@acme.example"
	contains := func() (found bool) {
		files, err := filepath.Glob(path + "*")
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			found = found || bytes.Contains(data, []byte(contact))
		}
		return found
	}
	if err := l.AddCustomer(t.Context(), "uid 1000", "local", ledger.Customer{Name: "acme", Contact: contact}); err != nil || !contains() {
		t.Fatal(err)
	}
	if err := l.EraseCustomer(t.Context(), "uid 1000", "local", "acme"); err != nil || contains() {
		t.Errorf("%v, or the contact is still in a file", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// A caller who waits for the lock of another process leaves when its context ends, and so does Close.
func TestLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := newLedger(t, path)
	lock, err := open(t, path).DB.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	began := time.Now()
	if err := l.AddCustomer(ctx, "uid 1000", "local", ledger.Customer{Name: "acme"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("an append: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 8*time.Second { // it would wait for 10
		t.Errorf("it took %v", took)
	}
	if err := lock.Rollback(); err != nil {
		t.Error(err)
	}
}

// Stores that cannot be opened are refused with what is wrong.
func TestOpen(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "text"), []byte("not a database, although it is long enough"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"none.db", "none/x.db", ".", "text"} {
		if _, err := sqlite.Open(t.Context(), filepath.Join(dir, name), false); !errors.Is(err, ledger.ErrStore) || fault.Hint(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func BenchmarkLedger(b *testing.B) {
	path := filepath.Join(b.TempDir(), "ledger.db")
	store := open(b, path)
	ledgertest.Benchmark(b, store, func() int64 {
		if _, err := store.DB.Exec("PRAGMA wal_checkpoint(TRUNCATE)"); err != nil {
			b.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil {
			b.Fatal(err)
		}
		return info.Size()
	})
}

func BenchmarkPending(b *testing.B) {
	ledgertest.BenchmarkPending(b, open(b, filepath.Join(b.TempDir(), "ledger.db")))
}
