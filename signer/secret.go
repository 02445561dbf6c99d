package signer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"strings"
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
	From    string // "file:PATH", a bare PATH, "env:NAME", "prompt", or "" for Env, then the terminal
	Env     string // the variable that is read when From is empty
	AnyMode bool   // read a file that group or others can read, too
}

// Read gets the secret: at least one byte, at most MaxSecret, a file's last newline removed. The caller clears
// it after use. Errors wrap ErrAuth and never hold the secret.
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
	case !ok:
		return readSecretFile(src.From, src.AnyMode)
	}
	return nil, errors.New("unknown source; write file:PATH, env:NAME or prompt")
}

func (s Secrets) getenv(name string) string {
	if s.Getenv == nil || name == "" {
		return ""
	}
	return s.Getenv(name)
}

// readSecretFile: the last newline of a PIN file is the editor's, not part of the PIN.
func readSecretFile(path string, anyMode bool) ([]byte, error) {
	b, err := ReadPrivateFile(path, MaxSecret+2, anyMode)
	if err != nil {
		return nil, err
	}
	if line, ok := bytes.CutSuffix(b, []byte("\n")); ok {
		b = bytes.TrimSuffix(line, []byte("\r"))
	}
	return b, nil
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
