//go:build linux && cgo

package main

import (
	"crypto/rand"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"hsmsign/api"
	"hsmsign/config"
	"hsmsign/internal/testkit"
	softhsmtest "hsmsign/softhsm-test"
)

// setupHost is a host as the packages make it, in a folder: setup runs as root, and the service as another user.
type setupHost struct {
	t       *testing.T
	token   *softhsmtest.Token
	program string
	dir     string // of the configuration, with secrets
	state   string // folder of the service's user
	user    *account
}

func newSetupHost(t *testing.T) *setupHost {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can be another user")
	}
	h := &setupHost{t: t, user: testkit.Value(findAccount("daemon"))(t)}
	h.token = softhsmtest.New(t, softhsmtest.WithPIN(rand.Text()))
	h.token.Import(t, testkit.File(t, "golden/vendor.key"), "vendor", []byte{1})
	testkit.OK(t, os.Chmod(h.token.Conf, 0o644))
	h.dir, h.state = t.TempDir(), t.TempDir()
	testkit.OK(t, os.Chmod(filepath.Dir(h.dir), 0o755))
	testkit.OK(t, copyDir(filepath.Join("..", "..", "testdata", "golden"), h.dir))
	for _, name := range []string{"chain.pem", "root.pem"} {
		testkit.OK(t, os.Chmod(filepath.Join(h.dir, name), 0o644))
	}
	testkit.OK(t, os.Mkdir(filepath.Join(h.dir, "secrets"), 0o700))
	testkit.OK(t, os.Chown(h.state, h.user.uid, h.user.gid))
	h.program = filepath.Join(t.TempDir(), "hsmsign") // testscript.Main goes by the name
	testkit.OK(t, os.Link(os.Args[0], h.program))
	return h
}

// args are the arguments of setup for a key.
func (h *setupHost) args(source string, more ...string) []string {
	key := "pkcs11:token=" + h.token.Label + ";object=vendor?module-path=" + h.token.Module + source
	return append([]string{
		"setup", "--config", filepath.Join(h.dir, "hsmsign.yaml"), "--user", h.user.name, "--key", key, "--cert", filepath.Join(h.dir, "chain.pem"),
		"--chain", filepath.Join(h.dir, "chain.pem"), "--trust-root", filepath.Join(h.dir, "root.pem"), "--ledger", "sqlite:" + filepath.Join(h.state, "ledger.db"),
		"--origin", "example.com/host", "--listen", "unix:///run/hsmsign/agent.sock", "--operator", "bin", "--approvals", "none",
	}, more...)
}

// give makes a user the owner of all files of the token.
func (h *setupHost) give(a *account) {
	h.t.Helper()
	testkit.OK(h.t, filepath.WalkDir(filepath.Join(h.token.Dir, "tokens"), func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, a.uid, a.gid)
	}))
}

// typed runs setup on a terminal, where the PIN is typed, and returns its exit code.
func (h *setupHost) typed() (*terminal, int) {
	h.t.Helper()
	term := runOnTerminal(h.t, h.program, h.dir, h.args("")...)
	term.waitFor("PIN of token", 1)
	term.waitForEcho(false)
	term.write(h.token.PIN + "\n")
	term.waitFor("as portal [none]: ", 1)
	term.write("\n")
	term.waitFor("write them? [y/N] ", 1)
	term.write("y\n")
	code := term.exit()
	if all := term.shown() + term.stdout.String(); strings.Contains(all, h.token.PIN) {
		h.t.Errorf("the PIN is shown: %s", all)
	}
	return term, code
}

// A PIN that root types becomes a credential of the service. A token that root alone can read is refused, and leaves no PIN behind.
func TestSetupTypedPIN(t *testing.T) {
	h := newSetupHost(t)
	pin, path := filepath.Join(h.dir, "secrets", "pin"), filepath.Join(h.dir, "hsmsign.yaml")
	term, code := h.typed()
	if want := "the user daemon must be able to read and write SoftHSM2's folder of tokens: make the token as that user"; code == 0 || !strings.Contains(term.shown(), want) {
		t.Errorf("exit code %d: %s\n%s", code, term.shown(), term.stdout.String())
	}
	for _, name := range []string{pin, path} {
		if _, err := os.Lstat(name); !os.IsNotExist(err) {
			t.Errorf("%s stays: %v", name, err)
		}
	}
	h.give(h.user)
	if term, code = h.typed(); code != 0 {
		t.Fatalf("exit code %d: %s\n%s", code, term.shown(), term.stdout.String())
	}
	info := testkit.Value(os.Lstat(pin))(t)
	if data := testkit.Value(os.ReadFile(pin))(t); string(data) != h.token.PIN+"\n" || info.Mode() != 0o600 || info.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Errorf("the file of the PIN has mode %v and owner %d", info.Mode(), info.Sys().(*syscall.Stat_t).Uid)
	}
	text := string(testkit.Value(os.ReadFile(path))(t))
	if !strings.Contains(text, "pin-source=credential:secrets_pin") || strings.Contains(text, h.token.PIN) {
		t.Error(text)
	}
	for _, name := range []string{"ledger.db", "ledger.db.key", "ledger.db.last"} {
		if owner := testkit.Value(os.Lstat(filepath.Join(h.state, name)))(t).Sys().(*syscall.Stat_t).Uid; int(owner) != h.user.uid {
			t.Errorf("%s belongs to %d", name, owner)
		}
	}
}

// The credential of a PIN is read in secrets, and the service's user signs with it. Without systemd there is no credential for
// anything else.
func TestSetupCredential(t *testing.T) {
	h := newSetupHost(t)
	h.give(h.user)
	pin := filepath.Join(h.dir, "secrets", "pin")
	run := func(args ...string) (string, error) {
		out, err := exec.CommandContext(t.Context(), h.program, args...).CombinedOutput()
		return string(out), err
	}
	for _, tt := range []struct{ flag, value, want string }{
		{"--checkpoint-key", "credential:secrets_k", `--checkpoint-key: "credential:secrets_k" is a credential, and systemd does not run hsmsign.service with this configuration here; name a file`},
		{"--checkpoint-key", "credential:k", `"credential:k" is not a credential of the service; write credential:secrets_NAME for the file NAME in ` + h.dir + "/secrets"},
		{"--checkpoint-key", "credential:secrets_../k", `is not a credential of the service`},
	} {
		testkit.OK(t, os.WriteFile(pin, []byte(h.token.PIN+"\n"), 0o600))
		out, err := run(h.args("&pin-source=credential:secrets_pin", "--yes", tt.flag, tt.value)...)
		if err == nil || !strings.Contains(out, tt.want) {
			t.Errorf("%s %s: %v: %s", tt.flag, tt.value, err, out)
		}
	}
	testkit.OK(t, os.Chmod(pin, 0o644))
	if out, err := run(h.args("&pin-source=credential:secrets_pin", "--yes")...); err == nil || !strings.Contains(out, "mode 0644") {
		t.Errorf("a PIN that others can read: %v: %s", err, out)
	}
	testkit.OK(t, os.Chmod(pin, 0o600))
	out, err := run(h.args("&pin-source=credential:secrets_pin", "--yes")...)
	if err != nil || !strings.Contains(out, "ok       signature") || strings.Contains(out, h.token.PIN) {
		t.Fatalf("%v: %s", err, out)
	}
	if c := testkit.Value(config.Load(filepath.Join(h.dir, "hsmsign.yaml")))(t); !strings.Contains(c.Key, "pin-source=credential:secrets_pin") {
		t.Errorf("key %s", c.Key)
	}
	if info := testkit.Value(os.Lstat(pin))(t); info.Mode() != 0o600 || info.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Errorf("the PIN has mode %v now", info.Mode())
	}
}

// What a program needs to run as the service, of the unit and the drop-in of the packages.
func TestProgramSettings(t *testing.T) {
	unit := ""
	for _, name := range []string{"hsmsign.service", "softhsm.conf"} {
		unit += "# /usr/lib/systemd/system/" + name + "\n" + string(testkit.Value(os.ReadFile(filepath.Join("..", "..", "deploy", "systemd", name)))(t)) + "\n"
	}
	unit += "[Service]\n; ReadOnlyPaths=/comment\nReadOnlyPaths=/a \\\n  /b\nSupplementaryGroups=\n[Install]\nUser=other\n"
	got := programSettings(unit)
	for _, want := range []string{
		"User=hsmsign", "LoadCredential=secrets:/etc/hsmsign/secrets", "StateDirectory=hsmsign", "PrivateDevices=yes", "SystemCallFilter=~@privileged @resources",
		"MemoryDenyWriteExecute=yes", "SupplementaryGroups=softhsm", "ReadWritePaths=/var/lib/softhsm/tokens", "ReadOnlyPaths=/a    /b", "SupplementaryGroups=",
	} {
		if !slices.Contains(got, want) {
			t.Errorf("no %s in %q", want, got)
		}
	}
	for _, setting := range got {
		for _, not := range []string{"Type=", "Exec", "Restart", "KillMode", "Timeout", "RuntimeDirectory", "User=other", "Documentation", "StartLimit", "#", ";", "ReadOnlyPaths=/comment"} {
			if strings.HasPrefix(setting, not) {
				t.Errorf("%s", setting)
			}
		}
	}
	if i, j := slices.Index(got, "SupplementaryGroups=softhsm"), slices.Index(got, "SupplementaryGroups="); i > j {
		t.Error("a later setting is not later")
	}
}

// A ledger in PostgreSQL is made, and used again.
func TestSetupPostgres(t *testing.T) {
	t.Parallel()
	store := postgres(t)
	w := newWorkshop(t)
	w.env = slices.DeleteFunc(w.env, func(v string) bool { return strings.HasPrefix(v, "HSMSIGN_") })
	path := w.path("made/hsmsign.yaml")
	setup := []string{
		"setup", "--config", path, "--yes", "--key", "file:" + w.path("vendor.key"), "--cert", w.path("chain.pem"), "--trust-root", w.path("root.pem"),
		"--ledger", store, "--origin", "example.com/pg", "--operator", "daemon", "--json",
	}
	for run, files := range [][]string{{"ledger.key", "ledger.last", "ledger.pub", "hsmsign.yaml"}, nil} {
		if run == 1 {
			setup = append(setup, "--replace")
		}
		var made api.Setup
		out := testkit.Value(w.command(t.Context(), setup...).Output())(t)
		testkit.OK(t, json.Unmarshal(out, &made))
		var names []string
		for _, f := range made.Files {
			names = append(names, filepath.Base(f.Path))
		}
		if files != nil && !slices.Equal(names, files) || run == 1 && (made.Origin != "" || len(names) != 2) {
			t.Errorf("run %d: %q, origin %q", run, names, made.Origin)
		}
		c := testkit.Value(config.Load(path))(t)
		if c.Ledger.Store != store || c.Ledger.VerifierKey != w.path("made/ledger.pub") || c.Ledger.CheckpointKey != w.path("made/ledger.key") {
			t.Errorf("ledger: %+v", c.Ledger)
		}
		if out := w.run("--config", path, "ledger", "verify"); !strings.HasPrefix(out, "ok: ") || !strings.Contains(out, "example.com/pg") {
			t.Error(out)
		}
		if n := strings.Count(w.run("--config", path, "ledger", "list", "--kind", "probe", "--json"), `"kind":"probe"`); n != run+1 {
			t.Errorf("%d probes after run %d", n, run)
		}
	}
	// Another ledger has no such origin: the verifier key of this one does not fit.
	setup[slices.Index(setup, store)] = postgres(t)
	if out, err := w.command(t.Context(), setup...).CombinedOutput(); err == nil {
		t.Errorf("an empty database was used with the keys of another ledger: %s", out)
	}
}
