package authn

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// socket returns both ends of a connection that dial makes.
func socket(t *testing.T, dial func(path string)) *net.UnixConn {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	dial(path)
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn.(*net.UnixConn)
}

func TestPeer(t *testing.T) {
	conn := socket(t, func(path string) {
		own, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = own.Close() })
	})
	if uid, err := Peer(conn); err != nil || uid != os.Getuid() {
		t.Errorf("%d, %v", uid, err)
	}
}

// child connects as another program that unshare starts with the given options, and stays.
func child(t *testing.T, options ...string) *net.UnixConn {
	t.Helper()
	script := `import socket,sys
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print("connected", flush=True); sys.stdin.read()`
	return socket(t, func(path string) {
		cmd := exec.CommandContext(t.Context(), "unshare", append(options, "python3", "-c", script, path)...)
		cmd.Stderr = os.Stderr
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Skip(err)
		}
		t.Cleanup(func() { _ = in.Close(); _ = cmd.Wait() })
		var word string
		if _, err := fmt.Fscan(out, &word); err != nil {
			t.Skipf("this system has no user namespaces for tests: %v", err)
		}
	})
}

// The user ids of another user namespace are not those of this one.
func TestPeerOfAnotherUserNamespace(t *testing.T) {
	for _, options := range [][]string{{"--user", "--map-root-user"}, {"--user"}} {
		if uid, err := Peer(child(t, options...)); err == nil {
			t.Errorf("%v: user %d", options, uid)
		}
	}
	if _, err := Peer(child(t, "--ipc")); err != nil && os.Getuid() == 0 {
		t.Errorf("the same user namespace: %v", err)
	}
}

func TestPeerThatHasEnded(t *testing.T) {
	conn := socket(t, func(path string) {
		cmd := exec.CommandContext(t.Context(), "python3", "-c", `import socket,sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])`, path)
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
	})
	if uid, err := Peer(conn); err == nil {
		t.Errorf("user %d", uid)
	}
}
