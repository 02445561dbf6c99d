//go:build cgo && unix

package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"hsmsign/signer"
)

// TestMain lets the test binary be the worker, too, and the other programs that these tests need.
func TestMain(m *testing.M) {
	// A program that the race detector watches ends a second late, and each worker is one.
	if err := os.Setenv("GORACE", os.Getenv("GORACE")+" atexit_sleep_ms=0"); err != nil {
		panic(err)
	}
	if len(os.Args) < 2 {
		os.Exit(m.Run())
	}
	var err error
	switch os.Args[1] {
	case "pkcs11-worker":
		err = errors.Join(spyOn(os.Getenv(spyVariable)), RunWorker(context.Background(), os.Args[2:]))
	case "silent-worker": // never answers
		time.Sleep(time.Minute)
	case "loud-worker": // says what it is told to on standard error, and ends
		fmt.Fprintln(os.Stderr, os.Args[2])
		os.Exit(3)
	case "worker-parent": // starts a worker, tells its process id, and waits to be killed
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

// beParent opens the key of a reference, or without one starts a worker that does not care about its socket.
func beParent(reference []string) error {
	if len(reference) == 0 {
		p, err := startProcess([]string{os.Args[0], "silent-worker"}, "", 0)
		if err != nil {
			return err
		}
		fmt.Println(p.cmd.Process.Pid)
		time.Sleep(time.Minute)
		return nil
	}
	ref, err := signer.ParseRef(reference[0])
	if err != nil {
		return err
	}
	key, err := Backend(workerOptions()).Open(context.Background(), ref, signer.OpenOptions{})
	if err != nil {
		return err
	}
	fmt.Println(key.(*workerKey).pid())
	time.Sleep(time.Minute)
	return nil
}

// spyVariable names a spy's folder to a worker.
const spyVariable = "WORKER_SPY"

// spy is a folder in which a worker notes its calls, and finds the faults that are asked of it: "MODULE" holds the
// module's path; a file "crash", "hang" or "refuse" is met by the next C_Sign, "stuck" by C_FindObjectsInit. crash
// and hang are used up.
type spy struct{ dir string }

func newSpy(t *testing.T, module string) spy {
	t.Helper()
	s := spy{t.TempDir()}
	s.fault(t, "MODULE", module)
	t.Setenv(spyVariable, s.dir)
	return s
}

func (s spy) fault(t *testing.T, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// calls counts a call's notes.
func (s spy) calls(name string) int {
	notes, _ := filepath.Glob(filepath.Join(s.dir, name+"-*"))
	return len(notes)
}

func (s spy) note(name string) {
	f, err := os.CreateTemp(s.dir, name+"-*")
	if err != nil {
		panic(err)
	}
	_ = f.Close()
}

// meets takes a fault, and says whether it was there.
func (s spy) meets(name string) bool { return os.Remove(filepath.Join(s.dir, name)) == nil }

// spyOn puts a spy in the place of its module.
func spyOn(dir string) error {
	if dir == "" {
		return nil
	}
	path, err := os.ReadFile(filepath.Join(dir, "MODULE"))
	if err != nil {
		return err
	}
	m, err := findModule(reference{module: string(path)})
	if err != nil {
		return err
	}
	m.lib = spiedModule{pkcs11.New(string(path)), spy{dir}}
	return nil
}

type spiedModule struct {
	cryptoki
	spy spy
}

func (s spiedModule) Login(sh pkcs11.SessionHandle, user uint, pin string) error {
	s.spy.note("C_Login")
	if s.spy.meets("refuse-login") {
		return pkcs11.Error(pkcs11.CKR_PIN_INCORRECT)
	}
	if s.spy.meets("crash-login") {
		crash()
	}
	return s.cryptoki.Login(sh, user, pin)
}

func (s spiedModule) FindObjectsInit(sh pkcs11.SessionHandle, template []*pkcs11.Attribute) error {
	if s.spy.meets("stuck") {
		select {}
	}
	return s.cryptoki.FindObjectsInit(sh, template)
}

func (s spiedModule) Finalize() error {
	s.spy.note("C_Finalize")
	return s.cryptoki.Finalize()
}

func (s spiedModule) Sign(sh pkcs11.SessionHandle, data []byte) ([]byte, error) {
	s.spy.note("C_Sign")
	switch {
	case s.spy.meets("crash"), s.spy.meets("crash-too"):
		crash()
	case s.spy.meets("hang"):
		select {}
	case s.spy.meets("refuse"):
		return nil, pkcs11.Error(pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED)
	}
	return s.cryptoki.Sign(sh, data)
}

func crash() {
	_ = syscall.Kill(os.Getpid(), syscall.SIGSEGV)
	select {}
}
