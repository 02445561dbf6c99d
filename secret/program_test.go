//go:build unix

package secret

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A program and a systemd credential as the source of a PIN.
func TestReadProgramAndCredential(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	show := write("show", "#!/bin/sh\necho \"pin-$1\"\n", 0o700)
	fail := write("fail", "#!/bin/sh\necho secret-1234\necho secret-1234 >&2\nexit 3\n", 0o700)
	flood := write("flood", "#!/bin/sh\nyes\n", 0o700)
	hang := write("hang", "#!/bin/sh\nexec sleep 600\n", 0o700)
	write("hsm-pin", "4711\n", 0o400)
	write("open-pin", "4711\n", 0o644)
	env := map[string]string{"CREDENTIALS_DIRECTORY": dir}
	for _, c := range []struct{ from, want, wrong string }{
		{"exec:" + show + " mdm", "pin-mdm", ""},
		{"exec:" + show + "   a  b", "pin-a", ""},
		{"exec:" + fail, "", "exit status 3"},
		{"exec:" + flood, "", "flood"},
		{"exec:" + hang, "", "killed"},
		{"exec:show", "", "absolute path"},
		{"exec:", "", "absolute path"},
		{"exec:" + dir + "/none", "", "no such file"},
		{"credential:hsm-pin", "4711", ""},
		{"credential:open-pin", "", "chmod 600"},
		{"credential:../hsm-pin", "", "no such credential"},
		{"credential:none", "", "no such file"},
	} {
		t.Run(c.from, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			s := Reader{Getenv: func(name string) string { return env[name] }}
			got, err := s.Read(ctx, Source{Label: "PIN", From: c.from})
			if c.wrong == "" {
				if err != nil || string(got) != c.want {
					t.Fatalf("got %q, %v; want %q", got, err, c.want)
				}
				return
			}
			if !errors.Is(err, ErrSecret) || !strings.Contains(err.Error(), c.wrong) || strings.Contains(err.Error(), "secret-1234") {
				t.Errorf("got %v, want %q", err, c.wrong)
			}
		})
	}
	_, err := Reader{}.Read(context.Background(), Source{Label: "PIN", From: "credential:hsm-pin"})
	if !errors.Is(err, ErrSecret) {
		t.Errorf("without systemd: %v", err)
	}
}
