// Package wholefile writes files completely or not at all: after a full disk, a kill or a power cut, the old file or no file
// has the name. Write and Sweep are safe for concurrent use, also by several processes.
package wholefile

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// tempPrefix begins the names of unfinished files. A kill can leave such a file.
const tempPrefix = ".hsmsign-unfinished-"

// unfinishedAge is the age at which an unfinished file was left by a kill: finishing takes milliseconds.
const unfinishedAge = time.Minute

// Write writes a file: it flushes a temporary file to the disk and gives it the name in one step. Without replace, it does
// not change an existing file, also one that is created meanwhile (a link, unlike a rename, replaces nothing), and the error
// wraps fs.ErrExist.
//
// If the system supports files without a name (Linux, on most file systems), a kill leaves no file, unless replace is set:
// the complete file then has a temporary name for a moment, because a link replaces nothing. Otherwise, and on other
// systems, a kill may leave a temporary file in the same folder, which Sweep removes.
//
// Write also flushes the folder, so that the name survives a power cut. An error of that flush is returned although the file
// has its name.
func Write(path string, data []byte, mode fs.FileMode, replace bool) error {
	return write(path, data, mode, replace, FlushFolder)
}

// WriteDeferred is Write without the flush of the folder, for many files in one folder; FlushFolder follows.
func WriteDeferred(path string, data []byte, mode fs.FileMode, replace bool) error {
	return write(path, data, mode, replace, func(string) error { return nil })
}

func write(path string, data []byte, mode fs.FileMode, replace bool, flush func(dir string) error) error {
	err := writeUnnamed(path, data, mode, replace)
	if errors.Is(err, errors.ErrUnsupported) {
		err = writeNamed(path, data, mode, replace)
	}
	if err == nil {
		err = flush(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("write %q: %w", path, cause(err))
	}
	return nil
}

// tempName returns an unused name in the folder of path.
func tempName(path string) string { return filepath.Join(filepath.Dir(path), tempPrefix+rand.Text()) }

// fill writes the data to the disk.
func fill(f *os.File, data []byte) error {
	_, err := f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return err
}

// writeNamed writes a file with a temporary name.
func writeNamed(path string, data []byte, mode fs.FileMode, replace bool) error {
	name := tempName(path)
	tmp, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode) // #nosec G304 -- in the folder of the user's output
	if err != nil {
		return err
	}
	defer os.Remove(name)
	if err := errors.Join(fill(tmp, data), tmp.Close()); err != nil {
		return err
	}
	if replace {
		return os.Rename(name, path)
	}
	if err = os.Link(name, path); err == nil || errors.Is(err, fs.ErrExist) {
		return err
	}
	// The file system has no links.
	if _, err := os.Lstat(path); err == nil {
		return fs.ErrExist
	}
	return os.Rename(name, path)
}

// FlushFolder writes the names of a folder to the disk (fsync(2)). It ignores that a folder cannot be opened for reading,
// as one with mode 0300, and that a file system or Windows cannot flush one.
func FlushFolder(dir string) error {
	f, err := os.Open(dir) // #nosec G304 -- the folder of the user's output
	if errors.Is(err, fs.ErrPermission) || runtime.GOOS == "windows" {
		return nil
	}
	if err != nil {
		return err
	}
	err = f.Sync()
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, errors.ErrUnsupported) {
		err = nil
	}
	return errors.Join(err, f.Close())
}

// cause returns an error without the name of the temporary file, which means nothing to the user.
func cause(err error) error {
	if path, ok := errors.AsType[*fs.PathError](err); ok {
		return path.Err
	}
	if link, ok := errors.AsType[*os.LinkError](err); ok {
		return link.Err
	}
	return err
}

// Sweep removes the temporary files that killed processes left in a folder. It ignores errors.
func Sweep(dir string) {
	entries, _ := os.ReadDir(dir) // an error ends the list early
	for _, entry := range entries {
		if !strings.HasPrefix(entry.Name(), tempPrefix) {
			continue
		}
		if info, err := entry.Info(); err == nil && info.Mode().IsRegular() && time.Since(info.ModTime()) > unfinishedAge {
			_ = os.Remove(filepath.Join(dir, entry.Name()))
		}
	}
}
