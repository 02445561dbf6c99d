//go:build cgo && unix

package pkcs11

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"hsmsign/signer"
	softhsmtest "hsmsign/softhsm-test"
)

// A worker that hangs is killed after the deadline, and whoever waits besides is served by the next one.
func TestWorkerHangs(t *testing.T) {
	tok := newToken(t)
	k := openWorker(t, tok.Ref("vendor"), workerOptions())
	k.grace = 200 * time.Millisecond
	before := k.pid()
	stop(t, before)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	began := time.Now()
	var others sync.WaitGroup
	for range k.ref.sessions - 1 {
		others.Go(func() { signs(t, k) })
	}
	_, err := k.SignContext(ctx, digest, crypto.SHA256)
	refused(t, err, context.DeadlineExceeded)
	refused(t, err, signer.ErrUnavailable)
	if took := time.Since(began); took > 200*time.Millisecond {
		t.Errorf("the error came after %v", took)
	}
	signs(t, k)
	others.Wait()
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("the next signature came after %v", took)
	}
	if k.pid() == before {
		t.Error("the worker that hung lives on")
	}

	k.limit = 100 * time.Millisecond // for a caller that sets none
	stop(t, k.pid())
	_, err = k.Sign(nil, digest, crypto.SHA256)
	refused(t, err, signer.ErrUnavailable, "did not answer in time")
	k.limit = callLimit
	signs(t, k)

	// A caller that goes away is no reason to kill.
	before = k.pid()
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	s := make(chan error)
	stop(t, before)
	ctx, cancel = context.WithCancel(t.Context())
	go func() {
		_, err := k.SignContext(ctx, digest, crypto.SHA256)
		s <- err
	}()
	_, err = k.SignContext(gone, digest, crypto.SHA256)
	refused(t, err, context.Canceled)
	eventually(t, time.Second, "a call under way", func() bool { return len(k.free) < cap(k.free) })
	cancel()
	refused(t, <-s, context.Canceled)
	time.Sleep(2 * k.grace)
	kill(t, before, syscall.SIGCONT)
	signs(t, k)
	if k.pid() != before {
		t.Error("a caller that went away cost the worker")
	}
}

// Close does not wait for ever either, and what it interrupts is told so.
func TestWorkerHangsAtClose(t *testing.T) {
	tok := newToken(t)
	k := openWorker(t, tok.Ref("vendor"), workerOptions())
	k.wait = 300 * time.Millisecond
	pid := k.pid()
	stop(t, pid)
	done := make(chan error)
	go func() {
		_, err := k.SignContext(context.Background(), digest, crypto.SHA256)
		done <- err
	}()
	eventually(t, time.Second, "a call under way", func() bool { return len(k.free) < cap(k.free) })
	began := time.Now()
	if err := k.Close(); err != nil {
		t.Error(err)
	}
	refused(t, <-done, signer.ErrClosed)
	if took := time.Since(began); took > k.wait+exitWait {
		t.Errorf("close took %v", took)
	}
	if s := state(pid); s != "" {
		t.Errorf("the worker is still there, in state %s", s)
	}
}

func TestWorkerNeverOpens(t *testing.T) {
	tok := newToken(t)
	defer func(before goleak.Option) {
		if err := goleak.Find(before); err != nil {
			t.Error(err)
		}
	}(goleak.IgnoreCurrent())
	s := newSpy(t, tok.Module)
	for name, worker := range map[string][]string{"silent": {os.Args[0], "silent-worker"}, "stuck": {os.Args[0], "pkcs11-worker"}} {
		s.fault(t, "stuck", "")
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		began := time.Now()
		_, err := Backend(Options{Isolate: true, Worker: worker}).Open(ctx, parse(t, tok.Ref("vendor")), signer.OpenOptions{})
		refused(t, err, context.DeadlineExceeded)
		refused(t, err, signer.ErrUnavailable)
		if took := time.Since(began); took > time.Second {
			t.Errorf("%s: open took %v", name, took)
		}
	}
}

func TestWorkerTalksGarbage(t *testing.T) {
	tok := newToken(t)
	opened := frame{kindOpened, [][]byte{[]byte("no key")}}.encode()
	for name, tt := range map[string]struct {
		says   string
		family error
		tells  string
	}{
		"text":            {"HTTP/1.1 400 Bad Request\r\n", signer.ErrUnavailable, "a frame of"},
		"no key":          {string(opened), signer.ErrBadKey, "public key"},
		"another answer":  {string(frame{kindSigned, [][]byte{nil}}.encode()), signer.ErrUnavailable, "nobody waits for"},
		"twice a PIN":     {strings.Repeat(string(frame{kindAskPIN, [][]byte{nil, nil}}.encode()), 2), signer.ErrUnavailable, "twice"},
		"endless warning": {strings.Repeat(string(frame{kindWarning, [][]byte{nil}}.encode()), maxWarnings+1), signer.ErrUnavailable, "warned"},
	} {
		t.Run(name, func(t *testing.T) {
			opts := Options{Isolate: true, Worker: []string{"/bin/sh", "-c", "printf '%b' \"$0\" >&3; exec sleep 60", octal(tt.says)}}
			opts.Secrets.Prompt = func(ctx context.Context, _ string) ([]byte, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			bare, _, _ := strings.Cut(tok.Ref("vendor"), "&pin-source")
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			_, err := Backend(opts).Open(ctx, parse(t, bare), signer.OpenOptions{})
			refused(t, err, tt.family, tt.tells)
			if errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("it was noticed late: %v", err)
			}
		})
	}
}

// The same through a real module, which does not know what it calls. Its variables start with HSMSIGN_, which no
// worker inherits.
func TestWorkerCrashesInModule(t *testing.T) {
	tok := newToken(t)
	module := softhsmtest.BuildFaultModule(t)
	module.Use(tok)
	opts := workerOptions()
	opts.Worker = slices.Concat([]string{"/usr/bin/env"}, module.Env(), opts.Worker)
	k := openWorker(t, tok.Ref("vendor"), opts)
	k.grace = 100 * time.Millisecond
	module.Script(t, "C_Sign 1 crash")
	signs(t, k)
	if n := module.Calls(t)["C_Sign"]; n != 3 {
		t.Errorf("%d C_Sign; want the one that crashed, and two for a signature and its length", n)
	}
	module.Script(t, "C_Sign * crash")
	_, err := k.SignContext(t.Context(), digest, crypto.SHA256)
	refused(t, err, signer.ErrUnavailable, "signal: segmentation fault")
	time.Sleep(2 * firstBackOff)
	module.Script(t, "C_Sign 1 hang")
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	_, err = k.SignContext(ctx, digest, crypto.SHA256)
	refused(t, err, context.DeadlineExceeded)
	module.Script(t)
	signs(t, k)
}

// All sessions of a worker are in C_Sign at one time.
func TestWorkerSessions(t *testing.T) {
	tok := newToken(t)
	module := softhsmtest.BuildFaultModule(t)
	module.Use(tok)
	opts := workerOptions()
	opts.Worker = slices.Concat([]string{"/usr/bin/env"}, module.Env(), opts.Worker)
	k := openWorker(t, tok.Ref("vendor"), opts)
	module.Script(t, "C_Sign * hang")
	var callers sync.WaitGroup
	for range cap(k.free) {
		callers.Go(func() { signs(t, k) })
	}
	eventually(t, 5*time.Second, "calls of C_Sign by all sessions", func() bool { return module.Calls(t)["C_Sign"] == cap(k.free) })
	module.Script(t)
	callers.Wait()
}

// octal writes bytes for printf's %b.
func octal(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		fmt.Fprintf(&b, "\\0%03o", c)
	}
	return b.String()
}

// What a worker says last is told, without the PIN.
func TestWorkerLastWords(t *testing.T) {
	tok := newToken(t)
	opts := Options{Isolate: true, Worker: []string{os.Args[0], "loud-worker", "no route to HSM"}}
	_, err := Backend(opts).Open(t.Context(), parse(t, tok.Ref("vendor")), signer.OpenOptions{})
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

// The worker dies with its parent: by the end of its socket, or, where it does not read that, by the signal.
func TestWorkerDiesWithParent(t *testing.T) {
	needProc(t)
	tok := newToken(t)
	for _, args := range [][]string{{"worker-parent", tok.Ref("vendor")}, {"worker-parent"}} {
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
		// Whoever inherits it may be slow to reap it.
		eventually(t, time.Second, fmt.Sprintf("end of the worker of %q", args), func() bool {
			s := state(worker)
			return s == "" || s == "Z"
		})
	}
}

// 200 workers later there are no more descriptors, goroutines or zombies than before.
func TestWorkerLeavesNothing(t *testing.T) {
	needProc(t)
	tok := newToken(t)
	fds := func() int {
		open, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(open)
	}
	k := openWorker(t, tok.Ref("vendor"), workerOptions())
	before := fds()
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // which would close what was forgotten
	for range 200 {
		kill(t, k.pid(), syscall.SIGKILL)
		signs(t, k)
	}
	eventually(t, time.Second, fmt.Sprintf("as few descriptors as the %d before", before), func() bool { return fds() <= before })
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

// An orderly Close lets the module finalize.
func TestWorkerFinalizes(t *testing.T) {
	tok := newToken(t)
	s := newSpy(t, tok.Module)
	k := openWorker(t, tok.Ref("vendor"), workerOptions())
	signs(t, k)
	if err := k.Close(); err != nil {
		t.Error(err)
	}
	if n := s.calls("C_Finalize"); n != 1 {
		t.Errorf("%d C_Finalize; want 1", n)
	}
	_, err := k.SignContext(t.Context(), digest, crypto.SHA256)
	refused(t, err, signer.ErrClosed)
}

// newLane gives a lane and the worker's end of it.
func newLane(t *testing.T) (*lane, *os.File) {
	t.Helper()
	ours, theirs, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = ours.Close(), theirs.Close() })
	return &lane{ours, bufio.NewReaderSize(ours, maxAnswer)}, theirs
}

// What is not the one answer to the question is refused.
func TestLaneTalksGarbage(t *testing.T) {
	signed := string(frame{kindSigned, [][]byte{digest}}.encode())
	for name, tt := range map[string]struct{ says, tells string }{
		"text":           {"HTTP/1.1 400 Bad Request\r\n", "a frame of"},
		"too long":       {string(frame{kindSigned, [][]byte{make([]byte, maxAnswer)}}.encode()), "a frame of"},
		"another answer": {string(frame{kindOpened, [][]byte{digest}}.encode()), "nobody waits for"},
		"two answers":    {signed + signed, "nobody waits for"},
		"no answer":      {signed[:20], "EOF"},
	} {
		l, theirs := newLane(t)
		if _, err := theirs.WriteString(tt.says); err != nil {
			t.Fatal(err)
		}
		_ = theirs.Close()
		if _, err := l.wait(t.Context(), time.Now().Add(10*time.Second)); err == nil || !strings.Contains(err.Error(), tt.tells) {
			t.Errorf("%s: %v; want %q", name, err, tt.tells)
		}
	}
}

// An answer of which half has come when its caller goes away is not lost.
func TestLaneInterrupted(t *testing.T) {
	l, theirs := newLane(t)
	whole := frame{kindSigned, [][]byte{digest}}.encode()
	if _, err := theirs.Write(whole[:20]); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	end := time.Now().Add(10 * time.Second)
	if _, err := l.wait(ctx, end); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%v; want the end of the context", err)
	}
	if _, err := l.wait(t.Context(), time.Now().Add(3*laneTick)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%v; want the end of the wait", err)
	}
	if _, err := theirs.Write(whole[20:]); err != nil {
		t.Fatal(err)
	}
	f, err := l.wait(t.Context(), end)
	if err != nil || !bytes.Equal(f.fields[0], digest) {
		t.Errorf("%v, %v", f, err)
	}
}

// The longest question is taken by a worker that does not read.
func TestLaneNeverBlocks(t *testing.T) {
	l, _ := newLane(t)
	question := frame{kindSignMessage, [][]byte{{5}, make([]byte, maxSigned)}}
	if n := len(question.encode()); n > maxFrame {
		t.Fatalf("%d bytes", n)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := l.ask(ctx, question, time.Now().Add(10*time.Second)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v; want the end of the context", err)
	}
}

// The worker ends where its parent breaks the rules.
func TestServeLaneTalksGarbage(t *testing.T) {
	for _, says := range []string{"GET / HTTP/1.1\r\n", string(frame{kindPIN, [][]byte{nil}}.encode()), string(frame{kindOpened, [][]byte{digest}}.encode())} {
		l, theirs := newLane(t)
		if _, err := l.file.WriteString(says); err != nil {
			t.Fatal(err)
		}
		if err := serveLane(theirs, nil); err == nil || !strings.Contains(err.Error(), "a frame of") {
			t.Errorf("%q: %v", says, err)
		}
	}
}
