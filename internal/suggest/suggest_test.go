package suggest

import (
	"strings"
	"testing"
)

func TestName(t *testing.T) {
	known := []string{"cert", "chain", "digest", "format", "out-dir", "trust-root"}
	for name, want := range map[string]string{
		"chian": "chain", "digst": "digest", "formatt": "format", "chaain": "chain", "Digest": "digest", "out_dir": "out-dir",
		"certificate": "cert", "trust": "trust-root", "certs": "cert", // a prefix counts as two edits
		"database": "", "tr": "", "": "", "ce": "cert", strings.Repeat("x", 1<<20): "",
	} {
		if want != "" {
			want = `did you mean "` + want + `"?`
		} else {
			want = "see the list"
		}
		if got := Name(name, known, "see the list"); got != want {
			t.Errorf("%.20q: %s, want %s", name, got, want)
		}
	}
	if got := Name("x", nil, "no names"); got != "no names" {
		t.Errorf("without names: %s", got)
	}
}
