package scripttest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// patience is how long a script waits for a process, which is more than any process needs.
const patience = 30 * time.Second

// process is a program in the background. Its standard error is the file NAME.log, its standard output NAME.out.
type process struct {
	cmd   *exec.Cmd
	log   string
	ended chan struct{}
}

// processes are the programs that scripts have started, by the path of their log. It is safe for concurrent use.
type processes struct{ byLog sync.Map }

func (ps *processes) find(ts *testscript.TestScript, name string) *process {
	p, ok := ps.byLog.Load(ts.MkAbs(name + ".log"))
	if !ok {
		ts.Fatalf("there is no process %q", name)
	}
	return p.(*process)
}

// start starts a program. Before it returns, the program has said that it is ready (sd_notify(3)), unless neg.
func (ps *processes) start(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: start NAME program args...")
	}
	name := args[0]
	path := lookPath(ts, args[1])
	if path == "" {
		ts.Fatalf("there is no program %q", args[1])
	}
	p := &process{cmd: exec.Command(path, args[2:]...), log: ts.MkAbs(name + ".log"), ended: make(chan struct{})} // #nosec G204 -- the script's own program
	messages, notify := notifySocket(ts, name)
	p.cmd.Args[0] = args[1]
	p.cmd.Dir, p.cmd.Env = ts.MkAbs("."), append(environment(ts), "NOTIFY_SOCKET="+notify)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // kill ends its children too
	out, err := os.Create(ts.MkAbs(name + ".out"))
	ts.Check(err)
	log, err := os.Create(p.log)
	ts.Check(err)
	p.cmd.Stdout, p.cmd.Stderr = out, log
	ts.Check(p.cmd.Start())
	_, _ = out.Close(), log.Close() // the program has them
	ts.Setenv(strings.ToUpper(name)+"_PID", strconv.Itoa(p.cmd.Process.Pid))
	go func() {
		_ = p.cmd.Wait() // ended looks at the state
		close(p.ended)
	}()
	ps.byLog.Store(p.log, p)
	ts.Defer(func() {
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // what is left
		<-p.ended
	})
	if neg {
		return
	}
	until(ts, "ready: "+name, func() bool {
		select {
		case <-p.ended:
			ts.Fatalf("%s ended: %s", name, ts.ReadFile(name+".log"))
		default:
		}
		return strings.Contains(messages(), "READY=1")
	})
}

// notifySocket opens a socket for messages to the service manager, which are appended to the file NAME.notify.
func notifySocket(ts *testscript.TestScript, name string) (messages func() string, path string) {
	dir, err := os.MkdirTemp("", "hsmsign-notify-") // the path of a socket is short
	ts.Check(err)
	path = filepath.Join(dir, "s")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	ts.Check(err)
	ts.Defer(func() { _, _ = conn.Close(), os.RemoveAll(dir) })
	file := ts.MkAbs(name + ".notify")
	ts.Check(os.WriteFile(file, nil, 0o600))
	go func() {
		for buf := make([]byte, 4096); ; {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			if f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0o600); err == nil { // #nosec G304 -- a file of the script
				_, _ = fmt.Fprintf(f, "%s\n", buf[:n]) // what is missing, the script notices
				_ = f.Close()                          // it is a test's
			}
		}
	}()
	return func() string {
		data, _ := os.ReadFile(file) // #nosec G304 -- a file of the script
		return string(data)
	}, path
}

// lookPath finds a program in the PATH of the script.
func lookPath(ts *testscript.TestScript, name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	for _, dir := range filepath.SplitList(ts.Getenv("PATH")) {
		if path := filepath.Join(dir, name); executable(path) {
			return path
		}
	}
	return ""
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

// environment returns the variables of a script that a service has.
func environment(ts *testscript.TestScript) (env []string) {
	for _, name := range []string{"PATH", "HOME", "XDG_CONFIG_HOME", "TMPDIR", "SOFTHSM2_CONF", "CREDENTIALS_DIRECTORY", "HSMSIGN_CONFIG", "FULL_AT", "RUN", "WORK", "GOCOVERDIR"} {
		if value := ts.Getenv(name); value != "" {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// until waits for a condition.
func until(ts *testscript.TestScript, what string, done func() bool) {
	for deadline := time.Now().Add(patience); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			ts.Fatalf("after %v: not %s", patience, what)
		}
	}
}

var signals = map[string]syscall.Signal{"HUP": syscall.SIGHUP, "INT": syscall.SIGINT, "TERM": syscall.SIGTERM, "KILL": syscall.SIGKILL}

func (ps *processes) sendSignal(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 || signals[args[1]] == 0 {
		ts.Fatalf("usage: signal NAME HUP|INT|TERM|KILL")
	}
	ts.Check(ps.find(ts, args[0]).cmd.Process.Signal(signals[args[1]]))
}

func (ps *processes) ended(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: ended NAME CODE")
	}
	p := ps.find(ts, args[0])
	select {
	case <-p.ended:
	case <-time.After(patience):
		ts.Fatalf("%s has not ended: %s", args[0], ts.ReadFile(args[0]+".log"))
	}
	code := p.cmd.ProcessState.ExitCode()
	if status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		code = 128 + int(status.Signal())
	}
	if strconv.Itoa(code) != args[1] {
		ts.Fatalf("%s: exit code %d, want %s: %s", args[0], code, args[1], ts.ReadFile(args[0]+".log"))
	}
}

// logs waits until the log of a process matches; neg: it does not match now.
func (ps *processes) logs(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: logs NAME REGEXP")
	}
	want, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	p := ps.find(ts, args[0])
	matches := func() bool {
		data, err := os.ReadFile(p.log)
		return err == nil && want.Match(data)
	}
	if neg {
		if matches() {
			ts.Fatalf("%s logs %s: %s", args[0], args[1], ts.ReadFile(args[0]+".log"))
		}
		return
	}
	until(ts, "in the log of "+args[0]+": "+args[1], matches)
}

// ports sets variables to ports that nobody listens on, and $RUN to a folder for sockets that every user can enter.
func ports(ts *testscript.TestScript, neg bool, args []string) {
	if neg {
		ts.Fatalf("unsupported: ! ports")
	}
	var open []net.Listener
	for _, name := range args {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		ts.Check(err)
		open = append(open, l)
		ts.Setenv(name, strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
	}
	for _, l := range open {
		ts.Check(l.Close())
	}
	dir, err := os.MkdirTemp("", "hsmsign-run-")
	ts.Check(err)
	ts.Check(os.Chmod(dir, 0o755)) // #nosec G302 -- for other users
	ts.Defer(func() { _ = os.RemoveAll(dir) })
	ts.Setenv("RUN", dir)
}

// expand replaces $NAME and ${NAME} in files by the variables of the script; $$ is a $. Their mode becomes 0600.
func expand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: expand FILE...")
	}
	for _, name := range args {
		text := os.Expand(ts.ReadFile(name), func(v string) string {
			if v == "$" {
				return v
			}
			return ts.Getenv(v)
		})
		path := ts.MkAbs(name)
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			ts.Fatalf("%v", err)
		}
		ts.Check(os.WriteFile(path, []byte(text), 0o600))
	}
}

// setVariable sets a variable to what follows a prefix in a line of a file.
func setVariable(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: set NAME FILE PREFIX")
	}
	for line := range strings.Lines(ts.ReadFile(args[1])) {
		if value, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), args[2]); ok {
			ts.Setenv(args[0], strings.TrimSpace(value))
			return
		}
	}
	ts.Fatalf("%s has no line with %q", args[1], args[2])
}
