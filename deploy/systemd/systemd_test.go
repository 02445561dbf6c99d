// Package systemd contains the units of hsmsign serve and of ledger due. The tests run systemd-analyze on them; package server
// checks what the service needs of its unit.
package systemd

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"hsmsign/internal/testkit"
)

func read(t *testing.T, path string) string {
	t.Helper()
	return string(testkit.Value(os.ReadFile(path))(t))
}

// TestExposure holds the scores of the sandboxes that docs/performance.md names: 0.0 is no exposure, 10.0 is no sandbox. A
// newer systemd may count more, and so is only compared upwards.
func TestExposure(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("systemd-analyze is missing; make deps installs it")
	}
	version := string(testkit.Value(exec.CommandContext(t.Context(), "systemd-analyze", "--version").Output())(t))
	documented := regexp.MustCompile(`(?m)^\| .hsmsign(-due)?\.service.( with .([a-z-]+\.conf).)? \| ([0-9.]+) \|$`).FindAllStringSubmatch(read(t, "../../docs/performance.md"), -1)
	if len(documented) != 4 {
		t.Fatalf("docs/performance.md has %d scores", len(documented))
	}
	for _, row := range documented {
		unit, dropin, want := "hsmsign"+row[1]+".service", row[3], row[4]
		dir := t.TempDir()
		testkit.OK(t, os.WriteFile(filepath.Join(dir, unit), []byte(read(t, unit)), 0o600))
		if dropin != "" {
			testkit.OK(t, os.Mkdir(filepath.Join(dir, unit+".d"), 0o700))
			testkit.OK(t, os.WriteFile(filepath.Join(dir, unit+".d", dropin), []byte(read(t, dropin)), 0o600))
		}
		cmd := exec.CommandContext(t.Context(), "systemd-analyze", "security", "--no-pager", "--offline=true", "./"+unit)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "SYSTEMD_UNIT_PATH="+dir+":")
		out, err := cmd.CombinedOutput()
		found := regexp.MustCompile(`Overall exposure level for \S+: ([0-9.]+) `).FindSubmatch(out)
		if err != nil || found == nil {
			t.Fatalf("%v: %s", err, out)
		}
		if got := string(found[1]); len(got) != len(want) || got > want || strings.HasPrefix(version, "systemd 252 ") && got != want {
			t.Errorf("%s %s: %s, and docs/performance.md says %s:\n%s", unit, dropin, got, want, out)
		}
	}
}

// The service of the timer has every restriction of the service.
func TestDueSandbox(t *testing.T) {
	_, sandbox, ok := strings.Cut(read(t, "hsmsign.service"), "\nNoNewPrivileges=yes\n")
	if !ok {
		t.Fatal("hsmsign.service has no sandbox")
	}
	due := strings.Split(read(t, "hsmsign-due.service"), "\n")
	lines := regexp.MustCompile(`(?m)^[A-Z][A-Za-z]+=.*$`).FindAllString(strings.Split(sandbox, "[Install]")[0], -1)
	if len(lines) < 20 {
		t.Errorf("%d restrictions", len(lines))
	}
	for _, line := range append(lines, "NoNewPrivileges=yes", "User=hsmsign", "LoadCredential=secrets:/etc/hsmsign/secrets") {
		if !slices.Contains(due, line) {
			t.Errorf("hsmsign-due.service has no %s", line)
		}
	}
}

// The lines that make the user are the same in the package's scriptlet, which runs before its files are there.
func TestUser(t *testing.T) {
	line := regexp.MustCompile(`(?m)^u hsmsign .*$`)
	file, script := line.FindString(read(t, "hsmsign.sysusers")), line.FindString(read(t, "../packages/scripts/preinstall.sh"))
	if file == "" || file != script {
		t.Errorf("%q and %q", file, script)
	}
}

// TestPackage compares the paths of the packages with those that the units name, and that no unit is left out.
func TestPackage(t *testing.T) {
	list := read(t, "../packages/nfpm.yaml")
	for _, entry := range testkit.Value(os.ReadDir("."))(t) {
		if name := entry.Name(); !strings.HasSuffix(name, ".go") && !strings.Contains(list, "src: deploy/systemd/"+name+",") {
			t.Errorf("the packages do not contain %s", name)
		}
	}
	for _, path := range []string{"/usr/bin/hsmsign", "/etc/hsmsign/hsmsign.yaml", "/etc/hsmsign/secrets"} {
		if !strings.Contains(read(t, "hsmsign.service"), path) || !strings.Contains(list, "dst: "+path+",") {
			t.Errorf("%s is not in both", path)
		}
	}
	// -n: nothing is run.
	for _, script := range testkit.Value(filepath.Glob("../packages/*/*.sh"))(t) {
		if out, err := exec.CommandContext(t.Context(), "bash", "-n", script).CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", script, err, out)
		}
	}
}
