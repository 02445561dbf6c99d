//go:build linux

package isolate

import (
	"bufio"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"hsmsign/internal/testkit"
	"hsmsign/signer"
)

// Open returns when its context ends, and ends the worker.
func TestWorkerNeverOpens(t *testing.T) {
	before := goleak.IgnoreCurrent()
	s := newStore(t)
	for _, program := range []string{"silent", "worker"} {
		s.fault(t, "open-hang")
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		_, err := s.open(ctx, t, "", Config{Command: []string{os.Args[0], program}})
		refused(t, err, context.DeadlineExceeded)
		refused(t, err, signer.ErrUnavailable)
	}
	_, err := s.open(t.Context(), t, "", Config{Command: []string{"/no/such/program"}})
	refused(t, err, signer.ErrUnavailable, "/no/such/program")
	if err := goleak.Find(before); err != nil {
		t.Error(err)
	}
}

// A worker that breaks the rules is an error at once.
func TestWorkerBreaksRules(t *testing.T) {
	encode := func(k kind, field string) string { return string(frame{k, [][]byte{[]byte(field)}}.encode()) }
	for name, tt := range map[string]struct {
		says   string
		family error
		tells  string
	}{
		"text":             {"HTTP/1.1 400 Bad Request\r\n", signer.ErrUnavailable, "a frame of"},
		"no key":           {encode(kindOpened, "no key"), signer.ErrBadKey, "public key"},
		"another answer":   {encode(kindSigned, ""), signer.ErrUnavailable, "was not expected"},
		"two questions":    {strings.Repeat(encode(kindAsk, ""), 2), signer.ErrUnavailable, "twice"},
		"endless warnings": {strings.Repeat(encode(kindWarning, ""), maxWarnings+1), signer.ErrUnavailable, "warned"},
	} {
		t.Run(name, func(t *testing.T) {
			var octal strings.Builder // for printf's %b
			for _, c := range []byte(tt.says) {
				fmt.Fprintf(&octal, "\\0%03o", c)
			}
			cfg := Config{Command: []string{"/bin/sh", "-c", "printf '%b' \"$0\" >&3; exec sleep 60", octal.String()}}
			cfg.Login = func(_ context.Context, start func(Secret) error) error {
				return start(func(ctx context.Context, _ string) ([]byte, error) {
					<-ctx.Done()
					return nil, ctx.Err()
				})
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			_, err := newStore(t).open(ctx, t, "", cfg)
			refused(t, err, tt.family, tt.tells)
			if errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("it was noticed late: %v", err)
			}
		})
	}
}

// Another key under the name of the first does not sign.
func TestAnotherKey(t *testing.T) {
	s := newStore(t)
	k := s.mustOpen(t)
	der, err := x509.MarshalPKCS8PrivateKey(testkit.Key("other"))
	if err != nil {
		t.Fatal(err)
	}
	s.write(t, "key", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
	kill(t, k.pid(), syscall.SIGKILL)
	_, err = k.Sign(nil, digest, crypto.SHA256)
	refused(t, err, signer.ErrKeyNotFound, "another key")
}

// The error contains the last words of a worker, without the secret.
func TestLastWords(t *testing.T) {
	_, err := newStore(t).open(t.Context(), t, "", Config{Command: []string{os.Args[0], "loud", "no route to HSM"}})
	refused(t, err, signer.ErrUnavailable, "exit status 3", "no route to HSM")

	var l lastBytes
	for range 1000 {
		_, _ = l.Write([]byte("noise 4711 \x00\xff\n"))
	}
	_, _ = l.Write([]byte("lost the HSM\nPIN was 4711"))
	text := l.text([]byte("4711"))
	if len(text) > maxLastWord || !strings.HasSuffix(text, "lost the HSM PIN was REDACTED") || strings.Contains(text, "4711") {
		t.Errorf("last words %q", text)
	}
}

// A worker dies with its parent: by the end of its socket or, if it does not read that, by the signal.
func TestWorkerDiesWithParent(t *testing.T) {
	s := newStore(t)
	for _, args := range [][]string{{"parent", "test:" + s.dir}, {"parent"}} {
		parent := exec.Command(os.Args[0], args...)
		parent.Stderr = os.Stderr
		out, err := parent.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := parent.Start(); err != nil {
			t.Fatal(err)
		}
		line, _ := bufio.NewReader(out).ReadString('\n')
		var worker int
		if _, err := fmt.Sscan(line, &worker); err != nil {
			t.Fatal(err)
		}
		kill(t, parent.Process.Pid, syscall.SIGKILL)
		_ = parent.Wait()
		// The process that inherits it may be slow to reap it.
		testkit.Eventually(t, fmt.Sprintf("end of the worker of %q", args), func() bool {
			s := state(worker)
			return s == "" || s == "Z"
		})
	}
}

// After 50 workers there are no more descriptors, goroutines or zombies than before.
func TestWorkersLeaveNothing(t *testing.T) {
	fds := func() int {
		open, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(open)
	}
	k := newStore(t).mustOpen(t)
	before := fds()
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // it would close forgotten files
	for range 50 {
		kill(t, k.pid(), syscall.SIGKILL)
		mustSign(t, k)
	}
	testkit.Eventually(t, fmt.Sprintf("no more than the %d descriptors before", before), func() bool { return fds() <= before })
	if err := k.Close(); err != nil {
		t.Error(err)
	}
	children, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil || len(children) == 0 {
		t.Fatalf("%v, %v", children, err)
	}
	for _, path := range children {
		if pids, err := os.ReadFile(path); err == nil && len(pids) > 0 {
			t.Errorf("child processes %s", pids)
		}
	}
}
