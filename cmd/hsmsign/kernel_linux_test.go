package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

func init() {
	commands["hsmsign-dumpable"] = runDumpable
	commands["hsmsign-nofsync"] = runWithoutFsync
	commands["hsmsign-full"] = runFull
	commands["hsmsign-user"] = runAsUser
}

// runDumpable runs the program and prints what a core file of it could contain.
func runDumpable() {
	code := run(os.Args)
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	var core unix.Rlimit
	if err == nil {
		err = unix.Getrlimit(unix.RLIMIT_CORE, &core)
	}
	fmt.Println("dumpable", dumpable, "core", core.Max, err)
	os.Exit(code)
}

// runWithoutFsync runs the program with a kernel whose fsync(2) fails with EIO.
func runWithoutFsync() {
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}, // the number of the system call
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: unix.SYS_FSYNC},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EIO)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]} // #nosec G115 -- it is 4
	err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&program))); err == nil && errno != 0 { // #nosec G103 -- as seccomp(2) needs it
		err = errno
	}
	if err != nil {
		panic(err)
	}
	os.Exit(run(os.Args))
}

// runFull runs the program with files that cannot grow over $FULL_AT bytes, as on a full disk.
func runFull() {
	limit, err := strconv.ParseUint(os.Getenv("FULL_AT"), 10, 64)
	if err == nil {
		signal.Ignore(unix.SIGXFSZ)
		err = unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: limit, Max: limit})
	}
	if err != nil {
		panic(err)
	}
	os.Exit(run(os.Args))
}

// runAsUser runs the program without capabilities, so that root too may only do what the mode of a file says.
func runAsUser() {
	runtime.LockOSThread()
	var err error
	if os.Getuid() == 0 {
		const noRoot = 1<<0 | 1<<1 // SECBIT_NOROOT and its lock: execve gives no capabilities
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		err = errors.Join(unix.Prctl(unix.PR_SET_SECUREBITS, noRoot, 0, 0, 0), unix.Capset(&header, &make([]unix.CapUserData, 2)[0]))
	}
	if err == nil {
		err = unix.Exec("/proc/self/exe", append([]string{"hsmsign"}, os.Args[1:]...), os.Environ())
	}
	panic(err)
}
