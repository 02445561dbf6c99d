package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
)

func testPages(t *testing.T) map[string]string {
	t.Helper()
	pages := map[string]string{}
	for _, page := range manPages((&program{}).app(""), "2026-11-22") {
		if pages[page.file] != "" {
			t.Errorf("%s is written twice", page.file)
		}
		pages[page.file] = page.text
	}
	return pages
}

// TestManualPages: there is a page for every command that is not hidden, and it names every flag with its variable.
func TestManualPages(t *testing.T) {
	pages := testPages(t)
	count := 1 // hsmsign.1
	var walk func(name string, commands []*cli.Command)
	walk = func(name string, commands []*cli.Command) {
		for _, c := range commands {
			page, written := pages[name+"-"+c.Name+".1"]
			if written == c.Hidden {
				t.Errorf("%s %s: hidden %v, page %v", name, c.Name, c.Hidden, written)
			}
			if c.Hidden {
				continue
			}
			count++
			for _, f := range c.Flags {
				for _, want := range []string{`\fB` + escape("--"+f.Names()[0]) + `\fR`, "[$" + envName(f.Names()[0]) + "]"} {
					if f != cli.HelpFlag && !strings.Contains(page, want) {
						t.Errorf("the page of %s %s has no %s", name, c.Name, want)
					}
				}
			}
			walk(name+"-"+c.Name, c.Subcommands)
		}
	}
	walk("hsmsign", (&program{}).app("").Commands)
	if len(pages) != count || count < 60 {
		t.Errorf("%d pages, %d commands", len(pages), count)
	}
	for _, want := range []string{".SH \"KEY REFERENCES\"\n", ".SH \"SECRETS\"\n", ".SH \"ENVIRONMENT\"\n", ".SH \"FILES\"\n", `"2026-11-22"`} {
		if !strings.Contains(pages["hsmsign.1"], want) {
			t.Errorf("hsmsign.1 has no %q", want)
		}
	}
}

// TestManualExitCodes compares the exit codes of hsmsign.1 with docs/cli.md and with package fault.
func TestManualExitCodes(t *testing.T) {
	doc := readDoc(t, "cli.md")
	var codes []int
	for _, e := range manExits {
		codes = append(codes, e.code)
		if row := fmt.Sprintf("\n| %d | %s |", e.code, e.text); !strings.Contains(doc, row) {
			t.Errorf("docs/cli.md has no row %q", row)
		}
	}
	for kind := fault.None; kind <= fault.Internal; kind++ {
		if !slices.Contains(codes, kind.Exit()) {
			t.Errorf("exit code %d (%s) is missing", kind.Exit(), kind)
		}
	}
	for _, name := range []string{"HSMSIGN_PIN", "HSMSIGN_PASSPHRASE", "HSMSIGN_EXPORT_PASSPHRASE", "HSMSIGN_API_KEY", "HSMSIGN_AGENT_TOKEN"} {
		if !strings.Contains(topics["secrets"], "$"+name+",") || !slices.ContainsFunc(manEnvironment, func(e struct{ term, text string }) bool { return e.term == name }) {
			t.Errorf("%s is not in the help about secrets and in ENVIRONMENT", name)
		}
	}
}

// TestManualIsClean: mandoc has nothing to object to but the length of lines in the source.
func TestManualIsClean(t *testing.T) {
	lint, err := exec.LookPath("mandoc")
	if err != nil {
		t.Skip("mandoc is not installed; make deps installs it")
	}
	dir := t.TempDir()
	args := []string{"-T", "lint", "-W", "warning"}
	for name, text := range testPages(t) {
		testkit.OK(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
		args = append(args, filepath.Join(dir, name))
	}
	if out, err := exec.Command(lint, args...).CombinedOutput(); err != nil || len(out) > 0 { // #nosec G204 -- a test
		t.Errorf("%v\n%s", err, out)
	}
}

// TestRoff: what roff would read as its own is printed as it is.
func TestRoff(t *testing.T) {
	var b roff
	b.text(".so /etc/passwd\n'br a\\nb \"q\" `c` ^~ --flag\n\n  ./run \\\n      -x")
	b.term(`\fBx\fR`, "the `FILE-1` of it")
	want := `\&.so /etc/passwd
\(aqbr a\(rsnb \(dqq\(dq \(gac\(ga \(ha\(ti \-\-flag
.PP
.nf
\&./run \(rs
    \-x
.fi
.TP
\fBx\fR
the \fIFILE\-1\fR of it
`
	if b.out.String() != want {
		t.Errorf("%s", b.out.String())
	}
}
