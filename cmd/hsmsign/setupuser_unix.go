//go:build unix

package main

import (
	"os/exec"
	"syscall"
)

// become makes a program run as another user, with the groups of that user alone. Only root can.
func become(cmd *exec.Cmd, a *account) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid), Groups: a.groups}} // #nosec G115 -- ids of a user
}
