package architecture

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"hsmsign/internal/testkit"
)

// TestRename: after make rename, a copy of the project has another module path everywhere, every import exists, and packages build: a few, or
// all with HSMSIGN_SOAK.
func TestRename(t *testing.T) {
	const renamed = "example.org/team/hsm-sign"
	dir := t.TempDir()
	testkit.OK(t, os.CopyFS(dir, source(t)))
	run := func(name string, args ...string) string {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
		return string(out)
	}
	old := module()
	run("make", "rename", "MODULE="+renamed)
	if got := strings.TrimSpace(run("go", "list", "-m")); got != renamed {
		t.Fatalf("go.mod names %q", got)
	}
	if got := strings.TrimSpace(run("go", "-C", "deploy/release", "list", "-m")); got != renamed+"/deploy/release" {
		t.Errorf("deploy/release/go.mod names %q", got)
	}
	// The test files too: go list fails on an import that does not exist.
	for _, path := range strings.Fields(run("go", "list", "-test", "-deps", "-f", "{{.ImportPath}}", "./...")) {
		if path == old || strings.HasPrefix(path, old+"/") {
			t.Errorf("%s is still imported", path)
		}
	}
	packages := []string{"./chain", "./request", "./secret"} // all of them take half a minute
	if os.Getenv("HSMSIGN_SOAK") != "" {
		packages = []string{"./..."}
	}
	run("go", append([]string{"build"}, packages...)...)
	for _, mod := range testkit.Value(filepath.Glob(filepath.Join(dir, "deploy", "*", "*", "go.mod")))(t) {
		if text := testkit.Value(os.ReadFile(mod))(t); !strings.HasPrefix(string(text), "module "+renamed+"/deploy/") {
			t.Errorf("%s has another path: %.60s", mod, text)
		}
	}
	refused := exec.Command("make", "rename", "MODULE=a b")
	refused.Dir = dir
	if out, err := refused.CombinedOutput(); err == nil {
		t.Errorf("a bad path is accepted: %s", out)
	}
}

// source is the files of the project.
func source(t *testing.T) sourceFS {
	t.Helper()
	root := testkit.Value(filepath.Abs("../.."))(t)
	return sourceFS{os.DirFS(root)}
}

// sourceFS leaves out what git, the builds and the tools keep beside the files.
type sourceFS struct{ fs.FS }

func (s sourceFS) ReadDir(name string) ([]fs.DirEntry, error) {
	entries, err := fs.ReadDir(s.FS, name)
	return slices.DeleteFunc(entries, func(e fs.DirEntry) bool {
		return slices.Contains([]string{".git", ".tools", "bin", "demo-out", "dist"}, e.Name())
	}), err
}
