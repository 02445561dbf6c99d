//go:build cgo && unix

package pkcs11

import (
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
)

const (
	maxStderr   = 2 << 10     // bytes of a worker's standard error that are kept, from its end
	maxLastWord = 400         // bytes of it that an error tells
	exitWait    = time.Second // how long a killed process may take to be gone
)

// process is a worker process and the sockets to it.
type workerProcess struct {
	conn   net.Conn
	lanes  []*os.File
	cmd    *exec.Cmd
	stderr lastBytes
	exited chan struct{} // closed when it is gone and reaped
	status error         // of its exit; readable after exited
}

// startProcess starts a command with one end of a socket as file descriptor 3 and those of the lanes behind it; the
// number of lanes is added to its arguments. Its environment is this process's own without the variables of hsmsign,
// which may hold a PIN, and without the one named. The module may need any other.
func startProcess(command []string, without string, lanes int) (*workerProcess, error) {
	p := &workerProcess{exited: make(chan struct{})}
	var theirs []*os.File
	defer func() {
		for _, file := range theirs {
			_ = file.Close()
		}
	}()
	for range 1 + lanes {
		ours, their, err := socketPair()
		if err != nil {
			p.closeAll()
			return nil, err
		}
		p.lanes, theirs = append(p.lanes, ours), append(theirs, their)
	}
	first := p.lanes[0]
	p.lanes = p.lanes[1:]
	var err error
	p.conn, err = net.FileConn(first)
	_ = first.Close() // net has its own copy
	if err != nil {
		p.closeAll()
		return nil, err
	}
	cmd := exec.Command(command[0], append(command[1:len(command):len(command)], strconv.Itoa(lanes))...) // #nosec G204 G702 -- this program itself
	cmd.Env = slices.DeleteFunc(cmd.Environ(), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return name == without || strings.HasPrefix(name, "HSMSIGN_")
	})
	cmd.ExtraFiles = theirs
	cmd.SysProcAttr = workerAttr()
	cmd.WaitDelay = exitWait // a daemon that the module has started may hold standard error open
	p.cmd = cmd
	cmd.Stderr = &p.stderr
	started := make(chan error, 1)
	go func() {
		// The parent-death signal follows the thread that forked, so that one must live as long (prctl(2),
		// PR_SET_PDEATHSIG).
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.status = cmd.Wait()
			close(p.exited)
		}
	}()
	if err := <-started; err != nil {
		p.closeAll()
		return nil, err
	}
	return p, nil
}

// socketPair gives two connected sockets that no other child inherits. Ours waits for laneTick when it is read.
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

// hangUp tells the process that there is nothing more to come, upon which it ends by itself.
func (p *workerProcess) hangUp() {
	if c, ok := p.conn.(*net.UnixConn); ok {
		_ = c.CloseWrite() // where that fails the process is gone
	}
}

// kill ends the process at once. It may be gone already.
func (p *workerProcess) kill() {
	_ = p.cmd.Process.Kill()
	p.closeAll()
}

func (p *workerProcess) closeAll() {
	if p.conn != nil {
		_ = p.conn.Close()
	}
	for _, file := range p.lanes {
		_ = file.Close()
	}
}

// gone waits for the end of the process, and says whether it came in time.
func (p *workerProcess) gone(wait time.Duration) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-p.exited:
	case <-timer.C:
	}
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// lastWords says how the process ended, and what it said on standard error, without the secret.
func (p *workerProcess) lastWords(secret []byte) string {
	how := "it closed its socket"
	if p.gone(0) {
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

// lastBytes keeps the end of what is written to it, up to the stacks and registers that Go prints when it crashes:
// they explain no module, and may hold a PIN.
type lastBytes struct {
	mu      sync.Mutex
	b       []byte
	line    int  // where in b the last line starts
	dropped bool // something before b
	crashed bool // nothing more is kept
}

func (l *lastBytes) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range p {
		if l.crashed {
			break
		}
		if len(l.b) == maxStderr {
			l.b = append(l.b[:0], l.b[maxStderr/2:]...)
			l.line = max(0, l.line-maxStderr/2)
			l.dropped = true
		}
		l.b = append(l.b, c)
		if c == '\n' {
			l.line = len(l.b)
		}
		if string(l.b[l.line:]) == "goroutine " {
			l.b = l.b[:l.line]
			l.crashed = true
		}
	}
	return len(p), nil
}

// text is the last lines as one, without the secret.
func (l *lastBytes) text(secret []byte) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.b
	if l.dropped {
		// Half a line may start with half a secret.
		_, b, _ = bytes.Cut(b, []byte("\n"))
	}
	if len(secret) > 0 {
		b = bytes.ReplaceAll(b, secret, []byte("REDACTED"))
	}
	s := strings.ToValidUTF8(strings.Join(strings.Fields(string(b)), " "), "?")
	return strings.ToValidUTF8(s[max(0, len(s)-maxLastWord):], "")
}
