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

// Write writes a file: a temporary one beside it, flushed to the disk, takes its name in one step. Unless it may
// replace, a file that is there stays as it is, also one that appears meanwhile (a link, unlike a rename, replaces
// nothing), and the error wraps fs.ErrExist.
func Write(path string, data []byte, mode fs.FileMode, replace bool) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %q: %w", path, cause(err))
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
