package softhsmtest_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"hsmsign/internal/testkit"
	softhsmtest "hsmsign/softhsm-test"
)

// recipe returns the block of docs/ci.md whose first line is "# NAME", for SoftHSM2 where it is on this host.
func recipe(t *testing.T, name string) string {
	t.Helper()
	text := testkit.Value(os.ReadFile("../docs/ci.md"))(t)
	block := regexp.MustCompile("(?s)```[a-z]+\n# " + regexp.QuoteMeta(name) + "\n(.*?)```").FindSubmatch(text)
	if block == nil {
		t.Fatalf("docs/ci.md has no %s", name)
	}
	module := testkit.Value(softhsmtest.FindModule())(t)
	if !bytes.Contains(block[1], []byte(debianModule)) {
		t.Fatalf("%s uses no token", name)
	}
	return strings.ReplaceAll(string(block[1]), debianModule, module)
}

// runStep runs a program in a folder, with hsmsign in its PATH and no settings of another use of hsmsign.
func runStep(t *testing.T, dir string, env []string, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...) // #nosec G204 -- the project's own documents
	cmd.Dir = dir
	cmd.Env = append([]string{"PATH=" + binary + ":" + os.Getenv("PATH"), "HOME=" + dir, "XDG_CONFIG_HOME=" + dir}, env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
	return out
}

// verified checks that a recipe verified acme.req, and that this request does not pass with another CSR.
func verified(t *testing.T, dir string, out []byte) {
	t.Helper()
	if !bytes.Contains(out, []byte("acme.req")) {
		t.Errorf("nothing was verified:\n%s", out)
	}
	testkit.OK(t, os.WriteFile(filepath.Join(dir, "other.csr"), testkit.File(t, "golden/customer.csr"), 0o600))
	cmd := exec.CommandContext(t.Context(), filepath.Join(binary, "hsmsign"), "verify", "--trust-root", "pki/root.pem", "--csr", "other.csr", "acme.req")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err == nil || cmd.ProcessState.ExitCode() != 7 {
		t.Errorf("the request is one for another CSR too: %v\n%s", err, out)
	}
}

// TestCIGitHub runs the steps of the workflow as a runner does: each is a script for bash, and lines in GITHUB_ENV are variables of
// the steps that follow.
func TestCIGitHub(t *testing.T) {
	var workflow struct {
		Jobs map[string]struct {
			Defaults struct{ Run struct{ Shell string } }
			Steps    []struct{ Name, Uses, Run string }
		}
	}
	testkit.OK(t, yaml.Unmarshal([]byte(recipe(t, ".github/workflows/hsmsign.yml")), &workflow))
	job, ok := workflow.Jobs["sign"]
	if !ok || len(job.Steps) != 5 || job.Steps[0].Uses == "" || job.Steps[1].Name != "Install" || job.Defaults.Run.Shell != "bash" {
		t.Fatalf("%+v", workflow)
	}
	dir, temp := t.TempDir(), t.TempDir()
	file := filepath.Join(temp, "github-env")
	testkit.OK(t, os.WriteFile(file, nil, 0o600))
	var out []byte
	for _, step := range job.Steps[2:] { // not the checkout and not the installation
		script := filepath.Join(temp, "step.sh")
		testkit.OK(t, os.WriteFile(script, []byte(step.Run), 0o600))
		env := append(strings.Fields(string(testkit.Value(os.ReadFile(file))(t))), "RUNNER_TEMP="+temp, "GITHUB_ENV="+file)
		out = runStep(t, dir, env, "bash", "--noprofile", "--norc", "-eo", "pipefail", script)
	}
	verified(t, dir, out)
}

// TestCIGitLab runs the lines of script: in one shell, as a runner does.
func TestCIGitLab(t *testing.T) {
	var jobs map[string]struct {
		BeforeScript []string `yaml:"before_script"`
		Script       []string
	}
	testkit.OK(t, yaml.Unmarshal([]byte(recipe(t, ".gitlab-ci.yml")), &jobs))
	job := jobs["hsmsign"]
	if len(job.Script) < 10 || len(job.BeforeScript) == 0 {
		t.Fatalf("%+v", jobs)
	}
	dir := t.TempDir()
	verified(t, dir, runStep(t, dir, nil, "bash", "-eo", "pipefail", "-c", strings.Join(job.Script, "\n")))
}

// TestCIMakefile makes the request, verifies it again without making it again, and removes everything.
func TestCIMakefile(t *testing.T) {
	dir := t.TempDir()
	testkit.OK(t, os.WriteFile(filepath.Join(dir, "Makefile"), []byte(recipe(t, "Makefile")), 0o600))
	made := filepath.Join(dir, "hsmsign-ci")
	runStep(t, dir, nil, "make", "verify")
	out := runStep(t, dir, nil, "make", "verify")
	if bytes.Contains(out, []byte("hsmsign sign")) {
		t.Errorf("it was signed again:\n%s", out)
	}
	verified(t, made, out)
	runStep(t, dir, nil, "make", "clean")
	if _, err := os.Stat(made); !os.IsNotExist(err) {
		t.Errorf("make clean: %v", err)
	}
}
