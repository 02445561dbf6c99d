package architecture

import (
	"bytes"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"hsmsign/internal/testkit"
)

// TestActionsArePinned: every action of the workflow and of the recipes in docs/ci.md is named by a commit, with its version, and the
// workflow may only read.
func TestActionsArePinned(t *testing.T) {
	pinned := regexp.MustCompile(`^ *- uses: [a-z-]+/[a-z-]+@[0-9a-f]{40} # v[0-9]+\.[0-9]+\.[0-9]+$`)
	workflows := testkit.Value(filepath.Glob("../../.github/workflows/*"))(t)
	found := 0
	for _, file := range append(workflows, "../../docs/ci.md") {
		text := string(testkit.Value(os.ReadFile(file))(t))
		for line := range strings.Lines(text) {
			if strings.Contains(line, "uses:") {
				found++
				if !pinned.MatchString(strings.TrimSuffix(line, "\n")) {
					t.Errorf("%s: not pinned by commit and version: %s", file, line)
				}
			}
		}
		if !strings.Contains(text, "\npermissions:\n  contents: read\n") || strings.Contains(text, ": write") {
			t.Errorf("%s: the jobs may do more than read", file)
		}
	}
	if len(workflows) != 1 || found < 5 {
		t.Errorf("%d workflows, %d actions", len(workflows), found)
	}
	text := testkit.Value(os.ReadFile(workflows[0]))(t)
	for _, command := range []string{"- run: .ci/run\n", "- run: make vuln\n", "GOFLAGS: -mod=readonly\n"} {
		if !bytes.Contains(text, []byte(command)) {
			t.Errorf("%s does not contain %q", workflows[0], command)
		}
	}
	if !bytes.Contains(testkit.Value(os.ReadFile("../../.ci/run"))(t), []byte("export GOFLAGS=")) {
		t.Error(".ci/run does not set GOFLAGS")
	}
}

// TestModules: dependabot updates every Go module of the project, and each has the path of the project as a prefix.
func TestModules(t *testing.T) {
	dependabot := string(testkit.Value(os.ReadFile("../../.github/dependabot.yml"))(t))
	files := source(t)
	modules := 0
	testkit.OK(t, fs.WalkDir(files, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != "go.mod" {
			return err
		}
		modules++
		dir := path.Dir(name)
		if !strings.Contains(dependabot, `"`+path.Join("/", dir)+`"`) {
			t.Errorf("dependabot.yml does not have /%s", dir)
		}
		text, err := fs.ReadFile(files, name)
		if want := "module " + path.Join(module(), dir) + "\n"; !strings.HasPrefix(string(text), want) {
			t.Errorf("%s does not begin with %q", name, want)
		}
		return err
	}))
	if modules < 2 {
		t.Errorf("%d modules", modules)
	}
}
