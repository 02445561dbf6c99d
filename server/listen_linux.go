package server

import (
	"errors"
	"syscall"
)

// restrict gives a socket that is not bound yet its mode, which its file gets.
func restrict(_, _ string, c syscall.RawConn) (err error) {
	return errors.Join(c.Control(func(fd uintptr) { err = syscall.Fchmod(int(fd), uint32(socketMode)) }), err)
}
