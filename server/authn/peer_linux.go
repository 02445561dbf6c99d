package authn

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// overflowUID is the user id that the kernel shows for a user who has none in this user namespace (user_namespaces(7)).
const overflowUID = 65534

// Peer returns the user id of the process that connected a Unix socket. A process of another user namespace is an error: its
// user ids mean something else.
func Peer(conn *net.UnixConn) (uid int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var pidfd int
	var pidfdErr error
	if ctlErr := raw.Control(func(fd uintptr) {
		if cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pidfd, pidfdErr = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEERPIDFD)
		}
	}); ctlErr != nil || err != nil {
		return 0, errors.Join(ctlErr, err)
	}
	if pidfdErr == nil {
		defer func() { _ = unix.Close(pidfd) }() // it was only looked at
	}
	if cred.Uid == overflowUID || cred.Uid == ^uint32(0) {
		return 0, errors.New("the user of the peer has no id in this user namespace")
	}
	theirs, err := os.ReadFile("/proc/" + strconv.Itoa(int(cred.Pid)) + "/uid_map")
	if err != nil {
		return 0, fmt.Errorf("the user namespace of the peer: %w", err)
	}
	ours, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return 0, err
	}
	if string(theirs) != string(ours) {
		return 0, errors.New("the peer is in another user namespace")
	}
	// Only now is it sure that the process id was still that of the peer. Kernels before 6.5 have no SO_PEERPIDFD.
	if pidfdErr == nil && unix.PidfdSendSignal(pidfd, 0, nil, 0) == unix.ESRCH {
		return 0, errors.New("the peer has ended")
	}
	return int(cred.Uid), nil
}
