//go:build linux

package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"flag"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"hsmsign/internal/testkit"
	"hsmsign/ledger"
	"hsmsign/ledger/open"
	"hsmsign/ledger/postgres/postgrestest"
)

var updateRelease = flag.String("update-release", "", "make the fixture of this release, as 0.1.0, with the program as it is")

// releaseKey returns the checkpoint key of the fixtures' ledgers: it is made of a public text, so that the repository contains no key.
func releaseKey(version string) string {
	origin := "example.com/release-" + version
	seed := sha256.Sum256([]byte("checkpoint key of the test ledger of hsmsign " + version))
	public := append([]byte{1}, ed25519.NewKeyFromSeed(seed[:]).Public().(ed25519.PublicKey)...) // 1: Ed25519 (C2SP signed-note)
	hash := sha256.Sum256(append([]byte(origin+"\n"), public...))
	return fmt.Sprintf("PRIVATE+KEY+%s+%x+%s", origin, hash[:4], base64.StdEncoding.EncodeToString(append([]byte{1}, seed[:]...)))
}

// releases are the folders with a fixture: testdata/releases/VERSION.
func releases(t *testing.T) []string {
	t.Helper()
	dirs := testkit.Value(filepath.Glob("../../testdata/releases/*"))(t)
	if len(dirs) == 0 {
		t.Fatal("there is no release")
	}
	return dirs
}

// fixtureSchema is the name of the schema in the SQL text.
const fixtureSchema = "fixture_schema"

// releaseStores are the kinds of ledger that a fixture has; each puts that of a release into place and returns its reference.
func releaseStores(server *postgrestest.Server) map[string]func(t *testing.T, w *workshop, dir string) string {
	return map[string]func(t *testing.T, w *workshop, dir string) string{
		"sqlite": func(t *testing.T, w *workshop, dir string) string {
			packed := testkit.Value(gzip.NewReader(bytes.NewReader(testkit.Value(os.ReadFile(filepath.Join(dir, "ledger.db.gz")))(t))))(t)
			testkit.OK(t, os.WriteFile(w.path("ledger.db"), testkit.Value(io.ReadAll(packed))(t), 0o600))
			return "sqlite:" + w.path("ledger.db")
		},
		"postgres": func(t *testing.T, _ *workshop, dir string) string {
			store := server.Schema(t)
			text := string(testkit.Value(os.ReadFile(filepath.Join(dir, "ledger.sql")))(t))
			db := testkit.Value(sql.Open("pgx", store+"&default_query_exec_mode=simple_protocol"))(t)
			defer func() { testkit.OK(t, db.Close()) }()
			_, err := db.ExecContext(t.Context(), strings.ReplaceAll(text, fixtureSchema, schemaOf(t, store)))
			testkit.OK(t, err)
			return store
		},
	}
}

func schemaOf(t *testing.T, store string) string {
	t.Helper()
	return testkit.Value(url.Parse(store))(t).Query().Get("search_path")
}

// TestReleaseLedgers: this program opens, verifies and continues the ledgers of every release, and accepts its receipts and its
// configuration.
func TestReleaseLedgers(t *testing.T) {
	t.Parallel()
	server := testkit.Value(postgrestest.Start())(t)
	t.Cleanup(server.Stop)
	if *updateRelease != "" {
		makeRelease(t, server, *updateRelease)
	}
	for _, dir := range releases(t) {
		version := filepath.Base(dir)
		for kind, place := range releaseStores(server) {
			t.Run(version+" "+kind, func(t *testing.T) {
				w := newWorkshop(t, "HSMSIGN_CHECKPOINT_KEY=ledger.key", "HSMSIGN_LAST_CHECKPOINT=ledger.last")
				w.env = append(w.env, "HSMSIGN_LEDGER="+place(t, w, dir))
				openRelease(t, w, dir, kind)
			})
		}
	}
}

// openRelease uses the ledger of a release with this program.
func openRelease(t *testing.T, w *workshop, dir, kind string) {
	t.Helper()
	key := releaseKey(filepath.Base(dir))
	testkit.OK(t, os.WriteFile(w.path("ledger.key"), []byte(key+"\n"), 0o600))
	verifier := testkit.Value(ledger.VerifierKey(key))(t)
	fixture := func(name string) []byte { return testkit.Value(os.ReadFile(filepath.Join(dir, name)))(t) }
	testkit.OK(t, os.WriteFile(w.path("ledger.last"), fixture(kind+".last"), 0o600))
	for _, name := range []string{".req", ".req.tlog-proof"} {
		testkit.OK(t, os.WriteFile(w.path("was"+name), fixture(kind+name), 0o600))
	}
	entries := strings.Count(w.run("ledger", "export"), "\n")
	if out := w.run("ledger", "verify"); entries < 10 || !strings.HasPrefix(out, fmt.Sprintf("ok: %d entries", entries)) {
		t.Errorf("%d entries: %s", entries, out)
	}
	w.run("ledger", "migrate")
	w.run("ledger", "verify", "--verifier-key", verifier, "--proof", "was.req.tlog-proof", "--csr", "customer.csr", "--request", "was.req")
	// What was signed is not signed again; another customer is, and every kind of entry can be listed and shown.
	w.run("sign", "-o", "same.req", "customer.csr")
	if !bytes.Equal(testkit.Value(os.ReadFile(w.path("same.req")))(t), fixture(kind+".req")) {
		t.Error("a request of the release was signed again")
	}
	for i := range entries {
		w.run("ledger", "show", strconv.Itoa(i))
	}
	writeCSR(t, w.path("new.csr"), "after the release")
	w.run("sign", "--customer", "new", "--receipt", "-o", "new.req", "new.csr")
	w.run("ledger", "verify", "--verifier-key", verifier, "--proof", "new.req.tlog-proof", "--csr", "new.csr", "--request", "new.req")
	if out := w.run("ledger", "verify"); strings.HasPrefix(out, fmt.Sprintf("ok: %d entries", entries)) {
		t.Errorf("nothing was appended: %s", out)
	}
	if out := w.run("ledger", "customer", "list"); !strings.Contains(out, "acme") || !strings.Contains(out, "new") || strings.Contains(out, "erased-name") {
		t.Errorf("the customers: %s", out)
	}
	if out := w.run("ledger", "status"); !strings.Contains(out, `customer "held" since`) {
		t.Errorf("the freeze of the release is not in force: %s", out)
	}
	serveRelease(t, w, string(fixture("identity.yaml")), verifier)
}

// serveRelease starts the service with the configuration of a release, and asks it for what the release has signed.
func serveRelease(t *testing.T, w *workshop, text, verifier string) {
	t.Helper()
	socket := filepath.Join(testkit.Value(os.MkdirTemp("", "hsmsign-run-"))(t), "s")
	t.Cleanup(func() { testkit.OK(t, os.RemoveAll(filepath.Dir(socket))) })
	store := w.env[slices.IndexFunc(w.env, func(v string) bool {
		return strings.HasPrefix(v, "HSMSIGN_LEDGER=") && v != "HSMSIGN_LEDGER=sqlite:ledger.db"
	})]
	text = strings.NewReplacer("/SOCKET", socket, "VERIFIER", verifier, "4711", strconv.Itoa(os.Getuid()), "sqlite:ledger.db", strings.TrimPrefix(store, "HSMSIGN_LEDGER=")).Replace(text)
	testkit.OK(t, os.WriteFile(w.path("release.yaml"), []byte(text), 0o600))
	bare := *w
	bare.env = append(slices.DeleteFunc(slices.Clone(w.env), func(v string) bool { return strings.HasPrefix(v, "HSMSIGN_") }), "HSMSIGN_CONFIG="+w.path("release.yaml"))
	if out := bare.run("check-config"); !strings.Contains(out, "listen") {
		t.Error(out)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	service := bare.command(ctx, "serve")
	var log bytes.Buffer
	service.Stderr = &log
	testkit.OK(t, service.Start())
	testkit.Until(t, "the service listens", func() bool { _, err := os.Stat(socket); return err == nil })
	bare.run("sign", "--agent", "unix://"+socket, "--customer", "acme", "-o", "served.req", "customer.csr")
	testkit.OK(t, service.Process.Signal(syscall.SIGTERM))
	if err := service.Wait(); err != nil {
		t.Errorf("serve: %v: %s", err, log.String())
	}
	if !bytes.Equal(testkit.Value(os.ReadFile(w.path("served.req")))(t), testkit.Value(os.ReadFile(w.path("was.req")))(t)) {
		t.Error("the service signed again")
	}
}

// makeRelease makes the fixture of a release: the same history in both kinds of store.
func makeRelease(t *testing.T, server *postgrestest.Server, version string) {
	t.Helper()
	dir := filepath.Join("..", "..", "testdata", "releases", version)
	for kind, store := range map[string]string{"sqlite": "sqlite:ledger.db", "postgres": server.Schema(t)} {
		w := newWorkshop(t, "HSMSIGN_LEDGER="+store, "HSMSIGN_CHECKPOINT_KEY=ledger.key", "HSMSIGN_LAST_CHECKPOINT=ledger.last")
		reference := strings.Replace(store, "sqlite:", "sqlite:"+w.dir+"/", 1)
		key := releaseKey(version)
		testkit.OK(t, os.WriteFile(w.path("ledger.key"), []byte(key+"\n"), 0o600))
		opened := testkit.Value(open.Store(t.Context(), reference, kind == "sqlite"))(t)
		testkit.Value(ledger.Init(t.Context(), ledger.Config{Store: opened, Key: key, Verifier: testkit.Value(ledger.VerifierKey(key))(t), LastCheckpoint: w.path("ledger.last")}))(t)
		testkit.OK(t, opened.DB.Close())
		history(t, w)
		save := func(name string, data []byte) { testkit.OK(t, os.WriteFile(filepath.Join(dir, name), data, 0o644)) }
		for _, name := range []string{".req", ".req.tlog-proof"} {
			save(kind+name, testkit.Value(os.ReadFile(w.path("was"+name)))(t))
		}
		save(kind+".last", testkit.Value(os.ReadFile(w.path("ledger.last")))(t))
		if kind == "postgres" {
			save("ledger.sql", dumpSchema(t, store))
			continue
		}
		var packed bytes.Buffer
		zip := testkit.Value(gzip.NewWriterLevel(&packed, gzip.BestCompression))(t)
		testkit.Value(zip.Write(testkit.Value(os.ReadFile(w.path("ledger.db")))(t)))(t)
		testkit.OK(t, zip.Close())
		save("ledger.db.gz", packed.Bytes())
	}
}

// history fills a ledger with every kind of entry that the command line makes without other services.
func history(t *testing.T, w *workshop) {
	t.Helper()
	w.run("sign", "--receipt", "-o", "was.req", "customer.csr")
	writeCSR(t, w.path("second.csr"), "second key of acme")
	w.run("sign", "-o", "second.req", "second.csr")
	w.run("doctor")
	w.run("ledger", "customer", "add", "held", "--contact", "it@held.example")
	w.run("ledger", "customer", "add", "erased-name", "--contact", "it@erased.example")
	w.run("ledger", "customer", "erase", "--yes", "erased-name")
	w.run("freeze", "--all", "--reason", "a drill")
	w.run("unfreeze", "--all", "--reason", "the drill ends")
	w.run("freeze", "--customer", "held", "--reason", "they asked for it")
	if out, err := w.command(t.Context(), "sign", "-o", "refused.req", "--customer", "held", "second.csr").CombinedOutput(); err == nil {
		t.Fatalf("a frozen customer: %s", out)
	}
}

// writeCSR writes a CSR of a key of the tests.
func writeCSR(t *testing.T, path, key string) {
	t.Helper()
	testkit.OK(t, os.WriteFile(path, testkit.CSR(testkit.Key(key)).Raw, 0o600))
}

// dumpSchema returns a schema of the test's server as SQL.
func dumpSchema(t *testing.T, store string) []byte {
	t.Helper()
	name := schemaOf(t, store)
	programs := testkit.Value(filepath.Glob("/usr/lib/postgresql/*/bin/pg_dump"))(t)
	dump := exec.CommandContext(t.Context(), slices.Max(programs), "--inserts", "--no-owner", "--no-privileges", "-n", name, "-U", "hsmsign", // #nosec G204 -- of Debian
		"-h", testkit.Value(url.Parse(store))(t).Query().Get("host"), "postgres")
	lines := strings.SplitAfter(strings.ReplaceAll(string(testkit.Value(dump.Output())(t)), name, fixtureSchema), "\n")
	return []byte(strings.Join(slices.DeleteFunc(lines, func(line string) bool {
		return strings.HasPrefix(line, "\\") || strings.HasPrefix(line, "--") || strings.HasPrefix(line, "CREATE SCHEMA") || strings.TrimSpace(line) == "" || strings.Contains(line, "transaction_timeout")
	}), ""))
}
