//go:build unix

package config

import (
	"io/fs"
	"syscall"
)

// nonblock: opening a pipe that nobody writes to does not wait.
const nonblock = syscall.O_NONBLOCK

// owner is the user to whom a file belongs.
func owner(info fs.FileInfo) (uid int, ok bool) {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	return int(stat.Uid), true
}
