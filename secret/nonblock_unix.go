//go:build unix

package secret

import "syscall"

const nonblock = syscall.O_NONBLOCK
