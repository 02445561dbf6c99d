//go:build !linux

package authn

import (
	"errors"
	"net"
)

// Peer needs Linux.
func Peer(*net.UnixConn) (uid int, err error) {
	return 0, errors.New("Unix sockets need Linux, which tells the user of the peer")
}
