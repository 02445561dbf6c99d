//go:build unix

package isolate

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"hsmsign/fault"
)

const (
	maxStderr   = 2 << 10     // bytes of a worker's standard error that are kept, from its end
	maxLastWord = 400         // bytes of it that an error contains
	exitWait    = time.Second // time limit for the end of a killed process
)

// process is a worker process and the sockets to it.
type process struct {
	conn   *net.UnixConn
	lanes  []*lane
	cmd    *exec.Cmd
	stderr lastBytes
	exited chan struct{} // closed when it was reaped
	status error         // of its exit; readable after exited
}

// startProcess starts a command with one end of a socket as file descriptor 3 and those of the lanes after it. The
// number of lanes is added to its arguments. Its environment is that of this process without the variables of hsmsign,
// which may contain a PIN, and without the one named drop; a module may need any other.
func startProcess(command []string, drop string, lanes int) (p *process, err error) {
	p = &process{exited: make(chan struct{})}
	var theirs []*os.File
	defer func() {
		for _, file := range theirs {
			_ = file.Close()
		}
		if err != nil {
			p.closeAll()
		}
	}()
	for range 1 + lanes {
		ours, their, err := socketPair()
		if err != nil {
			return p, err
		}
		p.lanes, theirs = append(p.lanes, &lane{ours, bufio.NewReaderSize(ours, maxAnswer)}), append(theirs, their)
	}
	first := p.lanes[0].file
	p.lanes = p.lanes[1:]
	conn, err := net.FileConn(first)
	_ = first.Close() // net has its own copy
	if err != nil {
		return p, err
	}
	p.conn = conn.(*net.UnixConn)
	cmd := exec.Command(command[0], append(command[1:len(command):len(command)], strconv.Itoa(lanes))...) // #nosec G204 G702 -- this program itself
	cmd.Env = slices.DeleteFunc(cmd.Environ(), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return name == drop || strings.HasPrefix(name, "HSMSIGN_")
	})
	cmd.ExtraFiles = theirs
	cmd.SysProcAttr = workerAttr()
	cmd.WaitDelay = exitWait // a daemon that the module started may keep standard error open
	cmd.Stderr = &p.stderr
	p.cmd = cmd
	return p, p.run()
}

// run starts the command, and reaps it when it ends.
func (p *process) run() error {
	started := make(chan error, 1)
	go func() {
		// The parent-death signal is sent when the thread that forked ends, so this thread waits for the worker
		// (prctl(2), PR_SET_PDEATHSIG).
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.status = p.cmd.Wait()
			close(p.exited)
		}
	}()
	return <-started
}

// socketPair returns two connected sockets that no other child inherits. A read from ours ends after laneTick.
func socketPair() (ours, theirs *os.File, err error) {
	syscall.ForkLock.RLock()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err == nil {
		syscall.CloseOnExec(fds[0])
		syscall.CloseOnExec(fds[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	ours, theirs = os.NewFile(uintptr(fds[0]), "worker"), os.NewFile(uintptr(fds[1]), "worker")
	tick := syscall.NsecToTimeval(laneTick.Nanoseconds())
	err = errors.Join(syscall.SetsockoptTimeval(fds[0], syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &tick),
		syscall.SetsockoptInt(fds[0], syscall.SOL_SOCKET, syscall.SO_SNDBUF, maxFrame))
	if err != nil {
		_, _ = ours.Close(), theirs.Close()
		return nil, nil, os.NewSyscallError("setsockopt", err)
	}
	return ours, theirs, nil
}

func (p *process) closeAll() {
	if p.conn != nil {
		_ = p.conn.Close()
	}
	for _, lane := range p.lanes {
		_ = lane.file.Close()
	}
}

// gone waits for the end of the process, and reports whether it came in time.
func (p *process) gone(wait time.Duration) bool {
	select {
	case <-p.exited:
		return true
	case <-time.After(wait):
		return false
	}
}

// lastWords waits for the end of the process, and returns how it ended and what it wrote to standard error, without the secret.
func (p *process) lastWords(secret []byte) string {
	how := "it closed its socket"
	if p.gone(exitWait) {
		how = "exit status 0"
		if p.status != nil && !errors.Is(p.status, exec.ErrWaitDelay) {
			how = p.status.Error()
		}
	}
	if said := p.stderr.text(secret); said != "" {
		how += fmt.Sprintf("; it said %q", said)
	}
	return how
}

// lastBytes keeps the end of what is written to it, up to the stacks and registers that Go prints in a crash: they
// explain no module, and may contain a PIN.
type lastBytes struct {
	mu      sync.Mutex
	b       []byte
	dropped bool // something before b
	crashed bool // nothing more is kept
}

func (l *lastBytes) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.crashed {
		return len(p), nil
	}
	l.b = append(l.b, p...)
	if i := bytes.Index(l.b, []byte("\ngoroutine ")); i >= 0 {
		l.b, l.crashed = l.b[:i], true
	}
	if over := len(l.b) - maxStderr; over > 0 {
		l.b, l.dropped = slices.Delete(l.b, 0, over), true
	}
	return len(p), nil
}

// text returns the end of what was written, on one line and without the secret.
func (l *lastBytes) text(secret []byte) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.b
	if l.dropped {
		_, b, _ = bytes.Cut(b, []byte("\n")) // half a line may start with half a secret
	}
	if len(secret) > 0 {
		b = bytes.ReplaceAll(b, secret, []byte("REDACTED"))
	}
	b = bytes.ToValidUTF8(b, []byte("?"))
	return strings.ToValidUTF8(fault.Clip(string(b[max(0, len(b)-maxLastWord):]), maxLastWord), "")
}
