package isolate

import "syscall"

// workerAttr makes a worker die with its parent, even if it hangs and does not see the end of its socket. The process
// group of its own keeps Ctrl-C at the terminal from it, so that the parent can end in order.
func workerAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
