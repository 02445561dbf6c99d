package main

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"hsmsign/internal/testkit"

	"github.com/urfave/cli/v2"

	"hsmsign/fault"
)

func readDoc(t *testing.T, name string) string {
	t.Helper()
	data := testkit.Value(os.ReadFile(filepath.Join("..", "..", "docs", name)))(t)
	return string(data)
}

// TestFlagsAreDocumented compares docs/cli.md with the code: every command, every flag with its variable, and no other.
func TestFlagsAreDocumented(t *testing.T) {
	doc := readDoc(t, "cli.md")
	inCode := map[string]bool{}
	var walk func(prefix string, commands []*cli.Command)
	walk = func(prefix string, commands []*cli.Command) {
		for _, c := range commands {
			if c.Hidden {
				continue
			}
			if len(c.Subcommands) > 0 {
				walk(prefix+c.Name+" ", c.Subcommands)
			} else if !strings.Contains(doc, "| `"+prefix+c.Name+"` |") {
				t.Errorf("the command %q has no row", prefix+c.Name)
			}
			for _, f := range c.Flags {
				inCode[f.Names()[0]] = true
			}
		}
	}
	walk("", (&program{}).app("").Commands)
	inDoc := map[string]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\| `--([a-z0-9-]+)`.*?\\| `([A-Z0-9_]+)` \\|").FindAllStringSubmatch(doc, -1) {
		inDoc[row[1]] = true
		if row[2] != envName(row[1]) {
			t.Errorf("--%s has the variable %s, not %s", row[1], envName(row[1]), row[2])
		}
	}
	for name := range inCode {
		if !inDoc[name] {
			t.Errorf("--%s has no row", name)
		}
	}
	for name := range inDoc {
		if !inCode[name] {
			t.Errorf("--%s is documented and does not exist", name)
		}
	}
}

// TestExitCodesAreDocumented compares docs/cli.md with the table of package fault: every kind is in the row of its code.
func TestExitCodesAreDocumented(t *testing.T) {
	doc := readDoc(t, "cli.md")
	for kind := fault.None; kind <= fault.Internal; kind++ {
		if row := fmt.Sprintf("(?m)^\\| %d \\|.*`%s`.*\\|$", kind.Exit(), kind); !regexp.MustCompile(row).MatchString(doc) {
			t.Errorf("the row of exit code %d does not name %s", kind.Exit(), kind)
		}
	}
}

// TestLibraryDocument compiles the Go code of docs/library.md.
func TestLibraryDocument(t *testing.T) {
	root := testkit.Value(filepath.Abs(filepath.Join("..", "..")))(t)
	replace, packages := map[string]string{}, []string{"build", "-o", os.DevNull}
	for i, block := range regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(readDoc(t, "library.md"), -1) {
		file, name := filepath.Join(t.TempDir(), "example.go"), fmt.Sprintf("docs/example%d", i)
		testkit.OK(t, os.WriteFile(file, []byte(block[1]), 0o600))
		replace[filepath.Join(root, name, "example.go")] = file
		packages = append(packages, "./"+name)
	}
	if len(replace) < 2 {
		t.Fatalf("%d examples", len(replace))
	}
	overlay := testkit.Value(json.Marshal(map[string]any{"Replace": replace}))(t)
	list := filepath.Join(t.TempDir(), "overlay.json")
	testkit.OK(t, os.WriteFile(list, overlay, 0o600))
	build := exec.Command("go", slices.Insert(packages, 1, "-overlay", list)...) // #nosec G204 -- the project's own documents
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestFindingsAreDocumented compares docs/findings.md with the code: every ID, and no other.
func TestFindingsAreDocumented(t *testing.T) {
	id := regexp.MustCompile("[\"`]((?:csr|chain|request|push|profile|cms|abm|mdm|identity)\\.[a-z0-9-]+)[\"`]")
	var inCode []string
	for _, dir := range []string{"request", "chain", "agent", "lifecycle", "internal/cms"} {
		err := filepath.WalkDir(filepath.Join("..", "..", dir), func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			data, err := os.ReadFile(path)
			for _, m := range id.FindAllSubmatch(data, -1) {
				inCode = append(inCode, string(m[1]))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	var inDoc []string
	for _, m := range id.FindAllStringSubmatch(readDoc(t, "findings.md"), -1) {
		inDoc = append(inDoc, m[1])
	}
	if len(inCode) < 40 {
		t.Fatalf("found only %d IDs in the code", len(inCode))
	}
	for _, id := range inCode {
		if !slices.Contains(inDoc, id) {
			t.Errorf("%s has no row", id)
		}
	}
	for _, id := range inDoc {
		if !slices.Contains(inCode, id) {
			t.Errorf("%s is documented and does not exist", id)
		}
	}
}

// TestFlagsNameTheirVariable checks that the help of every flag shows its environment variable.
func TestFlagsNameTheirVariable(t *testing.T) {
	var walk func(commands []*cli.Command)
	walk = func(commands []*cli.Command) {
		for _, c := range commands {
			walk(c.Subcommands)
			for _, f := range c.Flags {
				if usage := f.(cli.DocGenerationFlag).GetUsage(); !strings.Contains(usage, "[$"+envName(f.Names()[0])+"]") {
					t.Errorf("%s --%s: %q", c.Name, f.Names()[0], usage)
				}
			}
		}
	}
	walk((&program{}).app("").Commands)
}

// TestExamples: the help of every command that does something shows how it is called.
func TestExamples(t *testing.T) {
	var walk func(path string, commands []*cli.Command)
	walk = func(path string, commands []*cli.Command) {
		for _, c := range commands {
			name := path + " " + c.Name
			if len(c.Subcommands) == 0 && !c.Hidden && !strings.Contains(c.Description, name+" ") && !strings.Contains(c.Description, name+"\n") && !strings.HasSuffix(c.Description, name) {
				t.Errorf("%q has no example", name)
			}
			walk(name, c.Subcommands)
		}
	}
	walk("hsmsign", (&program{}).app("").Commands)
}

// TestServeLimitsAreDocumented compares the times in docs/service.md that are not those of package server.
func TestServeLimitsAreDocumented(t *testing.T) {
	doc := readDoc(t, "service.md")
	for what, value := range map[string]time.Duration{"signature, in the key store": serveSignTimeout, "interval of comparing TLS files": tlsFilesEvery} {
		if row := fmt.Sprintf("\n| %s | %v |\n", what, value); !strings.Contains(doc, row) {
			t.Errorf("there is no row %q", row)
		}
	}
}
