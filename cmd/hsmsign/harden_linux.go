package main

import (
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// forbidCoreDumps keeps PINs and keys out of core files, whether the kernel writes them or hands them to a program,
// and keeps other processes of the same user from reading this one's memory (prctl(2) PR_SET_DUMPABLE). Where the
// kernel refuses, the program still runs: nothing else depends on it.
func forbidCoreDumps() {
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
}

// noNewPrivileges makes the program start again with no_new_privs (prctl(2)), which it passes to every process that it starts:
// no set-user-ID program gives them more rights. The attribute is that of a thread, and Go has many: a new program has it in all.
func noNewPrivileges() error {
	set, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	if err != nil || set == 1 {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	runtime.LockOSThread() // until exec, or for ever
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	return unix.Exec(self, os.Args, os.Environ())
}
