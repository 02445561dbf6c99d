package softhsmtest_test

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"

	"hsmsign/internal/testkit"
)

// TestGLIBC: the program needs no newer C library than 2.34, which RHEL 9 has; Debian 12 has 2.36.
func TestGLIBC(t *testing.T) {
	out := testkit.Value(exec.Command("objdump", "-T", filepath.Join(binary, "hsmsign")).Output())(t)
	needed := regexp.MustCompile(`\(?GLIBC_2\.([0-9]+)(?:\.[0-9]+)?\)? +(\S+)`).FindAllStringSubmatch(string(out), -1)
	if len(needed) < 10 {
		t.Fatalf("objdump shows %d symbols of the C library", len(needed))
	}
	for _, symbol := range needed {
		if minor := testkit.Value(strconv.Atoi(symbol[1]))(t); minor > 34 {
			t.Errorf("%s needs GLIBC 2.%d", symbol[2], minor)
		}
	}
}
