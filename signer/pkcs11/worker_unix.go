//go:build cgo && unix && !linux

package pkcs11

import "syscall"

// workerAttr: in a process group of its own Ctrl-C at the terminal does not reach a worker, so that the parent
// can end in order. There is no parent-death signal here: the worker sees the end of its socket.
func workerAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
