//go:build unix

package secret

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
)

func writeSecret(t *testing.T, dir, name, text string, mode fs.FileMode) string {
	t.Helper()
	path := filepath.Join(dir, name)
	testkit.OK(t, os.WriteFile(path, []byte(text), 0o600))
	testkit.OK(t, os.Chmod(path, mode))
	return path
}

func TestRead(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	good := writeSecret(t, dir, "good", "1234\n", 0o600)
	open := writeSecret(t, dir, "open", "1234\n", 0o640)
	longest := strings.Repeat("x", Max)
	fifo := filepath.Join(dir, "fifo")
	testkit.OK(t, syscall.Mkfifo(fifo, 0o600))
	program := func(name, script string) string { return writeSecret(t, dir, name, "#!/bin/sh\n"+script+"\n", 0o700) }
	vars := map[string]string{"PIN": "1234", "LONG": longest + "x", "CREDENTIALS_DIRECTORY": dir}
	full := Reader{
		Getenv: func(name string) string { return vars[name] },
		Prompt: func(context.Context, string) ([]byte, error) { return []byte("asked"), nil },
	}
	errPrompt := errors.New("terminal went away")

	tests := []struct {
		name    string
		secrets Reader
		src     Source
		want    string
		err     string // in the error, which wraps ErrSecret
		is      error  // also wrapped
	}{
		{"file", full, Source{From: "file:" + good}, "1234", "", nil},
		{"file with slashes", full, Source{From: "file://" + good}, "1234", "", nil},
		{"bare path", full, Source{From: good}, "1234", "", nil},
		{"bare relative path", Reader{}, Source{From: "good"}, "1234", "", nil},
		{"no newline", full, Source{From: writeSecret(t, dir, "bare", "1234", 0o400)}, "1234", "", nil},
		{"one newline only", full, Source{From: writeSecret(t, dir, "two", "1234\n\n", 0o600)}, "1234\n", "", nil},
		{"Windows newline", full, Source{From: writeSecret(t, dir, "crlf", "1234\r\n", 0o600)}, "1234", "", nil},
		{"a longer limit", full, Source{From: "env:LONG", Max: Max + 1}, longest + "x", "", nil},
		{"a longer limit of a file", full, Source{From: writeSecret(t, dir, "token", longest+"x\n", 0o600), Max: Max + 1}, longest + "x", "", nil},
		{"a longer limit of a program", full, Source{From: "exec:" + program("prints", "echo "+longest+"x"), Max: Max + 1}, longest + "x", "", nil},
		{"carriage return alone", full, Source{From: writeSecret(t, dir, "cr", "1234\r", 0o600)}, "1234\r", "", nil},
		{"spaces are kept", full, Source{From: writeSecret(t, dir, "spaces", " 12 34 \n", 0o600)}, " 12 34 ", "", nil},
		{"longest", full, Source{From: writeSecret(t, dir, "longest", longest+"\r\n", 0o600)}, longest, "", nil},
		{"any mode", full, Source{From: open, AnyMode: true}, "1234", "", nil},
		{"environment", full, Source{From: "env:PIN", Env: "OTHER"}, "1234", "", nil},
		{"environment by default", full, Source{Env: "PIN"}, "1234", "", nil},
		{"prompt", full, Source{From: "prompt", Env: "PIN"}, "asked", "", nil},
		{"prompt by default", full, Source{Env: "UNSET"}, "asked", "", nil},
		{"credential", full, Source{From: "credential:good"}, "1234", "", nil},
		{"credential with an access list", Reader{Getenv: full.Getenv}, Source{From: "credential:" + filepath.Base(writeSecret(t, dir, "acl", "1234\n", 0o440))}, "1234", "", nil},
		{"program", full, Source{From: "exec:" + program("show", `echo "pin-$1"`) + "   a  b"}, "pin-a", "", nil},

		{"program by RFC 7512", full, Source{From: "|" + dir + "/show b:c"}, "pin-b:c", "", nil},

		{"group can read", full, Source{From: open}, "", "mode 0640", ErrInsecureMode},
		{"missing", full, Source{From: "missing", Env: "PIN"}, "", `PIN file not found: "missing" (`, ErrNoFile},
		{"missing file", full, Source{From: "file:missing", Env: "PIN"}, "", `PIN file not found: "missing" (`, ErrNoFile},
		{"folder", full, Source{From: dir}, "", "not a regular file", nil},
		{"pipe without a writer", full, Source{From: fifo}, "", "not a regular file", nil},
		{"empty file", full, Source{From: writeSecret(t, dir, "empty", "", 0o600)}, "", "it is empty", nil},
		{"newline only", full, Source{From: writeSecret(t, dir, "newline", "\n", 0o600)}, "", "it is empty", nil},
		{"too long by one", full, Source{From: writeSecret(t, dir, "long", longest+"x", 0o600)}, "", "longer than 1024", nil},
		{"too long by far", full, Source{From: writeSecret(t, dir, "longer", strings.Repeat("x", 1<<20), 0o600)}, "", "larger than 1026", nil},
		{"environment too long", full, Source{From: "env:LONG"}, "", "longer than 1024", nil},
		{"unset", full, Source{From: "env:UNSET"}, "", "UNSET is not set", nil},
		{"no environment", Reader{}, Source{From: "env:PIN"}, "", "PIN is not set", nil},
		{"no terminal", Reader{}, Source{From: "prompt"}, "", "no terminal", nil},
		{"nothing at all", Reader{}, Source{Env: "PIN"}, "", "set PIN (there is no terminal", nil},
		{"credential that others can read", full, Source{From: "credential:open"}, "", "chmod 600", ErrInsecureMode},
		{"credential outside its folder", full, Source{From: "credential:../good"}, "", "no such credential", nil},
		{"no such credential", full, Source{From: "credential:none"}, "", "PIN file not found", ErrNoFile},
		{"credential without systemd", Reader{}, Source{From: "credential:good"}, "", "no such credential", nil},
		{"program that fails", full, Source{From: "exec:" + program("fail", "echo secret-1234\necho secret-1234 >&2\nexit 3")}, "", "exit status 3", nil},
		{"program that prints too much", full, Source{From: "exec:" + program("flood", `printf "%1027d" 0`)}, "", "printed more than 1024 bytes", nil},
		{"program that hangs", full, Source{From: "exec:" + program("hang", "exec sleep 600")}, "", "killed", nil},
		{"program without a path", full, Source{From: "exec:show"}, "", "absolute path", nil},
		{"no program named", full, Source{From: "exec:"}, "", "absolute path", nil},
		{"no such program", full, Source{From: "exec:" + dir + "/none"}, "", "no such file", fs.ErrNotExist},
		{"unknown source", full, Source{From: "vault:x"}, "", "unknown source", nil},
		{"prompt fails", Reader{Prompt: func(context.Context, string) ([]byte, error) { return nil, errPrompt }}, Source{}, "", "went away", errPrompt},
		{"empty answer", Reader{Prompt: func(context.Context, string) ([]byte, error) { return nil, nil }}, Source{}, "", "it is empty", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.src.Label = `PIN of token "mdm"`
			ctx := t.Context()
			if tt.name == "program that hangs" {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, 300*time.Millisecond)
				defer cancel()
			}
			got, err := tt.secrets.Read(ctx, tt.src)
			if tt.err == "" && (err != nil || string(got) != tt.want) {
				t.Fatalf("%q, %v; want %q", got, err, tt.want)
			}
			if tt.err == "" {
				return
			}
			if !errors.Is(err, ErrSecret) || !strings.Contains(err.Error(), tt.err) || !strings.Contains(err.Error(), tt.src.Label) {
				t.Errorf("%q, %v; want ErrSecret with %q", got, err, tt.err)
			}
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("%v does not wrap %v", err, tt.is)
			}
			if missing := errors.Is(err, ErrNoFile); missing != (fault.KindOf(err) == fault.Usage) || missing != (fault.Hint(err) != "") {
				t.Errorf("%v is of kind %v, with the hint %q", err, fault.KindOf(err), fault.Hint(err))
			}
			if err != nil && (strings.Contains(err.Error(), "1234") || strings.Contains(err.Error(), "xxxx")) {
				t.Errorf("the error contains the secret: %v", err)
			}
		})
	}
}

func TestReadFile(t *testing.T) {
	dir := t.TempDir()
	for text, want := range map[string]string{"": "", "12345678": "12345678"} {
		got, err := ReadFile(writeSecret(t, dir, "f", text, 0o600), 8, false)
		if err != nil || string(got) != want {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
	if _, err := ReadFile(writeSecret(t, dir, "f", "123456789", 0o600), 8, false); err == nil {
		t.Error("one byte above the limit is accepted")
	}
}

func TestReadNew(t *testing.T) {
	for _, tt := range []struct {
		name    string
		answers []string
		want    string // "" for an error
	}{
		{"the same twice", []string{"1234", "1234"}, "1234"},
		{"two", []string{"1234", "1235"}, ""},
		{"longer the second time", []string{"1234", "12345"}, ""},
		{"empty", []string{""}, ""},
		{"only once", []string{"1234"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := Reader{Prompt: func(context.Context, string) ([]byte, error) {
				if len(tt.answers) == 0 {
					return nil, io.EOF
				}
				answer := tt.answers[0]
				tt.answers = tt.answers[1:]
				return []byte(answer), nil
			}}
			got, err := s.ReadNew(t.Context(), "new PIN")
			if string(got) != tt.want || errors.Is(err, ErrSecret) != (tt.want == "") || len(tt.answers) > 0 {
				t.Errorf("%q, %v, answers left %q", got, err, tt.answers)
			}
			if err != nil && strings.Contains(err.Error(), "1234") {
				t.Errorf("the error contains the secret: %v", err)
			}
		})
	}
	if _, err := (Reader{}).ReadNew(t.Context(), "new PIN"); !errors.Is(err, ErrSecret) {
		t.Errorf("without a terminal: %v", err)
	}
}

// A file of mode 0440 is accepted as a systemd credential, and nowhere else.
func TestReadFileCredential(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	r := Reader{Getenv: func(name string) string { return map[string]string{"CREDENTIALS_DIRECTORY": dir + "/"}[name] }}
	for _, tt := range []struct {
		path string
		ok   bool
	}{
		{writeSecret(t, dir, "acl", "key", 0o440), true}, {writeSecret(t, dir, "private", "key", 0o400), true},
		{writeSecret(t, dir, "writable", "key", 0o640), false}, {writeSecret(t, dir, "others", "key", 0o444), false},
		{writeSecret(t, other, "elsewhere", "key", 0o440), false}, {filepath.Join(dir, "..", filepath.Base(other), "elsewhere"), false},
		{"credential:acl", true}, {"credential:private", true}, {"credential:others", false},
	} {
		if data, err := r.ReadFile(tt.path, 10); (err == nil) != tt.ok || tt.ok && string(data) != "key" || !tt.ok && !errors.Is(err, ErrInsecureMode) {
			t.Errorf("%s: %q, %v", tt.path, data, err)
		}
	}
	for _, path := range []string{"credential:none", "credential:../" + filepath.Base(dir) + "/acl", "credential:"} {
		if _, err := r.ReadFile(path, 10); err == nil {
			t.Errorf("%s was read", path)
		}
	}
	if _, err := (Reader{}).ReadFile("credential:acl", 10); err == nil || !strings.Contains(err.Error(), "no such credential") {
		t.Errorf("without systemd: %v", err)
	}
	if _, err := (Reader{}).ReadFile(filepath.Join(dir, "acl"), 10); !errors.Is(err, ErrInsecureMode) {
		t.Errorf("without systemd: %v", err)
	}
}
