// Package wholefile writes files whole or not at all: a full disk, a kill or a power cut leaves the name with what was
// there before, or with nothing.
//
//	err := wholefile.Write("push.key", key, 0o600, false)
//
// Write is safe for concurrent use, also by several processes.
package wholefile

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// tempPrefix begins the name of a file that is not finished; one that is left behind was cut off by a kill.
const tempPrefix = ".hsmsign-unfinished-"

// unfinishedAge is when an unfinished file counts as left behind: it takes milliseconds to finish one.
const unfinishedAge = time.Minute

// Write writes a file: a temporary one, flushed to the disk, takes its name in one step. Unless it may replace, a file
// that is there stays as it is, also one that appears meanwhile (a link, unlike a rename, replaces nothing), and the
// error wraps fs.ErrExist.
//
// Where the system can make a file without a name (Linux, on most file systems) a kill leaves nothing of it; otherwise a
// file beside it, which Sweep removes.
func Write(path string, data []byte, mode fs.FileMode, replace bool) error {
	err := writeUnnamed(path, data, mode, replace)
	if errors.Is(err, errors.ErrUnsupported) {
		err = writeNamed(path, data, mode, replace)
	}
	if err != nil {
		return fmt.Errorf("write %q: %w", path, cause(err))
	}
	return nil
}

// tempName is a name beside path that nobody has.
func tempName(path string) string { return filepath.Join(filepath.Dir(path), tempPrefix+rand.Text()) }

// fill writes all to the disk.
func fill(f *os.File, data []byte) error {
	_, err := f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return err
}

func writeNamed(path string, data []byte, mode fs.FileMode, replace bool) error {
	name := tempName(path)
	tmp, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode) // #nosec G304 -- beside the user's own output
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
	// A file system without links.
	if _, err := os.Lstat(path); err == nil {
		return fs.ErrExist
	}
	return os.Rename(name, path)
}

// cause takes the temporary file's name off an error: it tells nobody anything.
func cause(err error) error {
	var path *fs.PathError
	var link *os.LinkError
	switch {
	case errors.As(err, &path):
		return path.Err
	case errors.As(err, &link):
		return link.Err
	}
	return err
}

// Sweep removes what a killed run left behind in a folder of ours. It is tidying only, so it fails silently.
func Sweep(dir string) {
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
