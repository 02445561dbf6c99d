//go:build unix

package softhsmtest

import (
	"bufio"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// serverVariable tells p11-kit's client module where the server listens.
const serverVariable = "P11_KIT_SERVER_ADDRESS"

// P11Kit is a token behind the socket of "p11-kit server". The server forks a child for each client, and a signal
// to that child is what a network HSM does when it hangs or goes away.
type P11Kit struct {
	Module string // absolute path of the client module; a copy of its own for each test
	Socket string

	token  *Token
	server *exec.Cmd
}

// NewP11Kit serves a token until the test ends. It ends the test when p11-kit is missing (Debian: apt-get install
// p11-kit p11-kit-modules).
func NewP11Kit(tb testing.TB, t *Token) *P11Kit {
	tb.Helper()
	found, err := filepath.Glob("/usr/lib*/*/pkcs11/p11-kit-client.so")
	more, _ := filepath.Glob("/usr/lib*/pkcs11/p11-kit-client.so")
	if found = append(found, more...); err != nil || len(found) == 0 {
		tb.Fatalf("no p11-kit-client.so in the usual places: apt-get install p11-kit p11-kit-modules")
	}
	// The client reads the socket's address once, when it is loaded: each test needs one that was not loaded yet.
	client, err := os.ReadFile(found[0])
	if err != nil {
		tb.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "p11kit-") // a socket's path has a limit of some 100 bytes
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	p := &P11Kit{Module: filepath.Join(dir, "p11-kit-client.so"), Socket: filepath.Join(dir, "socket"), token: t}
	if err := os.WriteFile(p.Module, client, 0o600); err != nil { // #nosec G703 -- a test's own folder
		tb.Fatal(err)
	}
	p.server = exec.Command("p11-kit", "server", "-f", "-n", p.Socket, "--provider", t.Module, "pkcs11:token="+url.PathEscape(t.Label)) // #nosec G204 -- a test's own arguments
	p.server.Env = append(os.Environ(), t.Env()...)
	if err := p.server.Start(); err != nil {
		tb.Fatalf("%v; apt-get install p11-kit", err)
	}
	tb.Cleanup(func() {
		for _, child := range p.children(tb) {
			_ = syscall.Kill(child, syscall.SIGKILL)
		}
		_ = p.server.Process.Kill()
		_ = p.server.Wait() // it was killed
	})
	// The file is there before the server listens. Nor must the child of this connection be taken for a client's.
	var conn net.Conn
	await(tb, "p11-kit's socket", func() bool {
		conn, err = net.Dial("unix", p.Socket)
		return err == nil
	})
	await(tb, "the first child", func() bool { return len(p.children(tb)) == 1 })
	if err := conn.Close(); err != nil {
		tb.Fatal(err)
	}
	await(tb, "the end of the first child", func() bool { return len(p.children(tb)) == 0 })
	for _, variable := range p.Env() {
		name, value, _ := strings.Cut(variable, "=")
		tb.Setenv(name, value)
	}
	return p
}

// Env is what a child process needs to see the token, to be added to os.Environ.
func (p *P11Kit) Env() []string { return []string{serverVariable + "=unix:path=" + p.Socket} }

// Ref is Token.Ref by way of the socket.
func (p *P11Kit) Ref(object string) string {
	return strings.Replace(p.token.Ref(object), escape(p.token.Module), escape(p.Module), 1)
}

// Signal sends a signal to the children that serve the clients, and gives how many there were. After SIGKILL it
// waits until they are gone.
func (p *P11Kit) Signal(tb testing.TB, sig syscall.Signal) int {
	tb.Helper()
	children := p.children(tb)
	for _, child := range children {
		if err := syscall.Kill(child, sig); err != nil {
			tb.Error(err)
		}
	}
	if sig == syscall.SIGKILL {
		await(tb, "the end of p11-kit's children", func() bool {
			left := p.children(tb)
			return !slices.ContainsFunc(children, func(child int) bool { return slices.Contains(left, child) })
		})
	}
	return len(children)
}

// children are the processes whose parent is the server, zombies excepted.
func (p *P11Kit) children(tb testing.TB) []int {
	tb.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/status")
	if err != nil {
		tb.Fatal(err)
	}
	var children []int
	for _, file := range files {
		status := processStatus(file)
		if status["PPid"] != strconv.Itoa(p.server.Process.Pid) || strings.HasPrefix(status["State"], "Z") {
			continue
		}
		if pid, err := strconv.Atoi(status["Pid"]); err == nil {
			children = append(children, pid)
		}
	}
	return children
}

// processStatus reads /proc/PID/status (proc(5)); a process that is gone has none.
func processStatus(path string) map[string]string {
	f, err := os.Open(path) // #nosec G304 -- a file of /proc
	if err != nil {
		return nil
	}
	defer f.Close()
	status := map[string]string{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), ":")
		status[name] = strings.TrimSpace(value)
	}
	return status
}

// await polls for something that comes soon.
func await(tb testing.TB, what string, there func() bool) {
	tb.Helper()
	for end := time.Now().Add(10 * time.Second); !there(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			tb.Fatal(fmt.Errorf("%s has not come", what))
		}
	}
}
