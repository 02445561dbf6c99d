// Package input reads the files that a user names. Every read is bounded in size and in time, and ends when its context
// does. A name must be a regular file; standard input ("-") and an inherited file descriptor (/dev/fd/N, as a shell's
// process substitution names it) may be a pipe. All functions are safe for concurrent use.
package input

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"
)

// pipeTimeout is how long a pipe or a terminal may stay silent.
const pipeTimeout = 30 * time.Second

// Reader reads files, and standard input for the name "-".
type Reader struct {
	Stdin io.Reader
}

// Read returns at most limit+1 bytes of a file, so that the caller can tell that it was longer. Errors do not repeat the
// name.
func (r Reader) Read(ctx context.Context, name string, limit int64) ([]byte, error) {
	switch {
	case name == "-":
		return Wait(ctx, pipeTimeout, func() ([]byte, error) { return io.ReadAll(io.LimitReader(r.Stdin, limit+1)) })
	case isDescriptor(name):
		return Wait(ctx, pipeTimeout, func() ([]byte, error) {
			f, err := os.Open(name) // #nosec G304 -- the user's own argument
			if err != nil {
				return nil, cause(err)
			}
			defer f.Close()
			return io.ReadAll(io.LimitReader(f, limit+1))
		})
	}
	return File(name, limit)
}

// isDescriptor returns whether a name is an inherited file descriptor.
func isDescriptor(name string) bool {
	return name == "/dev/stdin" || strings.HasPrefix(name, "/dev/fd/") || strings.HasPrefix(name, "/proc/self/fd/")
}

// File returns at most limit+1 bytes of a regular file. Errors do not repeat the name.
func File(name string, limit int64) ([]byte, error) {
	f, err := Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit+1))
}

// Open opens a regular file for reading. Errors do not repeat the name.
func Open(name string) (*os.File, error) {
	// O_NONBLOCK: do not wait for the writer of a pipe. Windows ignores it.
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0) // #nosec G304 -- the user's own argument
	if err != nil {
		return nil, cause(err)
	}
	info, err := f.Stat()
	switch {
	case err != nil:
		err = cause(err)
	case info.IsDir():
		err = errors.New("is a folder")
	case !info.Mode().IsRegular():
		err = errors.New("is not a regular file")
	}
	if err != nil {
		_ = f.Close() // nothing was read
		return nil, err
	}
	return f, nil
}

// Wait bounds a read that may never return. An abandoned read ends with the process.
func Wait(ctx context.Context, timeout time.Duration, read func() ([]byte, error)) ([]byte, error) {
	type result struct {
		data []byte
		err  error
	}
	done := make(chan result, 1)
	go func() {
		data, err := read()
		done <- result{data, err}
	}()
	select {
	case r := <-done:
		return r.data, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(timeout):
		return nil, fmt.Errorf("nothing came for %v", timeout)
	}
}

// cause removes the operation and the path from an error that is shown after the path anyway.
func cause(err error) error {
	if pathErr, ok := errors.AsType[*fs.PathError](err); ok {
		return pathErr.Err
	}
	return err
}
