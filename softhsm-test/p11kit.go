//go:build unix

package softhsmtest

import (
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

// serverVariable is the address of the server for p11-kit's client module.
const serverVariable = "P11_KIT_SERVER_ADDRESS"

// P11Kit is a token behind the socket of "p11-kit server". The server forks a child for each client. A signal to that child
// has the effect of a network HSM that hangs or goes away.
type P11Kit struct {
	Module string // absolute path of the client module; each test has a copy
	Socket string

	token  *Token
	server *exec.Cmd
}

// NewP11Kit serves a token until the test ends. It ends the test if p11-kit is missing (Debian: apt-get install p11-kit
// p11-kit-modules).
func NewP11Kit(tb testing.TB, t *Token) *P11Kit {
	tb.Helper()
	found, err := filepath.Glob("/usr/lib*/*/pkcs11/p11-kit-client.so")
	more, _ := filepath.Glob("/usr/lib*/pkcs11/p11-kit-client.so")
	if found = append(found, more...); err != nil || len(found) == 0 {
		tb.Fatalf("no p11-kit-client.so in the usual places: apt-get install p11-kit p11-kit-modules")
	}
	// The client reads the socket's address once, when it is loaded: each test needs a client that was not loaded yet.
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
	// The file exists before the server listens. The child of this connection must not be taken for that of a client.
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

// Env returns the variables that a child process needs to see the token, in addition to os.Environ.
func (p *P11Kit) Env() []string { return []string{serverVariable + "=unix:path=" + p.Socket} }

// Ref is Token.Ref through the socket.
func (p *P11Kit) Ref(object string) string {
	return strings.Replace(p.token.Ref(object), escape(p.token.Module), escape(p.Module), 1)
}

// Signal sends a signal to the children that serve the clients, and returns their number. After SIGKILL it waits until they
// are gone.
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

// children returns the child processes of the server, except zombies (proc(5)).
func (p *P11Kit) children(tb testing.TB) []int {
	tb.Helper()
	pid := p.server.Process.Pid
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid)) // missing: the server is gone
	var children []int
	for _, field := range strings.Fields(string(text)) {
		stat, err := os.ReadFile("/proc/" + field + "/stat") // #nosec G304 G703 -- a file of /proc
		child, convErr := strconv.Atoi(field)
		if err == nil && convErr == nil && !strings.Contains(string(stat), ") Z ") {
			children = append(children, child)
		}
	}
	return children
}

// await waits for a condition.
func await(tb testing.TB, what string, there func() bool) {
	tb.Helper()
	for end := time.Now().Add(10 * time.Second); !there(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			tb.Fatalf("%s: not within 10 s", what)
		}
	}
}
