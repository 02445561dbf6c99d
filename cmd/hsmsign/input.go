package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"
)

// pipeWait is how long a pipe or a terminal may stay silent before an input is given up.
const pipeWait = 30 * time.Second

// readInput reads a file, or standard input for "-": at most limit+1 bytes, so that the caller can tell that it
// was longer. A pipe that never ends is cut there; one that stays silent is given up.
func (p *program) readInput(ctx context.Context, path string, limit int64) ([]byte, error) {
	if path == "-" {
		return waitFor(ctx, pipeWait, func() ([]byte, error) { return io.ReadAll(io.LimitReader(p.stdin, limit+1)) })
	}
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, pathCause(err)
	case info.IsDir():
		return nil, errors.New("is a folder")
	case info.Mode().IsRegular():
		return readFile(path, limit)
	}
	return waitFor(ctx, pipeWait, func() ([]byte, error) { return readFile(path, limit) })
}

func readFile(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path) // #nosec G304 -- the user's own argument
	if err != nil {
		return nil, pathCause(err)
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit+1))
}

// waitFor bounds a read that may never return. The abandoned read ends with the process.
func waitFor(ctx context.Context, limit time.Duration, read func() ([]byte, error)) ([]byte, error) {
	type result struct {
		data []byte
		err  error
	}
	done := make(chan result, 1)
	go func() {
		data, err := read()
		done <- result{data, err}
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case r := <-done:
		return r.data, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-timer.C:
		return nil, fmt.Errorf("nothing came for %v", limit)
	}
}

// pathCause takes the operation and path off an error that is shown behind the path anyway.
func pathCause(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}
