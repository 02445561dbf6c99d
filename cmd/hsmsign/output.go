package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"hsmsign/fault"
	"hsmsign/internal/wholefile"
)

// writeFile writes a file whole or not at all; without force an existing one is left as it is.
func writeFile(path string, data []byte, mode fs.FileMode, force bool) error {
	err := wholefile.Write(path, data, mode, force)
	if errors.Is(err, fs.ErrExist) {
		return existsError(path)
	}
	return err
}

// sweep removes what a killed run left behind in a folder of ours.
func sweep(dir string) { wholefile.Sweep(dir) }

var errExists = errors.New("the output exists already")

func existsError(path string) error {
	return fault.Usage.Errorf("%q: %w", path, errExists).Fix("write elsewhere, or overwrite it with --force")
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
