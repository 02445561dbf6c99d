package server_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"hsmsign/agent/policy"
	"hsmsign/internal/servicekit"
)

// The root of a user namespace that anybody can make is not the user of that number here.
func TestOtherUserNamespace(t *testing.T) {
	s := servicekit.Start(t, servicekit.Options{Callers: map[string]policy.CallerConfig{"local": {Role: "admin", Person: "bo", UID: []int{os.Getuid()}}}})
	ask := func(program string, args ...string) string {
		script := `import socket,sys
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])
s.sendall(b"GET /v1/me HTTP/1.1\r\nHost: localhost\r\n\r\n"); print(s.recv(12).decode())`
		out, err := exec.CommandContext(t.Context(), program, append(args, "-c", script, s.Socket)...).CombinedOutput() // #nosec G204 -- constants
		if err != nil {
			t.Skipf("%s: %v %s", program, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	if got := ask("python3"); got != "HTTP/1.1 200" {
		t.Fatalf("this user namespace: %q", got)
	}
	if got := ask("unshare", "--user", "--map-root-user", "python3"); got != "HTTP/1.1 401" {
		t.Errorf("another user namespace: %q", got)
	}
	if !strings.Contains(s.Log(), "the peer is in another user namespace") {
		t.Errorf("%s", s.Log())
	}
}
