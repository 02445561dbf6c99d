package postgres_test

import (
	"fmt"
	"os"
	"strings"
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

func BenchmarkLedger(b *testing.B) { ledgertest.Benchmark(b, open(b, server.Schema(b))) }
