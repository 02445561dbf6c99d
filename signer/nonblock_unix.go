//go:build unix

package signer

import "syscall"

const nonblock = syscall.O_NONBLOCK
