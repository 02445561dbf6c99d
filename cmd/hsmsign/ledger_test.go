//go:build linux

package main

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"hsmsign/api"
	"hsmsign/internal/testkit"
	"hsmsign/ledger/postgres/postgrestest"
)

// TestLedgerAfterKill kills batches (SIGKILL) after growing delays. Wherever a batch was killed, each request that it
// released has an entry, and the ledger verifies. HSMSIGN_SOAK=1 kills ten times as often.
func TestLedgerAfterKill(t *testing.T) {
	kills := map[string]int{"sqlite": 20, "postgres": 10}
	if os.Getenv("HSMSIGN_SOAK") != "" {
		kills = map[string]int{"sqlite": 200, "postgres": 50}
	}
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		killBatches(t, kills["sqlite"], "sqlite:ledger.db")
	})
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		server := testkit.Value(postgrestest.Start())(t)
		t.Cleanup(server.Stop)
		killBatches(t, kills["postgres"], server.Schema(t))
	})
}

// killBatches runs batches of new CSRs on one ledger.
func killBatches(t *testing.T, kills int, ledger string) {
	dir := t.TempDir()
	testkit.OK(t, copyDir(filepath.Join("..", "..", "testdata", "golden"), dir))
	testkit.OK(t, os.Chmod(filepath.Join(dir, "vendor.key"), 0o600))
	program := filepath.Join(t.TempDir(), "hsmsign") // testscript.Main goes by the name
	testkit.OK(t, os.Symlink(os.Args[0], program))
	command := func(ctx context.Context, args ...string) *exec.Cmd {
		cmd := exec.CommandContext(ctx, program, args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_CONFIG_HOME="+dir, "HSMSIGN_LEDGER="+ledger, "HSMSIGN_CHECKPOINT_KEY=checkpoint.key",
			"HSMSIGN_LAST_CHECKPOINT=last", "HSMSIGN_KEY=file:vendor.key", "HSMSIGN_CERT=chain.pem", "HSMSIGN_TRUST_ROOT=root.pem", "HSMSIGN_CUSTOMER=acme")
		return cmd
	}
	run := func(args ...string) string {
		out, err := command(t.Context(), args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
		return string(out)
	}
	run("ledger", "init", "--origin", "example.com/kill")
	killed, delay := 0, 8*time.Millisecond
	for batch := 0; killed < kills; batch++ {
		in, out := "in"+strconv.Itoa(batch), "out"+strconv.Itoa(batch)
		makeBatch(t, filepath.Join(dir, in))
		ctx, cancel := context.WithTimeout(t.Context(), delay)
		err := command(ctx, "sign", "--out-dir", out, in).Run()
		cancel()
		if err != nil {
			killed++
			delay += delay / 6
		} else {
			delay = 8 * time.Millisecond // it was not killed: begin again with short delays
		}
		if verdict := run("ledger", "verify"); !strings.HasPrefix(verdict, "ok: ") {
			t.Fatalf("after a kill at %v: %s", delay, verdict)
		}
		checkReleased(t, filepath.Join(dir, out), run("ledger", "export"))
	}
	// The next run completes what was cut off, and signs nothing twice.
	for _, name := range []string{"0", "1"} {
		run("sign", "--out-dir", "out"+name, "in"+name)
		checkReleased(t, filepath.Join(dir, "out"+name), run("ledger", "export"))
	}
}

// makeBatch writes twenty CSRs of one customer.
func makeBatch(t *testing.T, dir string) {
	t.Helper()
	testkit.OK(t, os.Mkdir(dir, 0o700))
	for i := range 20 {
		der := testkit.Value(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
			Subject: pkix.Name{CommonName: fmt.Sprintf("%s %d", filepath.Base(dir), i)},
		}, testkit.Key("customer")))(t)
		data := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
		testkit.OK(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("%02d.csr", i)), data, 0o600))
	}
}

// checkReleased checks that each file of a folder was issued by exactly one entry.
func checkReleased(t *testing.T, dir, export string) {
	t.Helper()
	issued := map[string]int{}
	for line := range strings.Lines(export) {
		var e api.LedgerEntry
		testkit.OK(t, json.Unmarshal([]byte(line), &e))
		if e.Kind == "issued" {
			issued[e.FileSHA256]++
		}
	}
	files, _ := os.ReadDir(dir) // a batch that was killed early made none
	for _, f := range files {
		if filepath.Ext(f.Name()) != ".req" {
			continue
		}
		if n := issued[api.SHA256(testkit.Value(os.ReadFile(filepath.Join(dir, f.Name())))(t))]; n != 1 {
			t.Errorf("%s was released, and has %d entries", f.Name(), n)
		}
	}
}
