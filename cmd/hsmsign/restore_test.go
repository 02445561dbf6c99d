//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"filippo.io/age"

	"hsmsign/internal/testkit"
	"hsmsign/ledger/postgres/postgrestest"
)

// workshop is a folder with the golden files, an age identity, and the program.
type workshop struct {
	t            *testing.T
	dir, program string
	env          []string
}

func newWorkshop(t *testing.T, env ...string) *workshop {
	t.Helper()
	w := &workshop{t: t, dir: t.TempDir(), program: filepath.Join(t.TempDir(), "hsmsign")} // testscript.Main goes by the name
	testkit.OK(t, copyDir(filepath.Join("..", "..", "testdata", "golden"), w.dir))
	testkit.OK(t, os.Symlink(os.Args[0], w.program))
	identity := testkit.Value(age.GenerateX25519Identity())(t)
	testkit.OK(t, os.WriteFile(w.path("id"), []byte(identity.String()+"\n"), 0o600))
	testkit.OK(t, os.WriteFile(w.path("id.pub"), []byte(identity.Recipient().String()+"\n"), 0o600))
	w.env = append(os.Environ(), append([]string{"HOME=" + w.dir, "XDG_CONFIG_HOME=" + w.dir, "HSMSIGN_LEDGER=sqlite:ledger.db", "HSMSIGN_KEY=file:vendor.key",
		"HSMSIGN_CERT=chain.pem", "HSMSIGN_TRUST_ROOT=root.pem", "HSMSIGN_CUSTOMER=acme"}, env...)...)
	return w
}

func (w *workshop) path(name string) string { return filepath.Join(w.dir, name) }

func (w *workshop) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, w.program, args...)
	cmd.Dir, cmd.Env = w.dir, w.env
	return cmd
}

// run runs the program, which must succeed, and returns what it printed.
func (w *workshop) run(args ...string) string {
	w.t.Helper()
	out, err := w.command(w.t.Context(), args...).CombinedOutput()
	if err != nil {
		w.t.Fatalf("%v: %v: %s", args, err, out)
	}
	return string(out)
}

// interrupted runs the program and sends a signal after growing delays, until a run ends before it. each is called after
// every run that was interrupted.
func (w *workshop) interrupted(signal syscall.Signal, each func(), args ...string) {
	w.t.Helper()
	for delay, n := time.Millisecond, 0; ; delay += 2 * time.Millisecond {
		ctx, cancel := context.WithTimeout(w.t.Context(), delay)
		cmd := w.command(ctx, args...)
		cmd.Cancel = func() error { return cmd.Process.Signal(signal) }
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		err := cmd.Run()
		cancel()
		if err == nil {
			if n < 5 {
				w.t.Errorf("%v was interrupted %d times", args, n)
			}
			return
		}
		if ctx.Err() == nil {
			w.t.Fatalf("%v: %v: %s", args, err, &out)
		}
		n++
		each()
	}
}

// exists returns whether a file exists.
func (w *workshop) exists(name string) bool {
	_, err := os.Lstat(w.path(name))
	return err == nil
}

// unfinished returns what is left of runs that did not end.
func (w *workshop) unfinished() []string {
	found := testkit.Value(filepath.Glob(w.path(".hsmsign-unfinished-*")))(w.t)
	for _, path := range found {
		if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o077 != 0 {
			w.t.Errorf("others can open %s: %v", path, info.Mode())
		}
	}
	return found
}

// fill makes a ledger with entries, a backup, and entries after it.
func (w *workshop) fill() {
	w.run("ledger", "init", "--origin", "example.com/kill")
	makeBatch(w.t, w.path("in"))
	w.run("sign", "--out-dir", "out", "in")
	w.run("ledger", "customer", "add", "bolt")
	w.run("ledger", "backup", "--recipients-file", "id.pub", "-o", "backup.age")
	testkit.OK(w.t, os.WriteFile(w.path("last-at-backup"), testkit.Value(os.ReadFile(w.path("ledger.db.last")))(w.t), 0o600))
	w.run("ledger", "customer", "erase", "--yes", "bolt")
}

// TestRestoreKilled kills a restore (SIGKILL) at growing delays: the ledger has its name whole or not at all, and the next run
// completes it.
func TestRestoreKilled(t *testing.T) {
	t.Parallel()
	w := newWorkshop(t)
	w.fill()
	remove := func() {
		for _, name := range []string{"ledger.db", "ledger.db-wal", "ledger.db-shm"} {
			if err := os.Remove(w.path(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
		}
	}
	remove()
	reset := func() { // the last checkpoint that is known is older than the erasure, which the copy lacks
		testkit.OK(t, os.WriteFile(w.path("ledger.db.last"), testkit.Value(os.ReadFile(w.path("last-at-backup")))(t), 0o600))
	}
	reset()
	whole := 0
	w.interrupted(syscall.SIGKILL, func() {
		if w.exists("ledger.db") {
			whole++
			if verdict := w.run("ledger", "verify"); !strings.HasPrefix(verdict, "ok: ") {
				t.Errorf("after a kill: %s", verdict)
			}
			remove()
		}
		w.unfinished()
		reset()
	}, "ledger", "restore", "--identity", "id", "backup.age")
	if verdict := w.run("ledger", "verify"); !strings.HasPrefix(verdict, "ok: 44 entries") {
		t.Error(verdict)
	}
	if data := testkit.Value(os.ReadFile(w.path("ledger.db")))(t); bytes.Contains(data, []byte("bolt")) {
		t.Error("the erased customer is in the file")
	}
	t.Logf("killed after the file had its name: %d times", whole)
}

// TestContinueKilled kills the making of a new ledger at growing delays: it is there whole or not at all, and the next run
// completes it with the key that the killed one left.
func TestContinueKilled(t *testing.T) {
	t.Parallel()
	w := newWorkshop(t)
	w.fill()
	remove := func() {
		for _, name := range testkit.Value(filepath.Glob(w.path("new.db*")))(t) {
			testkit.OK(t, os.Remove(name))
		}
	}
	n := 0
	w.interrupted(syscall.SIGKILL, func() {
		out, err := w.command(t.Context(), "ledger", "verify", "--ledger", "sqlite:new.db").CombinedOutput()
		made := w.exists("new.db.last")
		if err == nil && !strings.HasPrefix(string(out), "ok: 22 entries") || err != nil && made {
			t.Errorf("after a kill: %v: %s", err, out)
		}
		if err == nil || made {
			remove()
		} else if n++; n%4 == 0 { // otherwise the next run finds what is left
			remove()
		}
		w.unfinished()
	}, "ledger", "restore", "--identity", "id", "--new-origin", "example.com/kill-2", "--new-ledger", "sqlite:new.db", "backup.age")
	if verdict := w.run("ledger", "verify", "--ledger", "sqlite:new.db"); !strings.HasPrefix(verdict, "ok: 22 entries") {
		t.Error(verdict)
	}
}

// TestBackupInterrupted ends a backup at growing delays: after SIGTERM nothing unencrypted remains, and also after SIGKILL
// nothing in the folder of the backup, which is whole or does not exist.
func TestBackupInterrupted(t *testing.T) {
	t.Parallel()
	w := newWorkshop(t)
	w.fill()
	testkit.OK(t, os.Mkdir(w.path("target"), 0o700))
	target := func() {
		for _, e := range testkit.Value(os.ReadDir(w.path("target")))(t) {
			data := testkit.Value(os.ReadFile(w.path("target/" + e.Name())))(t)
			if e.Name() != "b.age" || !bytes.HasPrefix(data, []byte("age-encryption.org/v1\n")) {
				t.Errorf("left in the target: %s", e.Name())
			}
			testkit.OK(t, os.Remove(w.path("target/"+e.Name())))
		}
	}
	check := func() {
		if left := w.unfinished(); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
		target()
	}
	w.interrupted(syscall.SIGTERM, check, "ledger", "backup", "--recipients-file", "id.pub", "-o", "target/b.age")
	if !w.exists("target/b.age") {
		t.Error("no backup")
	}
	check()
	w.interrupted(syscall.SIGKILL, func() { w.unfinished(); target() }, "ledger", "backup", "--recipients-file", "id.pub", "-o", "target/b.age")
}

// TestFullDisk backs up to, and restores to, a disk that is too small: one line, and nothing is left.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	if out, err := exec.CommandContext(t.Context(), "unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt").CombinedOutput(); err != nil {
		t.Skipf("this account cannot mount a small disk: %v: %s", err, out)
	}
	w := newWorkshop(t)
	w.fill()
	w.run("ledger", "backup", "-o", "plain.db")
	testkit.OK(t, os.Mkdir(w.path("small"), 0o700))
	for _, kilobytes := range []int{8, 64, 200} {
		for name, args := range map[string]string{
			"backup":           "ledger backup -o small/b.db",
			"encrypted backup": "ledger backup --recipients-file id.pub -o small/b.age",
			"restore":          "ledger restore --ledger sqlite:small/ledger.db --checkpoint-key ledger.db.key --against ledger.db.last plain.db",
			"encrypted":        "ledger restore --identity id --ledger sqlite:small/ledger.db --checkpoint-key ledger.db.key --against ledger.db.last backup.age",
			"new origin":       "ledger restore --new-origin example.com/x --new-ledger sqlite:small/new.db --new-checkpoint-key new.key plain.db",
		} {
			script := "mount -t tmpfs -o size=" + strconv.Itoa(kilobytes) + "k none small && " + w.program + " " + args + "; code=$?; ls -A small >&2; exit $code"
			cmd := exec.CommandContext(t.Context(), "unshare", "-rm", "sh", "-c", script) // #nosec G204 -- constants
			cmd.Dir, cmd.Env = w.dir, w.env
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			lines := strings.SplitN(string(out), "\n", 2)
			if !errors.As(err, &exit) || exit.ExitCode() != 6 || !strings.HasPrefix(lines[0], "hsmsign: ") || !strings.Contains(lines[0], "the ledger cannot be used: ") {
				t.Errorf("%s, %d KB: %v: %s", name, kilobytes, err, out)
			}
			if len(lines) > 1 && lines[1] != "" {
				t.Errorf("%s, %d KB: left %s", name, kilobytes, lines[1])
			}
			if w.exists("new.key") {
				t.Errorf("%s: the key of no ledger is left", name)
			}
		}
	}
}

// TestRestorePostgres checks a restored database where it is, and continues an older one under a new origin.
func TestRestorePostgres(t *testing.T) {
	t.Parallel()
	server := testkit.Value(postgrestest.Start())(t)
	t.Cleanup(server.Stop)
	store := server.Schema(t)
	w := newWorkshop(t, "HSMSIGN_LEDGER="+store, "HSMSIGN_CHECKPOINT_KEY=key", "HSMSIGN_LAST_CHECKPOINT=last")
	w.run("ledger", "init", "--origin", "example.com/pg")
	makeBatch(t, w.path("in"))
	w.run("sign", "--out-dir", "out", "in")
	if out := w.run("ledger", "restore", store); !strings.Contains(out, "is whole: 42 entries; 0 customers") {
		t.Error(out)
	}
	if out := w.run("ledger", "restore", "--new-origin", "example.com/pg-2", "--new-ledger", "sqlite:new.db", store); !strings.Contains(out, "continued 1 customers, 20 requests") {
		t.Error(out)
	}
	// And back into a database.
	second := server.Schema(t)
	w.env = append(w.env, "HSMSIGN_LEDGER=sqlite:new.db", "HSMSIGN_CHECKPOINT_KEY=new.db.key", "HSMSIGN_LAST_CHECKPOINT=new.db.last")
	back := []string{"ledger", "restore", "--new-origin", "example.com/pg-3", "--new-ledger", second, "--new-checkpoint-key", "key3", "--new-last-checkpoint", "last3", "new.db"}
	w.run(back...)
	w.env = append(w.env, "HSMSIGN_LEDGER="+second, "HSMSIGN_CHECKPOINT_KEY=key3", "HSMSIGN_LAST_CHECKPOINT=last3")
	if out := w.run("ledger", "verify"); !strings.HasPrefix(out, "ok: 22 entries of example.com/pg-3 are whole") {
		t.Error(out)
	}
	w.run("sign", "--out-dir", "again", "in")
	if out := w.run("ledger", "status"); !strings.Contains(out, "22") {
		t.Errorf("stored requests were signed again: %s", out)
	}
	for _, name := range []string{"00.req", "19.req"} {
		if !bytes.Equal(testkit.Value(os.ReadFile(w.path("again/"+name)))(t), testkit.Value(os.ReadFile(w.path("out/"+name)))(t)) {
			t.Errorf("%s differs", name)
		}
	}
}

// TestRunbook runs the commands of the compromise runbook in docs/ledger.md unchanged: an intruder has the checkpoint key, and
// has added a customer and a request after the trusted checkpoint.
func TestRunbook(t *testing.T) {
	t.Parallel()
	_, section, ok := strings.Cut(readDoc(t, "ledger.md"), "\n## When the checkpoint key is compromised\n")
	section, _, _ = strings.Cut(section, "\n## ")
	blocks := regexp.MustCompile("(?s)```sh runbook\n(.*?)```").FindAllStringSubmatch(section, -1)
	if !ok || len(blocks) < 4 {
		t.Fatalf("%d blocks", len(blocks))
	}
	w := newWorkshop(t)
	init := w.run("ledger", "init", "--origin", "example.com/mdm")
	_, verifier, _ := strings.Cut(init, "verifier key: ")
	verifier, _, _ = strings.Cut(verifier, "\n")
	testkit.OK(t, os.WriteFile(w.path("old.pub"), []byte(verifier+"\n"), 0o600))
	testkit.OK(t, os.Rename(w.path("customer.csr"), w.path("acme.csr")))
	w.run("ledger", "customer", "add", "--contact", "it@acme.example", "acme")
	testkit.OK(t, os.WriteFile(w.path("trusted"), testkit.Value(os.ReadFile(w.path("ledger.db.last")))(t), 0o600))
	w.run("sign", "--receipt", "-o", "thief.req", "--customer", "thief", "acme.csr")
	w.env = slices.DeleteFunc(w.env, func(v string) bool {
		return strings.HasPrefix(v, "HSMSIGN_LEDGER=") || strings.HasPrefix(v, "HSMSIGN_CUSTOMER=")
	})
	w.env = append(w.env, "PATH="+filepath.Dir(w.program)+":"+os.Getenv("PATH"))
	for _, block := range blocks {
		var script strings.Builder
		for line := range strings.Lines(block[1]) {
			script.WriteString(strings.TrimPrefix(line, "   "))
		}
		cmd := exec.CommandContext(t.Context(), "sh", "-eu", "-c", script.String()) // #nosec G204 -- the project's own document
		cmd.Dir, cmd.Env = w.dir, w.env
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s\n%v: %s", script.String(), err, out)
		}
	}
	review := string(testkit.Value(os.ReadFile(w.path("review.jsonl")))(t))
	if strings.Count(review, "\n") != 3 || !strings.Contains(review, `"customer":"thief"`) || strings.Contains(review, `"customer":"acme"`) {
		t.Errorf("to review: %s", review)
	}
	w.env = append(w.env, "HSMSIGN_LEDGER=sqlite:ledger-2.db")
	if out := w.run("ledger", "verify", "--verifier-key", "new.pub"); !strings.HasPrefix(out, "ok: 5 entries of example.com/mdm-2") {
		t.Error(out)
	}
	if out := w.run("ledger", "customer", "list"); strings.Contains(out, "thief") || !strings.Contains(out, "it@acme.example") {
		t.Error(out)
	}
	if out := w.run("ledger", "show", "0"); !strings.Contains(out, string(testkit.Value(os.ReadFile(w.path("trusted")))(t))) {
		t.Errorf("the first entry does not say where trust ends: %s", out)
	}
}
