//go:build linux

package main

import (
	"context"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"hsmsign/internal/testkit"
	"hsmsign/ledger/postgres/postgrestest"
)

// TestMoveKilled kills a move to another store (SIGKILL) at growing delays: at most one of the stores is appended to, and the next
// run completes it.
func TestMoveKilled(t *testing.T) {
	t.Parallel()
	w := newWorkshop(t, "HSMSIGN_CHECKPOINT_KEY=ledger.db.key")
	w.run("ledger", "init", "--origin", "example.com/kill")
	makeBatch(t, w.path("in"))
	w.run("sign", "--out-dir", "out", "in")
	before := testkit.Value(os.ReadFile(w.path("ledger.db")))(t)
	last := testkit.Value(os.ReadFile(w.path("ledger.db.last")))(t)
	appends := func(store string) bool {
		if !w.exists(store) {
			return false
		}
		out, err := w.command(t.Context(), "freeze", "--ledger", "sqlite:"+store, "--last-checkpoint", store+".own", "--all", "--reason", "x").CombinedOutput()
		if err != nil && !strings.Contains(string(out), "was moved to") && !strings.Contains(string(out), "not complete") && !strings.Contains(string(out), "contains no ledger") &&
			!strings.Contains(string(out), "no such table") {
			t.Errorf("%s: %s", store, out)
		}
		return err == nil
	}
	closed, kills := 0, 0
	for delay := 10 * time.Millisecond; ; delay += 15 * time.Millisecond {
		for _, pattern := range []string{"ledger.db*", "new.db*"} {
			for _, name := range testkit.Value(filepath.Glob(w.path(pattern)))(t) {
				if filepath.Base(name) != "ledger.db.key" {
					testkit.OK(t, os.Remove(name))
				}
			}
		}
		testkit.OK(t, os.WriteFile(w.path("ledger.db"), before, 0o600))
		testkit.OK(t, os.WriteFile(w.path("ledger.db.last"), last, 0o600))
		ctx, cancel := context.WithTimeout(t.Context(), delay)
		err := w.command(ctx, "ledger", "copy", "--to", "sqlite:new.db").Run()
		cancel()
		old, moved := appends("ledger.db"), appends("new.db")
		if old && moved || err == nil && (old || !moved) {
			t.Fatalf("after %v: appends to the old store %v, to the new one %v; %v", delay, old, moved, err)
		}
		if !old {
			closed++
		}
		w.run("ledger", "copy", "--to", "sqlite:new.db")
		if verdict := w.run("ledger", "verify", "--ledger", "sqlite:new.db"); !strings.HasPrefix(verdict, "ok: 4") {
			t.Errorf("after %v: %s", delay, verdict)
		}
		if err == nil {
			break
		}
		kills++
	}
	if kills < 2 {
		t.Errorf("killed %d times", kills)
	}
	t.Logf("killed %d times, after the ledger was closed: %d", kills, closed-1)
}

// TestOperations runs the blocks of docs/operations.md unchanged, one after the other: backup and restore of both stores, the move
// from one to the other, and the overlap of two vendor identities.
func TestOperations(t *testing.T) {
	t.Parallel()
	server := testkit.Value(postgrestest.Start("log_min_messages = warning"))(t)
	t.Cleanup(server.Stop)
	w := newWorkshop(t)
	dir := t.TempDir()
	for from, to := range map[string]string{"id": "backup.key", "id.pub": "team.txt"} {
		testkit.OK(t, os.Rename(w.path(from), filepath.Join(dir, to)))
	}
	base := testkit.Value(url.Parse(server.Schema(t)))(t)
	w.env = slices.DeleteFunc(w.env, func(v string) bool { return strings.HasPrefix(v, "HSMSIGN_") })
	w.dir, w.env = dir, append(w.env, "PATH="+filepath.Dir(w.program)+":"+os.Getenv("PATH"), "PGHOST="+base.Query().Get("host"), "PGUSER=hsmsign")
	var script strings.Builder
	for _, block := range regexp.MustCompile("(?ms)^( *)```sh\n(.*?)^ *```$").FindAllStringSubmatch(readDoc(t, "operations.md"), -1) {
		for line := range strings.Lines(block[2]) {
			script.WriteString(strings.TrimPrefix(line, block[1]))
		}
	}
	cmd := exec.CommandContext(t.Context(), "bash", "-euxo", "pipefail", "-c", script.String()) // #nosec G204 -- the project's own document
	cmd.Dir, cmd.Env = w.dir, w.env
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Count(string(out), "\n+ hsmsign ") < 25 {
		t.Fatalf("%v\n%s", err, out)
	}
	if _, err := w.command(t.Context(), "ledger", "customer", "add", "--ledger", "sqlite:ledger.db", "bolt").CombinedOutput(); err == nil {
		t.Error("the old store is appended to")
	}
	w.env = append(w.env, "HSMSIGN_CONFIG=hsmsign.yaml")
	for args, want := range map[string]string{
		"ledger verify": "ok: ", "ledger list --kind superseded --limit 1": "superseded", "vendor status": "acme-2027 (active): ok",
	} {
		if out := w.run(strings.Fields(args)...); !strings.Contains(out, want) {
			t.Errorf("%s: %s", args, out)
		}
	}
}
