//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package ceremony

import (
	"os"
	"syscall"
)

// lock keeps other processes out until the file is closed, also by a kill.
func lock(f *os.File) error {
	return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
}
