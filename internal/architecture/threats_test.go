package architecture

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"hsmsign/internal/testkit"
)

// TestThreatModel checks that each promise in docs/threat-model.md names its proof, and that each proof exists: a test of a
// package, or a script.
func TestThreatModel(t *testing.T) {
	text := string(testkit.Value(os.ReadFile("../../docs/threat-model.md"))(t))
	model, _, ok := strings.Cut(text, "\n## Residual risks\n")
	_, model, found := strings.Cut(model, "\n## Somebody without credentials")
	if !ok || !found {
		t.Fatal("the sections are others")
	}
	proof := regexp.MustCompile("`([^`]+)`")
	script := regexp.MustCompile(`^[a-z0-9/-]+\.txtar$`)
	test := regexp.MustCompile(`^([a-z0-9/-]+)\.([Tt]est[A-Z]\w*|Fuzz[A-Z]\w*)$`)
	promises := 0
	for line := range strings.Lines(model) {
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| asset |") {
			continue
		}
		promises++
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), " | ")
		names := proof.FindAllStringSubmatch(cells[len(cells)-1], -1)
		if len(cells) != 3 || len(names) == 0 {
			t.Errorf("a promise without proof: %s", line)
		}
		for _, name := range names {
			switch m := test.FindStringSubmatch(name[1]); {
			case script.MatchString(name[1]):
				if _, err := os.Stat(filepath.Join("../..", name[1])); err != nil {
					t.Error(err)
				}
			case m == nil:
				t.Errorf("%q is not the name of a test", name[1])
			case !hasFunction(t, m[1], m[2]):
				t.Errorf("package %s has no %s", m[1], m[2])
			}
		}
	}
	if promises < 50 {
		t.Errorf("%d promises", promises)
	}
}

// hasFunction returns whether a package has a function: in its tests, or in itself if it is a battery of tests, which calls it.
func hasFunction(t *testing.T, dir, name string) bool {
	t.Helper()
	files := testkit.Value(filepath.Glob(filepath.Join("../..", dir, "*.go")))(t)
	battery := strings.HasPrefix(name, "test")
	declared, called := false, !battery
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") == battery {
			continue
		}
		source := string(testkit.Value(os.ReadFile(file))(t))
		declared = declared || strings.Contains(source, "\nfunc "+name+"(")
		called = called || regexp.MustCompile(`[ {,]`+name+`[,})]`).MatchString(source)
	}
	return declared && called
}
