package postgres_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/ledger"
	"hsmsign/ledger/ledgertest"
	"hsmsign/ledger/postgres"
	"hsmsign/ledger/postgres/postgrestest"
	"hsmsign/ledger/record"
	"hsmsign/ledger/witnesstest"
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
	crashing := private(t)
	store := open(t, crashing.Schema(t))
	l, _ := newLedger(t, store, store, nil)
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

// private starts a server of the test's own, on a Unix socket.
func private(t *testing.T) *postgrestest.Server {
	t.Helper()
	server, err := postgrestest.Start("log_min_messages = warning")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	return server
}

// newLedger makes a ledger in a store and opens it as another store of the same database.
func newLedger(t *testing.T, store, again *ledger.Store, now func() time.Time) (*ledger.Ledger, ledger.Config) {
	t.Helper()
	signerKey, verifierKey, err := ledger.GenerateKey("example.com/ledger")
	if err != nil {
		t.Fatal(err)
	}
	cfg := ledger.Config{Store: store, Key: signerKey, Verifier: verifierKey}
	if _, err := ledger.Init(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	cfg.Store, cfg.Now = again, now
	l, err := ledger.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() }) // the test has checked it
	return l, cfg
}

// The time of an entry is that of the database. A host whose clock is far from it does not append.
func TestClock(t *testing.T) {
	store := open(t, server.Schema(t))
	var off time.Duration
	l, _ := newLedger(t, store, store, func() time.Time { return time.Now().Add(off) })
	add := func() error {
		return l.AddCustomer(t.Context(), "uid 1000", "local", ledger.Customer{Name: rand.Text()})
	}
	off = time.Minute
	if err := add(); err != nil {
		t.Fatal(err)
	}
	newest, err := l.Record(t.Context(), 1)
	if err != nil || time.Since(newest.Entry.Time).Abs() > 30*time.Second {
		t.Errorf("%+v, %v: it is not the database's time", newest, err)
	}
	for _, off = range []time.Duration{3 * time.Minute, -3 * time.Minute} {
		if err := add(); !errors.Is(err, ledger.ErrStore) || !strings.Contains(err.Error(), "3m0s apart") {
			t.Errorf("%v off: %v", off, err)
		}
	}
}

// The role that records requests cannot change an entry, erase a customer, or make a ledger.
func TestRoles(t *testing.T) {
	dsn := server.Schema(t)
	owner := open(t, dsn)
	role := "runner-" + strings.ToLower(rand.Text())
	exec := func(db *sql.DB, query string) error {
		_, err := db.ExecContext(t.Context(), query)
		return err
	}
	if err := exec(owner.DB, `CREATE ROLE "`+role+`" LOGIN`); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		db, err := sql.Open("pgx", dsn)
		if err == nil {
			_, err = db.Exec(`DROP OWNED BY "` + role + `"; DROP ROLE "` + role + `"`)
		}
		if err = errors.Join(err, db.Close()); err != nil {
			t.Error(err)
		}
	})
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.User(role)
	running := open(t, u.String())
	if err := ledger.Migrate(t.Context(), owner, role); !errors.Is(err, ledger.ErrStore) {
		t.Errorf("without a ledger: %v", err)
	}
	_, cfg := newLedger(t, owner, owner, nil)
	if err := ledger.Migrate(t.Context(), owner, "nobody"); !errors.Is(err, ledger.ErrStore) || !strings.Contains(err.Error(), "nobody") {
		t.Errorf("a role that does not exist: %v", err)
	}
	cfg.Store = running
	if _, err := ledger.Open(t.Context(), cfg); !errors.Is(err, ledger.ErrStore) || !strings.Contains(fault.Hint(err), "--grant") {
		t.Errorf("before the rights were given: %v", err)
	}
	if err := ledger.Migrate(t.Context(), owner, role); err != nil {
		t.Fatal(err)
	}
	w, err := witnesstest.Start("witness.example/w", witnesstest.Ed25519, cfg.Verifier)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Stop)
	cfg.Witnesses, cfg.Required = []ledger.Witness{{Name: "w", URL: w.URL, Verifier: w.Key}}, 1 // the role stores cosignatures
	l, err := ledger.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() }) // nothing is kept
	ledgertest.Daily(t, l)
	if err := l.EraseCustomer(t.Context(), "uid 1000", "local", "acme"); !errors.Is(err, ledger.ErrStore) || !strings.Contains(fault.Hint(err), "the role that owns the ledger") {
		t.Errorf("an erasure: %v", err)
	}
	if err := ledger.Migrate(t.Context(), running, role); !errors.Is(err, ledger.ErrStore) {
		t.Errorf("a migration: %v", err)
	}
	for _, query := range []string{
		"UPDATE entries SET leaf = ''", "DELETE FROM entries", "UPDATE openings SET data = ''", "DELETE FROM openings", "UPDATE hashes SET hash = ''",
		"DELETE FROM head", "DELETE FROM requests", "DELETE FROM customers", "TRUNCATE entries", "DROP TABLE entries", "UPDATE ledger_schema SET version = 2",
		"INSERT INTO destination (id, store, origin, complete) VALUES (1, '', '', 1)", "DELETE FROM destination",
	} {
		if err := exec(running.DB, query); !running.Denied(err) {
			t.Errorf("%s: %v", query, err)
		}
	}
}

// cutter is a proxy in front of a server. It can cut a connection when the server has committed, before the client hears of
// it.
type cutter struct {
	to   string // path of the server's socket
	cuts atomic.Int64
}

func (c *cutter) serve(listener net.Listener) {
	for {
		client, err := listener.Accept()
		if err != nil {
			return
		}
		go c.relay(client)
	}
}

func (c *cutter) relay(client net.Conn) {
	defer func() { _ = client.Close() }() // the end of the relay
	database, err := net.Dial("unix", c.to)
	if err != nil {
		return
	}
	defer func() { _ = database.Close() }() // as above
	go func() {
		_, _ = io.Copy(database, client) // ends with either connection
		_ = database.Close()
	}()
	buffer := make([]byte, 64<<10)
	for {
		n, err := database.Read(buffer)
		if err != nil {
			return
		}
		// CommandComplete, whose text is COMMIT (PostgreSQL, 55.7, message formats)
		if bytes.Contains(buffer[:n], []byte("C\x00\x00\x00\x0bCOMMIT\x00")) && c.cuts.Add(-1) >= 0 {
			return
		}
		if _, err := client.Write(buffer[:n]); err != nil {
			return
		}
	}
}

// The connection is cut between COMMIT and its answer. Nothing is released, and the next attempt finds what was committed.
func TestCutAtCommit(t *testing.T) {
	dsn := private(t).Schema(t)
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	query := u.Query()
	proxy := &cutter{to: filepath.Join(query.Get("host"), ".s.PGSQL.5432")}
	dir := t.TempDir()
	listener, err := net.Listen("unix", filepath.Join(dir, ".s.PGSQL.5432"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() }) // ends the proxy
	go proxy.serve(listener)
	query.Set("host", dir)
	u.RawQuery = query.Encode()
	l, _ := newLedger(t, open(t, dsn), open(t, u.String()), nil)
	use := record.Use{Customer: "acme", Actor: "uid 1000", Channel: "local", CSR: []byte("csr"), SPKI: []byte("key"), Vendor: []byte("vendor"), Chain: []byte("chain"), Digest: "SHA-256"}
	proxy.cuts.Store(1)
	if permit, err := l.Authorize(t.Context(), use); !errors.Is(err, ledger.ErrStore) {
		t.Fatalf("%+v, %v", permit, err)
	}
	permit, err := l.Authorize(t.Context(), use)
	if err != nil || permit.Stored != nil {
		t.Fatalf("%+v, %v", permit, err)
	}
	proxy.cuts.Store(1)
	if err := l.Conclude(t.Context(), &permit, record.Outcome{File: []byte("the request")}); !errors.Is(err, ledger.ErrStore) {
		t.Fatal(err)
	}
	again, err := l.Authorize(t.Context(), use)
	if err != nil || string(again.Stored) != "the request" || again.Request != permit.Request {
		t.Errorf("%+v, %v", again, err)
	}
	var kinds []string
	if err := l.Records(t.Context(), func(r record.Record) error {
		kinds = append(kinds, r.Entry.Kind)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(kinds, " "); got != "genesis customer intent intent issued" {
		t.Errorf("entries %s", got)
	}
	if report, err := l.Verify(t.Context(), nil); err != nil || len(report.Defects) > 0 {
		t.Errorf("%+v, %v", report, err)
	}
}

func BenchmarkLedger(b *testing.B) {
	store := open(b, server.Schema(b))
	ledgertest.Benchmark(b, store, func() (size int64) {
		const tables = "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace"
		if err := store.DB.QueryRow(tables).Scan(&size); err != nil {
			b.Fatal(err)
		}
		return size
	})
}

// Many readers at once share few connections and do not wait for each other.
func TestConnections(t *testing.T) {
	store := open(t, server.Schema(t))
	key, verifier, err := ledger.GenerateKey("example.com/connections")
	if err != nil {
		t.Fatal(err)
	}
	cfg := ledger.Config{Store: store, Key: key, Verifier: verifier}
	if _, err := ledger.Init(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	l, err := ledger.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }() // nothing is kept
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var all sync.WaitGroup
	for i := range 200 {
		all.Go(func() {
			if stored, err := l.Check(ctx, record.Use{Customer: "acme", Actor: "portal", CSR: fmt.Append(nil, i), SPKI: []byte("key"), Digest: "SHA-256"}); err != nil || stored {
				t.Errorf("%v, %v", stored, err)
			}
		})
	}
	all.Wait()
	if stats := store.DB.Stats(); stats.MaxOpenConnections != 32 || stats.WaitCount == 0 {
		t.Errorf("%+v", stats)
	}
}

func BenchmarkPending(b *testing.B) {
	ledgertest.BenchmarkPending(b, open(b, server.Schema(b)))
}
