//go:build unix && !linux

package isolate

import "syscall"

// workerAttr puts a worker into its own process group, which keeps Ctrl-C at the terminal from it. There is no
// parent-death signal on this system: a worker ends when its socket does.
func workerAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
