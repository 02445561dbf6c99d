// Package wholefile writes files completely or not at all: after a full disk, a kill or a power cut, the old file or no file
// has the name. All functions are safe for concurrent use, also by several processes.
package wholefile

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
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

// unfinishedAge is the age at which an unfinished file was left by a kill: finishing takes milliseconds. A Folder may be in
// use for hours.
const (
	unfinishedAge       = time.Minute
	unfinishedFolderAge = 24 * time.Hour
)

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
	return write(path, bytesOf(data), mode, replace, FlushFolder)
}

// WriteFrom is Write for data that another function writes; its error is returned as it is, and no file has the name then.
func WriteFrom(path string, content func(w io.Writer) error, mode fs.FileMode, replace bool) error {
	var failed error
	err := write(path, func(w io.Writer) error {
		failed = content(w)
		return failed
	}, mode, replace, FlushFolder)
	if failed != nil {
		return failed
	}
	return err
}

// bytesOf returns the content of a file that is known.
func bytesOf(data []byte) func(w io.Writer) error {
	return func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	}
}

// WriteDeferred is Write without the flush of the folder, for many files in one folder; FlushFolder follows.
func WriteDeferred(path string, data []byte, mode fs.FileMode, replace bool) error {
	return write(path, bytesOf(data), mode, replace, func(string) error { return nil })
}

func write(path string, content func(w io.Writer) error, mode fs.FileMode, replace bool, flush func(dir string) error) error {
	err := writeUnnamed(path, content, mode, replace)
	if errors.Is(err, errors.ErrUnsupported) {
		err = writeNamed(path, content, mode, replace)
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

// fill writes the content to the disk.
func fill(f *os.File, content func(w io.Writer) error) error {
	err := content(f)
	if err == nil {
		err = f.Sync()
	}
	return err
}

// writeNamed writes a file with a temporary name.
func writeNamed(path string, content func(w io.Writer) error, mode fs.FileMode, replace bool) error {
	name := tempName(path)
	tmp, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode) // #nosec G304 -- in the folder of the user's output
	if err != nil {
		return err
	}
	defer os.Remove(name)
	if err := errors.Join(fill(tmp, content), tmp.Close()); err != nil {
		return err
	}
	if replace {
		return os.Rename(name, path)
	}
	return rename(name, path)
}

// rename gives a file another name that no file has. On most systems the file keeps its old name too.
func rename(from, to string) error {
	err := os.Link(from, to)
	if err == nil || errors.Is(err, fs.ErrExist) {
		return err
	}
	// The file system has no links.
	if _, err := os.Lstat(to); err == nil {
		return fs.ErrExist
	}
	return os.Rename(from, to)
}

// Folder makes a folder for unfinished files next to path, which only the user can open, and returns it. The caller removes
// it; Sweep removes one that a kill left, after a day.
func Folder(path string) (string, error) {
	dir, err := os.MkdirTemp(filepath.Dir(path), tempPrefix+"*")
	if err != nil {
		return "", fmt.Errorf("write %q: %w", path, cause(err))
	}
	return dir, nil
}

// Place flushes a finished file of a Folder to the disk and gives it its name in one step. It replaces no file: the error
// wraps fs.ErrExist if one has the name.
func Place(from, path string) error {
	f, err := os.OpenFile(from, os.O_RDWR, 0) // #nosec G304 -- a file of Folder
	if err == nil {
		err = errors.Join(f.Sync(), f.Close())
	}
	if err == nil {
		err = rename(from, path)
	}
	if err == nil {
		err = FlushFolder(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("write %q: %w", path, cause(err))
	}
	return nil
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

// Sweep removes the temporary files and folders that killed processes left in a folder. It ignores errors.
func Sweep(dir string) {
	entries, _ := os.ReadDir(dir) // an error ends the list early
	for _, entry := range entries {
		if !strings.HasPrefix(entry.Name(), tempPrefix) {
			continue
		}
		info, err := entry.Info()
		if err != nil {
			continue
		}
		switch age := time.Since(info.ModTime()); {
		case info.Mode().IsRegular() && age > unfinishedAge:
			_ = os.Remove(filepath.Join(dir, entry.Name()))
		case info.IsDir() && age > unfinishedFolderAge:
			_ = os.RemoveAll(filepath.Join(dir, entry.Name()))
		}
	}
}
