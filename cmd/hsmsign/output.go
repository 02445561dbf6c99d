package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// writeFile writes a file whole or not at all: a temporary file beside it, flushed to the disk, takes its name in
// one step. Without force an existing file is left as it is, also one that appears meanwhile: a link, unlike a
// rename, replaces nothing.
func writeFile(path string, data []byte, mode fs.FileMode, force bool) (err error) {
	defer func() {
		if err != nil && !errors.Is(err, errExists) {
			err = fmt.Errorf("write %q: %w", path, err)
		}
	}()
	name := filepath.Join(filepath.Dir(path), tempPrefix+rand.Text())
	tmp, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode) // #nosec G304 -- beside the user's own output
	if err != nil {
		return err
	}
	defer os.Remove(name)
	if _, err = tmp.Write(data); err == nil {
		err = tmp.Sync()
	}
	if err := errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	if force {
		return os.Rename(name, path)
	}
	err = os.Link(name, path)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrExist):
		return existsError(path)
	}
	// A file system without links.
	if _, err := os.Lstat(path); err == nil {
		return existsError(path)
	}
	return os.Rename(name, path)
}

// tempPrefix begins the name of a file that is not finished; one that is left behind was cut off by a kill.
const tempPrefix = ".hsmsign-unfinished-"

// unfinishedAge is when an unfinished file counts as left behind: it takes milliseconds to finish one.
const unfinishedAge = time.Minute

// sweep removes what a killed run left behind in a folder of ours. It is tidying only, so it fails silently.
func sweep(dir string) {
	left, err := filepath.Glob(filepath.Join(dir, tempPrefix+"*"))
	if err != nil {
		return
	}
	for _, path := range left {
		if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() && time.Since(info.ModTime()) > unfinishedAge {
			_ = os.Remove(path)
		}
	}
}

var errExists = errors.New("the output exists already")

func existsError(path string) error {
	return &exitError{code: exitUsage, err: fmt.Errorf("%q: %w", path, errExists), hint: "write elsewhere, or overwrite it with --force"}
}

// checkOutput refuses an output that could not be written anyway, before the key is asked for anything: one that
// exists, and, forced or not, one that is an input.
func checkOutput(path string, force bool, inputs ...string) error {
	info, err := os.Stat(path)
	if err != nil {
		dir := filepath.Dir(path)
		if d, err := os.Stat(dir); err != nil || !d.IsDir() {
			return usage("make the folder first", "write %q: the folder %q does not exist", path, dir)
		}
		return nil
	}
	for _, input := range inputs {
		if sameFile(input, path) {
			return usage("name another output", "the output %q is also an input", path)
		}
	}
	switch {
	case info.IsDir():
		return usage("name a file, or use --out-dir", "the output %q is a folder", path)
	case !force && info.Mode().IsRegular():
		return existsError(path)
	}
	return nil
}

// sameFile is whether two paths are one existing file.
func sameFile(a, b string) bool {
	ia, errA := os.Stat(a)
	ib, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(ia, ib)
}

// emit writes a result to the file, or to standard output where path is "" or "-".
func (p *program) emit(path string, data []byte, mode fs.FileMode, force bool) error {
	if path != "" && path != "-" {
		return writeFile(path, data, mode, force)
	}
	p.ui.write(data)
	if p.ui.ttyOut && len(data) > 0 && data[len(data)-1] != '\n' {
		p.ui.write([]byte("\n"))
	}
	return nil
}
