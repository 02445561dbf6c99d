package sqlite_test

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// SQLite's translation and the C library below it must be of versions that were made for each other: see the manual of
// modernc.org/sqlite.
func TestVersions(t *testing.T) {
	list := func(format, module string) string {
		out, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", format, module).Output() // #nosec G204 -- constants
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(out))
	}
	wants, err := os.ReadFile(list("{{.GoMod}}", "modernc.org/sqlite"))
	if err != nil {
		t.Fatal(err)
	}
	want := regexp.MustCompile(`modernc\.org/libc (v\S+)`).FindStringSubmatch(string(wants))
	if has := list("{{.Version}}", "modernc.org/libc"); want == nil || has != want[1] {
		t.Errorf("libc is %s, and sqlite wants %v", has, want)
	}
}
