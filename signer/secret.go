package signer

import (
	"bytes"
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
	"time"
)

// MaxSecret is the longest PIN or passphrase, in bytes.
const MaxSecret = 1024

// Secrets is how a backend gets at a PIN or passphrase. Its functions are passed in, so that a backend never
// reads the environment or the terminal itself. The zero value reads files only.
type Secrets struct {
	// Getenv reads the environment; nil means that there is none.
	Getenv func(name string) string
	// Prompt asks the person at the terminal, without echo; nil means that there is no terminal.
	Prompt func(ctx context.Context, label string) ([]byte, error)
}

// Source says where one secret comes from.
type Source struct {
	Label   string // what the person at the terminal is asked for: "PIN of token \"mdm\""
	From    string // see Read; "" for Env, then the terminal
	Env     string // the variable that is read when From is empty
	AnyMode bool   // read a file that group or others can read, too
}

// Read gets the secret: at least one byte, at most MaxSecret, a last newline of a file or program removed. The
// caller clears it after use. Errors wrap ErrAuth and never hold the secret. Source.From is one of
//
//	file:PATH, PATH          a regular file that only its owner can read
//	env:NAME                 an environment variable
//	credential:NAME          a systemd credential: the file NAME in $CREDENTIALS_DIRECTORY (systemd.exec(5))
//	exec:/PROGRAM ARG...     what the program prints; arguments are split at spaces, there is no shell
//	prompt                   the person at the terminal
func (s Secrets) Read(ctx context.Context, src Source) ([]byte, error) {
	secret, err := s.read(ctx, src)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %s: %w", ErrAuth, src.Label, err)
	case len(secret) == 0:
		return nil, fmt.Errorf("%w: %s: it is empty", ErrAuth, src.Label)
	case len(secret) > MaxSecret:
		clear(secret)
		return nil, fmt.Errorf("%w: %s: it is longer than %d bytes", ErrAuth, src.Label, MaxSecret)
	}
	return secret, nil
}

// ReadNew asks the person at the terminal for a secret that does not exist yet, twice: nobody can read a key again
// whose passphrase has a typing error in it. Otherwise it is as Read.
func (s Secrets) ReadNew(ctx context.Context, label string) ([]byte, error) {
	first, err := s.Read(ctx, Source{Label: label, From: "prompt"})
	if err != nil {
		return nil, err
	}
	again, err := s.Read(ctx, Source{Label: "the same again", From: "prompt"})
	defer clear(again)
	if err == nil && !bytes.Equal(first, again) {
		err = fmt.Errorf("%w: %s: the two differ; start again", ErrAuth, label)
	}
	if err != nil {
		clear(first)
		return nil, err
	}
	return first, nil
}

func (s Secrets) read(ctx context.Context, src Source) ([]byte, error) {
	kind, arg, ok := strings.Cut(src.From, ":")
	switch {
	case src.From == "":
		if v := s.getenv(src.Env); v != "" {
			return []byte(v), nil
		}
		if s.Prompt == nil {
			return nil, fmt.Errorf("none given: name a file in the reference or set %s (there is no terminal to ask at)", src.Env)
		}
		return s.Prompt(ctx, src.Label)
	case src.From == "prompt":
		if s.Prompt == nil {
			return nil, errors.New("there is no terminal to ask at")
		}
		return s.Prompt(ctx, src.Label)
	case ok && kind == "env":
		v := s.getenv(arg)
		if v == "" {
			return nil, fmt.Errorf("the environment variable %s is not set", arg)
		}
		return []byte(v), nil
	case ok && kind == "file":
		return readSecretFile(strings.TrimPrefix(arg, "//"), src.AnyMode)
	case ok && kind == "credential":
		dir := s.getenv("CREDENTIALS_DIRECTORY")
		if dir == "" || arg != filepath.Base(arg) {
			return nil, errors.New("no such credential: it is the name of a file, and systemd sets CREDENTIALS_DIRECTORY for a unit that has LoadCredential")
		}
		return readSecretFile(filepath.Join(dir, arg), src.AnyMode)
	case ok && kind == "exec":
		return runSecretProgram(ctx, arg)
	case !ok:
		return readSecretFile(src.From, src.AnyMode)
	}
	return nil, errors.New("unknown source; write file:PATH, env:NAME, credential:NAME, exec:/PROGRAM or prompt")
}

func (s Secrets) getenv(name string) string {
	if s.Getenv == nil || name == "" {
		return ""
	}
	return s.Getenv(name)
}

func readSecretFile(path string, anyMode bool) ([]byte, error) {
	b, err := ReadPrivateFile(path, MaxSecret+2, anyMode)
	return trimNewline(b), err
}

// trimNewline: the last newline is the editor's, not part of the PIN.
func trimNewline(b []byte) []byte {
	if line, ok := bytes.CutSuffix(b, []byte("\n")); ok {
		return bytes.TrimSuffix(line, []byte("\r"))
	}
	return b
}

// programWait bounds a program that gives a secret; a person may have to touch a token for it.
const programWait = time.Minute

// runSecretProgram: what the program says on standard error may hold the secret, so nobody sees it.
func runSecretProgram(ctx context.Context, line string) ([]byte, error) {
	args := strings.Fields(line)
	if len(args) == 0 || !filepath.IsAbs(args[0]) {
		return nil, errors.New("exec: wants the program's absolute path")
	}
	ctx, cancel := context.WithTimeout(ctx, programWait)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...) // #nosec G204 -- the operator's own program, as ssh's ProxyCommand
	cmd.WaitDelay = time.Second
	out := secretBuffer{room: make([]byte, 0, MaxSecret+2)}
	cmd.Stdout = &out
	if err := cmd.Run(); err != nil {
		clear(out.room)
		return nil, fmt.Errorf("program %q: %w", args[0], err)
	}
	return trimNewline(out.room), nil
}

// secretBuffer never grows: no copy of the secret is left behind, and no more is taken than a secret has.
type secretBuffer struct{ room []byte }

func (s *secretBuffer) Write(p []byte) (int, error) {
	if len(s.room)+len(p) > cap(s.room) {
		return 0, fmt.Errorf("it printed more than %d bytes", MaxSecret)
	}
	s.room = append(s.room, p...)
	return len(p), nil
}

// ReadPrivateFile reads a file that holds a secret: a regular file of at most limit bytes that neither group
// nor others can read, unless anyMode. The mode is that of the open file, so it cannot be swapped in between.
// A file that is open to others gives an error that wraps ErrInsecureMode.
func ReadPrivateFile(path string, limit int64, anyMode bool) ([]byte, error) {
	f, err := openNonblock(path)
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
	if mode := info.Mode().Perm(); mode&0o077 != 0 && !anyMode && runtime.GOOS != "windows" {
		return nil, &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("%w (mode %04o)", ErrInsecureMode, mode)}
	}
	// Not io.ReadAll: it grows its buffer, and leaves copies of the secret behind that nobody can clear.
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

// ErrInsecureMode says that a file that holds a secret can be read by others than its owner.
var ErrInsecureMode = errors.New("group or others can read it; run chmod 600 on it")

// openNonblock opens a file for reading; opening a pipe that nobody writes to does not wait.
func openNonblock(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|nonblock, 0) // #nosec G304 -- the path is the operator's own
}
