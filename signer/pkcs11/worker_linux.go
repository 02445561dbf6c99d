//go:build cgo

package pkcs11

import "syscall"

// workerAttr: a worker dies with its parent, even where it hangs and never sees the end of its socket. In a process
// group of its own Ctrl-C at the terminal does not reach it, so that the parent can end in order.
func workerAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
