//go:build !linux

package server

import (
	"errors"
	"syscall"
)

// restrict refuses: the user of the peer of a Unix socket is known on Linux only.
func restrict(string, string, syscall.RawConn) error {
	return errors.New("Unix sockets need Linux")
}
