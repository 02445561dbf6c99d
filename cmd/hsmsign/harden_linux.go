package main

import "golang.org/x/sys/unix"

// forbidCoreDumps keeps PINs and keys out of core files, whether the kernel writes them or hands them to a program,
// and keeps other processes of the same user from reading this one's memory (prctl(2) PR_SET_DUMPABLE). Where the
// kernel refuses, the program still runs: nothing else depends on it.
func forbidCoreDumps() {
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
}
