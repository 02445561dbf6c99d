//go:build linux

package isolate

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"hsmsign/internal/testkit"
	"hsmsign/signer"
)

// TestMain lets the test binary also be the other programs of these tests.
func TestMain(m *testing.M) {
	// The race detector delays the exit of a program by a second, and each worker is one.
	_ = os.Setenv("GORACE", os.Getenv("GORACE")+" atexit_sleep_ms=0")
	if len(os.Args) < 2 {
		os.Exit(m.Run())
	}
	var err error
	switch os.Args[1] {
	case "worker":
		err = Serve(context.Background(), os.Args[2:], openFaulty)
	case "silent": // never answers
		time.Sleep(time.Minute)
	case "loud": // writes to standard error, and ends
		fmt.Fprintln(os.Stderr, os.Args[2])
		os.Exit(3)
	case "parent": // starts a worker, prints its process id, and waits to be killed
		err = beParent(os.Args[2:])
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// beParent opens a key, or without a reference starts a worker that does not read its socket.
func beParent(reference []string) error {
	pid := 0
	if len(reference) == 0 {
		p, err := startProcess([]string{os.Args[0], "silent"}, "", 0)
		if err != nil {
			return err
		}
		pid = p.cmd.Process.Pid
	} else {
		ref, err := signer.ParseRef(reference[0])
		if err != nil {
			return err
		}
		k, err := Open(context.Background(), ref, signer.OpenOptions{}, config())
		if err != nil {
			return err
		}
		pid = k.pid()
	}
	fmt.Println(pid)
	time.Sleep(time.Minute)
	return nil
}

func config() Config { return Config{Command: []string{os.Args[0], "worker"}, Lanes: 4} }

// faultyKey is the golden key with faults. dir is a folder in which it notes its calls, and finds the faults that a test
// asks for: a file "crash", "hang", "exit", ... is removed by the call that meets it.
type faultyKey struct {
	*testkit.Signer
	dir string
}

// openFaulty opens test:FOLDER. The attribute ask is a question for the parent; the key opens if the answer is "yes".
func openFaulty(ctx context.Context, ref signer.Ref, open signer.OpenOptions, parent *Parent) (signer.Signer, error) {
	fail := func(err error) (signer.Signer, error) { return nil, &signer.Error{Op: "open", Ref: ref, Err: err} }
	if err := ref.CheckQuery("ask", "echo", "pin-value", "passphrase", "module-path"); err != nil {
		return fail(err)
	}
	k := faultyKey{dir: ref.Path}
	k.meet("open")
	if question, ok := ref.Query("ask"); ok {
		answer, err := parent.Secret(ctx, question)
		if err != nil {
			return fail(err)
		}
		if string(answer) != "yes" {
			return fail(fmt.Errorf("%w: %w", signer.ErrAuth, ErrSecretRefused))
		}
		fmt.Fprintf(os.Stderr, "the secret is %s\n", answer)
	}
	if _, ok := ref.Query("echo"); ok {
		parent.Warn(fmt.Sprintf("%s %d %v", ref.Encode(), parent.Lanes(), open.PublicKey != nil))
	}
	text, err := os.ReadFile(filepath.Join(k.dir, "key"))
	if err != nil {
		return fail(fmt.Errorf("%w: %w", signer.ErrKeyNotFound, err))
	}
	block, _ := pem.Decode(text)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return fail(fmt.Errorf("%w: %w", signer.ErrBadKey, err))
	}
	k.Signer = testkit.NewSigner(key.(crypto.Signer))
	return k, nil
}

func (k faultyKey) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.SignContext(context.Background(), digest, opts)
}

func (k faultyKey) SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	note(k.dir, "sign")
	k.meet("sign")
	switch {
	case k.meets("refuse"):
		return nil, &signer.Error{Op: "use", Err: fmt.Errorf("%w: not permitted", signer.ErrBadKey)}
	case k.meets("latch"):
		return nil, fmt.Errorf("%w: %w", signer.ErrAuth, ErrSecretRefused)
	}
	sig, err := k.Signer.SignContext(ctx, digest, opts)
	if k.meets("short") {
		sig = sig[1:]
	}
	return sig, err
}

func (k faultyKey) Close() error {
	note(k.dir, "close")
	return nil
}

// meet dies or hangs in an operation if the test asks for it.
func (k faultyKey) meet(op string) {
	switch {
	case k.meets(op + "-crash"), k.meets(op + "-crash-too"):
		_ = syscall.Kill(os.Getpid(), syscall.SIGSEGV)
		select {}
	case k.meets(op + "-hang"):
		select {}
	}
}

func (k faultyKey) meets(fault string) bool { return os.Remove(filepath.Join(k.dir, fault)) == nil }

func note(dir, call string) {
	if f, err := os.CreateTemp(dir, "call-"+call+"-*"); err == nil {
		_ = f.Close()
	}
}

// store is the folder of a faultyKey.
type store struct{ dir string }

func newStore(t *testing.T) store {
	t.Helper()
	s := store{t.TempDir()}
	s.write(t, "key", string(testkit.File(t, "golden/vendor.key")))
	return s
}

// fault lets the next operation meet a fault.
func (s store) fault(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		s.write(t, name, "")
	}
}

func (s store) write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// calls returns the number of calls.
func (s store) calls(name string) int {
	notes, _ := filepath.Glob(filepath.Join(s.dir, "call-"+name+"-*"))
	return len(notes)
}

// open opens the key of the store, with more attributes.
func (s store) open(ctx context.Context, t *testing.T, query string, cfg Config) (*Key, error) {
	t.Helper()
	ref, err := signer.ParseRef("test:" + s.dir + query)
	if err != nil {
		t.Fatal(err)
	}
	return Open(ctx, ref, signer.OpenOptions{}, cfg)
}

// mustOpen opens the key of the store until the test ends. It must leave nothing behind.
func (s store) mustOpen(t *testing.T) *Key {
	t.Helper()
	before := goleak.IgnoreCurrent()
	k, err := s.open(t.Context(), t, "", config())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
		if err := goleak.Find(before); err != nil {
			t.Error(err)
		}
	})
	return k
}

// pid returns the process id of the key's present worker.
func (k *Key) pid() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.current.process.cmd.Process.Pid
}

// mustSign makes a signature and verifies it.
func mustSign(t *testing.T, key signer.Signer) {
	t.Helper()
	if _, err := signer.Sign(t.Context(), key, []byte("certificate request"), crypto.SHA256); err != nil {
		t.Error(err)
	}
}

// refused checks the family, the type and the text of an error.
func refused(t *testing.T, err, family error, says ...string) {
	t.Helper()
	if !errors.Is(err, family) {
		t.Errorf("error %v; want one that wraps %q", err, family)
		return
	}
	if _, ok := err.(*signer.Error); !ok { //nolint:errorlint // the outermost error is checked
		t.Errorf("error %v is a %T; want a *signer.Error", err, err)
	}
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("error %q does not contain %q", err, s)
		}
	}
}

// state returns the state of a process by proc(5): "R", "S", "T", "Z"; "" if it is gone.
func state(pid int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	_, after, _ := strings.Cut(string(text), ") ")
	return after[:1]
}

func kill(t *testing.T, pid int, sig syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(pid, sig); err != nil {
		t.Fatal(err)
	}
	if sig == syscall.SIGSTOP {
		testkit.Eventually(t, "stop", func() bool { return state(pid) == "T" })
	}
}
