package wholefile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// writeUnnamed writes a file that has no name until it is complete (open(2), O_TMPFILE). The error wraps
// errors.ErrUnsupported if the file system, the kernel or a missing /proc prevents it.
func writeUnnamed(path string, content func(w io.Writer) error, mode fs.FileMode, replace bool) error {
	fd, err := unix.Open(filepath.Dir(path), unix.O_WRONLY|unix.O_TMPFILE|unix.O_CLOEXEC, uint32(mode.Perm()))
	if errors.Is(err, unix.EISDIR) { // a kernel without O_TMPFILE
		err = errors.ErrUnsupported
	}
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), path)
	err = fill(f, content)
	if err == nil {
		err = name(fd, path, replace)
	}
	return errors.Join(err, f.Close())
}

// name gives an open file its name. Replacing a file takes two steps and a temporary name.
func name(fd int, path string, replace bool) error {
	link := func(name string) error {
		err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, name, unix.AT_SYMLINK_FOLLOW)
		if errors.Is(err, fs.ErrNotExist) { // /proc or the folder is missing; writeNamed finds out which
			return errors.ErrUnsupported
		}
		return err
	}
	if !replace {
		return link(path)
	}
	between := tempName(path)
	err := link(between)
	if err != nil {
		return err
	}
	if err = os.Rename(between, path); err != nil {
		err = errors.Join(err, os.Remove(between))
	}
	return err
}
