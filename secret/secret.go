// Package secret reads PINs, passphrases and tokens: from a file of mode 0600, the environment, a systemd credential, the
// output of a program, or the person at the terminal. A secret is never part of an error.
package secret

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"hsmsign/fault"
)

// Max is the longest secret, in bytes, unless Source.Max says something else.
const Max = 1024

// ErrSecret means that a secret is missing or cannot be read.
var ErrSecret = fault.Auth.New("cannot read the secret")

// ErrNoFile means that the file of a secret does not exist. It is a fault of the configuration: nothing refused a secret.
var ErrNoFile = fault.Usage.New("file not found")

// Reader reads secrets. Its functions are passed in, so that no other package reads the environment or the terminal.
// The zero value reads files and programs only. Safe for concurrent use if its functions are.
type Reader struct {
	// Getenv reads the environment; nil: there is none.
	Getenv func(name string) string
	// Prompt asks the person at the terminal, without echo; nil: there is no terminal.
	Prompt func(ctx context.Context, label string) ([]byte, error)
}

// Source is where one secret comes from.
type Source struct {
	Label   string // names the secret in prompts and errors: "PIN of token \"mdm\""
	From    string // see Read; "" means Env, then the terminal
	Env     string // the variable to read if From is empty
	AnyMode bool   // accept a file that group or others can read
	Max     int    // length of the secret, in bytes; 0: Max
}

func (s Source) max() int { return cmp.Or(s.Max, Max) }

// Read returns the secret: 1 to Max bytes, without the last newline of a file or program. The caller clears it after
// use. Errors wrap ErrSecret and never contain the secret. Source.From is one of
//
//	file:PATH, PATH          a regular file that only its owner can read
//	env:NAME                 an environment variable
//	credential:NAME          a systemd credential: the file NAME in $CREDENTIALS_DIRECTORY (systemd.exec(5))
//	exec:/PROGRAM ARG...     the output of a program; arguments are split at spaces, no shell is involved
//	|/PROGRAM ARG...         the same, as RFC 7512 section 2.4 writes it
//	prompt                   the person at the terminal
func (r Reader) Read(ctx context.Context, src Source) ([]byte, error) {
	secret, err := r.read(ctx, src)
	switch {
	case err != nil:
		return nil, failed(src.Label, err)
	case len(secret) == 0:
		return nil, failed(src.Label, errors.New("it is empty"))
	case len(secret) > src.max():
		clear(secret)
		return nil, failed(src.Label, fmt.Errorf("it is longer than %d bytes", src.max()))
	}
	return secret, nil
}

// failed returns an error of Read. Its text is like that of a key store that refuses a wrong secret.
func failed(label string, err error) error {
	if errors.Is(err, ErrNoFile) {
		what, _, _ := strings.Cut(label, " of ")
		return &failure{fault.Errorf("%s %w (%s)", what, err, label).Fix("correct the path, or create the file with mode 0600")}
	}
	return &failure{fmt.Errorf("%s: %w", label, err)}
}

// failure wraps ErrSecret without repeating its text.
type failure struct{ error }

func (f *failure) Unwrap() []error { return []error{ErrSecret, f.error} }

// ReadNew prompts twice for a new secret: a key whose passphrase contains a typing error is lost. Otherwise it is like
// Read.
func (r Reader) ReadNew(ctx context.Context, label string) ([]byte, error) {
	first, err := r.Read(ctx, Source{Label: label, From: "prompt"})
	if err != nil {
		return nil, err
	}
	again, err := r.Read(ctx, Source{Label: "repeat the " + label, From: "prompt"})
	defer clear(again)
	if err == nil && !bytes.Equal(first, again) {
		err = failed(label, errors.New("the entries do not match"))
	}
	if err != nil {
		clear(first)
		return nil, err
	}
	return first, nil
}

func (r Reader) read(ctx context.Context, src Source) ([]byte, error) {
	given := r.getenv(src.Env)
	kind, arg, ok := strings.Cut(src.From, ":")
	switch program, piped := strings.CutPrefix(src.From, "|"); {
	case piped:
		return runSecretProgram(ctx, program, src.max())
	case src.From == "" && given != "":
		return []byte(given), nil
	case src.From == "" && r.Prompt == nil:
		return nil, fmt.Errorf("not given: name a file in the reference or set %s (there is no terminal to ask at)", src.Env)
	case src.From == "prompt" && r.Prompt == nil:
		return nil, errors.New("there is no terminal to ask at")
	case src.From == "" || src.From == "prompt":
		return r.Prompt(ctx, src.Label)
	case !ok:
		return readSecretFile(src.From, src)
	}
	switch kind {
	case "env":
		v := r.getenv(arg)
		if v == "" {
			return nil, fmt.Errorf("the environment variable %s is not set", arg)
		}
		return []byte(v), nil
	case "file":
		return readSecretFile(strings.TrimPrefix(arg, "//"), src)
	case "credential":
		return secretIn(src.From, func(string) ([]byte, error) {
			path, err := r.credential(arg)
			if err != nil {
				return nil, err
			}
			return readFile(path, int64(src.max()+2), credentialMode(src.AnyMode))
		})
	case "exec":
		return runSecretProgram(ctx, arg, src.max())
	}
	return nil, errors.New("unknown source; write file:PATH, env:NAME, credential:NAME, exec:/PROGRAM or prompt")
}

func (r Reader) getenv(name string) string {
	if r.Getenv == nil || name == "" {
		return ""
	}
	return r.Getenv(name)
}

func readSecretFile(path string, src Source) ([]byte, error) {
	return secretIn(path, func(path string) ([]byte, error) { return ReadFile(path, int64(src.max()+2), src.AnyMode) })
}

// secretIn returns the secret in a file.
func secretIn(path string, read func(path string) ([]byte, error)) ([]byte, error) {
	b, err := read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %q", ErrNoFile, path)
	}
	return trimNewline(b), err
}

// trimNewline removes the last newline: editors add it, and it is not part of the PIN.
func trimNewline(b []byte) []byte {
	if line, ok := bytes.CutSuffix(b, []byte("\n")); ok {
		return bytes.TrimSuffix(line, []byte("\r"))
	}
	return b
}

// programWait is the time limit of a program that prints a secret; a person may have to touch a token for it.
const programWait = time.Minute

// runSecretProgram discards the program's standard error, which may contain the secret.
func runSecretProgram(ctx context.Context, line string, limit int) ([]byte, error) {
	args := strings.Fields(line)
	if len(args) == 0 || !filepath.IsAbs(args[0]) {
		return nil, errors.New("a program needs its absolute path, as exec:/PROGRAM")
	}
	ctx, cancel := context.WithTimeout(ctx, programWait)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...) // #nosec G204 -- the operator names the program, as with ProxyCommand of ssh
	cmd.WaitDelay = time.Second
	out := secretBuffer{room: make([]byte, 0, limit+2)}
	cmd.Stdout = &out
	if err := cmd.Run(); err != nil {
		clear(out.room)
		return nil, fmt.Errorf("program %q: %w", args[0], err)
	}
	return trimNewline(out.room), nil
}

// secretBuffer never grows, so that no copy of the secret remains in memory. It accepts as many bytes as it has room for.
type secretBuffer struct{ room []byte }

func (s *secretBuffer) Write(p []byte) (int, error) {
	if len(s.room)+len(p) > cap(s.room) {
		return 0, fmt.Errorf("it printed more than %d bytes", cap(s.room)-2)
	}
	s.room = append(s.room, p...)
	return len(p), nil
}

// ReadFile reads a file that contains a secret: a regular file of at most limit bytes that neither group nor others can
// read, unless anyMode. The mode is that of the open file, so the file cannot be swapped in between. The error for a
// file that others can read wraps ErrInsecureMode. It is an *fs.PathError.
func ReadFile(path string, limit int64, anyMode bool) ([]byte, error) {
	return readFile(path, limit, privateMode(anyMode))
}

// credential returns the path of a systemd credential.
func (r Reader) credential(name string) (string, error) {
	dir := r.getenv("CREDENTIALS_DIRECTORY")
	if dir == "" || name != filepath.Base(name) {
		return "", errors.New("no such credential: it is the name of a file, and systemd sets CREDENTIALS_DIRECTORY for a unit that has LoadCredential")
	}
	return filepath.Join(dir, name), nil
}

// ReadFile is ReadFile for a path that may also be credential:NAME, as for Read. A file in $CREDENTIALS_DIRECTORY may also have mode 0440: systemd
// gives the account of a unit access by a list (ACL), which the mode shows as that of the group.
func (r Reader) ReadFile(path string, limit int64) ([]byte, error) {
	if name, ok := strings.CutPrefix(path, "credential:"); ok {
		found, err := r.credential(name)
		if err != nil {
			return nil, &fs.PathError{Op: "read", Path: path, Err: err}
		}
		return readFile(found, limit, credentialMode(false))
	}
	if dir := r.getenv("CREDENTIALS_DIRECTORY"); dir != "" && filepath.Dir(path) == filepath.Clean(dir) {
		return readFile(path, limit, credentialMode(false))
	}
	return ReadFile(path, limit, false)
}

// privateMode returns whether a file of a mode is accepted: one that only its owner can read.
func privateMode(anyMode bool) func(mode fs.FileMode) bool {
	return func(mode fs.FileMode) bool { return anyMode || mode&0o077 == 0 }
}

// credentialMode is privateMode for a systemd credential.
func credentialMode(anyMode bool) func(mode fs.FileMode) bool {
	return func(mode fs.FileMode) bool { return anyMode || mode&0o077 == 0 || mode == 0o440 }
}

func readFile(path string, limit int64, accepted func(mode fs.FileMode) bool) ([]byte, error) {
	// O_NONBLOCK: do not wait for the writer of a pipe. Windows ignores it.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // #nosec G304 -- the operator names the path
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "read", Path: path, Err: errors.New("not a regular file")}
	}
	// Windows has no such modes: Go reports 0666 for every writable file there.
	if mode := info.Mode().Perm(); !accepted(mode) && runtime.GOOS != "windows" {
		return nil, &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("%w (mode %04o)", ErrInsecureMode, mode)}
	}
	// Not io.ReadAll: it grows its buffer and leaves copies of the secret in memory.
	b := make([]byte, limit+1)
	n, err := io.ReadFull(f, b)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		clear(b)
		return nil, err
	}
	b = b[:n]
	if int64(n) > limit {
		clear(b)
		return nil, &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("larger than %d bytes", limit)}
	}
	return b, nil
}

// ErrInsecureMode means that others than its owner can read a file that contains a secret.
var ErrInsecureMode = errors.New("group or others can read it; run chmod 600 on it")
