package main

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// inMemory returns a file that is in no folder, with mode 0600, and that an account owns. The caller closes it.
func inMemory(data []byte, a *account) (*os.File, error) {
	fd, err := unix.MemfdCreate("hsmsign", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "memory")
	_, err = f.Write(data)
	if err = errors.Join(err, f.Chmod(secretMode), f.Chown(a.uid, a.gid)); err != nil {
		_ = f.Close() // the error is that of before
		return nil, err
	}
	return f, nil
}
