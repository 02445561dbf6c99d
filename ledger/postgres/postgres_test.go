package postgres_test

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"hsmsign/fault"
	"hsmsign/ledger"
	"hsmsign/ledger/ledgertest"
	"hsmsign/ledger/postgres"
	"hsmsign/ledger/postgres/postgrestest"
)

var server *postgrestest.Server

func TestMain(m *testing.M) {
	var err error
	if server, err = postgrestest.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	server.Stop()
	os.Exit(code)
}

func open(t testing.TB, dsn string) *ledger.Store {
	t.Helper()
	store, err := postgres.Open(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.DB.Close() })
	return store
}

func TestBattery(t *testing.T) {
	ledgertest.Run(t, func(t *testing.T) (*ledger.Store, func(t *testing.T) *ledger.Store) {
		dsn := server.Schema(t)
		return open(t, dsn), func(t *testing.T) *ledger.Store { return open(t, dsn) }
	})
}

// Only a verified connection is accepted, and no error shows the password.
func TestTransport(t *testing.T) {
	for _, dsn := range []string{
		"postgres://u:secret@db.example/x", "postgres://u:secret@db.example/x?sslmode=require", "postgres://u:secret@db.example/x?sslmode=verify-ca",
		"postgres://u:secret@db.example,localhost/x?sslmode=prefer", "postgres://u:secret@localhost:x/%zz", "postgres://u:secret@10.0.0.1/x?sslmode=disable",
	} {
		_, err := postgres.Open(t.Context(), dsn)
		if fault.KindOf(err) != fault.Usage || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", dsn, err)
		}
	}
	for _, dsn := range []string{"postgres://u:secret@127.0.0.1:1/x?sslmode=disable", "postgres://u:secret@localhost:1/x?sslmode=verify-full", "postgres:///x?host=/nowhere"} {
		_, err := postgres.Open(t.Context(), dsn)
		if fault.KindOf(err) != fault.Unavailable || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", dsn, err)
		}
	}
}

// The server crashes under load and comes back. What was confirmed is in the ledger, once, and the rest was not released.
func TestServerCrash(t *testing.T) {
	crashing, err := postgrestest.Start("log_min_messages = warning")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(crashing.Stop)
	signerKey, verifierKey, err := ledger.GenerateKey("example.com/ledger")
	if err != nil {
		t.Fatal(err)
	}
	cfg := ledger.Config{Store: open(t, crashing.Schema(t)), Key: signerKey, Verifier: verifierKey}
	if _, err := ledger.Init(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	l, err := ledger.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	var failed, confirmed atomic.Int64
	var names sync.Map
	stop := make(chan struct{})
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				name := rand.Text()
				switch err := l.AddCustomer(t.Context(), "uid 1000", "local", ledger.Customer{Name: name}); {
				case err == nil:
					names.Store(name, true)
					confirmed.Add(1)
				case errors.Is(err, ledger.ErrStore):
					failed.Add(1)
				default:
					t.Error(err)
				}
			}
		})
	}
	for range 3 {
		before := confirmed.Load()
		for confirmed.Load() < before+20 {
			runtime.Gosched()
		}
		if err := crashing.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := crashing.Restart(); err != nil {
			t.Fatal(err)
		}
	}
	before := confirmed.Load()
	for confirmed.Load() < before+20 {
		runtime.Gosched()
	}
	close(stop)
	all.Wait()
	if failed.Load() == 0 {
		t.Error("no append failed")
	}
	report, err := l.Verify(t.Context(), nil)
	if err != nil || len(report.Defects) > 0 {
		t.Errorf("%+v, %v", report, err)
	}
	customers, err := l.Customers(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range customers {
		names.Delete(c.Name)
	}
	names.Range(func(name, _ any) bool {
		t.Errorf("%s was confirmed, and is not in the ledger", name)
		return true
	})
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

func BenchmarkLedger(b *testing.B) { ledgertest.Benchmark(b, open(b, server.Schema(b))) }
