package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

func readDoc(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("..", "..", "docs", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestFlagsAreDocumented holds docs/cli.md to the code: every command, every flag with its variable, and no other.
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
	walk("", (&program{}).app().Commands)
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
			t.Errorf("--%s is documented and not there", name)
		}
	}
}

// TestFindingsAreDocumented holds docs/findings.md to the code: every ID, and no other.
func TestFindingsAreDocumented(t *testing.T) {
	id := regexp.MustCompile("[\"`]((?:csr|chain|request|push)\\.[a-z0-9-]+)[\"`]")
	var inCode []string
	for _, dir := range []string{"request", "chain", "agent", "lifecycle"} {
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
		t.Fatalf("only %d found in the code", len(inCode))
	}
	for _, id := range inCode {
		if !slices.Contains(inDoc, id) {
			t.Errorf("%s has no row", id)
		}
	}
	for _, id := range inDoc {
		if !slices.Contains(inCode, id) {
			t.Errorf("%s is documented and not there", id)
		}
	}
}

// Every flag can be set from the environment, and says so.
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
	walk((&program{}).app().Commands)
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
	walk("hsmsign", (&program{}).app().Commands)
}
