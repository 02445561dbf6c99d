package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"hsmsign/fault"
	"hsmsign/internal/wholefile"
)

// writeFile writes a file whole or not at all; without force it leaves an existing file as it is.
func writeFile(path string, data []byte, mode fs.FileMode, force bool) error {
	err := wholefile.Write(path, data, mode, force)
	if errors.Is(err, fs.ErrExist) {
		return existsError(path)
	}
	return err
}

var errExists = errors.New("the output exists already")

func existsError(path string) error {
	return fault.Usage.Errorf("%q: %w", path, errExists).Fix("write elsewhere, or overwrite it with --force")
}

// checkOutput refuses, before the key is used, an output that could not be written anyway: one that exists and, forced or
// not, one that is an input.
func checkOutput(path string, force bool, inputs ...string) error {
	info, err := os.Stat(path)
	if err != nil {
		dir := filepath.Dir(path)
		if d, err := os.Stat(dir); err != nil || !d.IsDir() {
			return fault.Usage.Errorf("write %q: the folder %q does not exist", path, dir).Fix("make the folder first")
		}
		return nil
	}
	for _, input := range inputs {
		if sameFile(input, path) {
			return fault.Usage.Errorf("the output %q is also an input", path).Fix("name another output")
		}
	}
	switch {
	case info.IsDir():
		return fault.Usage.Errorf("the output %q is a folder", path).Fix("name a file, or use --out-dir")
	case !force && info.Mode().IsRegular():
		return existsError(path)
	}
	return nil
}

// sameFile returns whether two paths are one existing file.
func sameFile(a, b string) bool {
	ia, errA := os.Stat(a)
	ib, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(ia, ib)
}

// emit writes a result to a file, or to standard output if path is "" or "-".
func (p *program) emit(path string, data []byte, mode fs.FileMode, force bool) error {
	if path != "" && path != "-" {
		if force {
			wholefile.Sweep(filepath.Dir(path)) // of a run with --force that was killed
		}
		return writeFile(path, data, mode, force)
	}
	p.con.Write(data)
	if p.con.OutIsTerminal() && len(data) > 0 && data[len(data)-1] != '\n' {
		p.con.Write([]byte("\n"))
	}
	return nil
}
