package notify

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"hsmsign/fault"
	"hsmsign/internal/wholefile"
)

const (
	maxSpoolFiles = 1000
	maxSpoolBytes = 64 << 20
)

// spool is a folder with mails for another program to send: whole files in the form of RFC 5322, of mode 0600. That program
// deletes them.
type spool string

// CheckSpool returns an error if a folder cannot be a spool: it must exist, must not be a symbolic link, and others must not be able to write to
// it.
func CheckSpool(dir string) error {
	info, err := os.Lstat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = errors.New("it does not exist")
	case err != nil:
		err = errors.New("it cannot be read")
	case info.Mode()&fs.ModeSymlink != 0:
		err = errors.New("it is a symbolic link")
	case !info.IsDir():
		err = errors.New("it is not a folder")
	case info.Mode().Perm()&0o002 != 0 && runtime.GOOS != "windows":
		err = errors.New("others can write to it")
	}
	if err != nil {
		return fault.Usage.Errorf("spool folder %q: %w", dir, err).Fix("make a folder of mode 0700 for the user of the service")
	}
	return nil
}

// write writes a file. One that has the name already was written by a process that ended before it could say so.
func (s spool) write(name string, data []byte) error {
	if err := CheckSpool(string(s)); err != nil {
		return err
	}
	wholefile.Sweep(string(s)) // what kills left
	path := filepath.Join(string(s), name)
	if written, err := present(path); written || err != nil {
		return err
	}
	if err := s.room(int64(len(data))); err != nil {
		return err
	}
	err := wholefile.Write(path, data, 0o600, false)
	if errors.Is(err, fs.ErrExist) {
		_, err = present(path)
		return err
	}
	if err != nil {
		return fault.Unavailable.Errorf("spool: %w", err).Fix("the user of the service must be able to write to the folder")
	}
	return nil
}

// present returns whether a regular file has a name. Something else is an error.
func present(path string) (bool, error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("not a regular file")
	}
	if err != nil {
		return false, fault.Unavailable.Errorf("spool: %q: %w", path, err)
	}
	return true, nil
}

// room returns an error if the folder has no room for so many bytes.
func (s spool) room(more int64) error {
	dir, err := os.Open(string(s))
	if err != nil {
		return fault.Unavailable.Errorf("spool: %w", err)
	}
	defer dir.Close()
	entries, err := dir.ReadDir(maxSpoolFiles)
	if err != nil && !errors.Is(err, io.EOF) {
		return fault.Unavailable.Errorf("spool: %w", err)
	}
	for _, entry := range entries {
		if info, err := entry.Info(); err == nil { // otherwise it was just deleted
			more += info.Size()
		}
	}
	if len(entries) >= maxSpoolFiles || more > maxSpoolBytes {
		return fault.Unavailable.Errorf("the spool folder %q is full: it may have %d files and %d MiB", string(s), maxSpoolFiles, maxSpoolBytes>>20).
			Fix("send what is in it and delete the files; the messages wait meanwhile")
	}
	return nil
}
