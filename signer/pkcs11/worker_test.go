//go:build cgo && unix

package pkcs11

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"hsmsign/signer"
	"hsmsign/signer/signertest"
)

// workerOptions start the test binary as a worker, for every reference that does not say isolate=no.
func workerOptions() Options {
	return Options{Isolate: true, Worker: []string{os.Args[0], "pkcs11-worker"}}
}

// openWorker opens a key in a worker until the test ends, and holds its end to leaving nothing behind.
func openWorker(t *testing.T, ref string, opts Options) *workerKey {
	t.Helper()
	before := goleak.IgnoreCurrent()
	key, err := Backend(opts).Open(t.Context(), parse(t, ref), signer.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := key.Close(); err != nil {
			t.Error(err)
		}
		if err := goleak.Find(before); err != nil {
			t.Error(err)
		}
	})
	return key.(*workerKey)
}

// pid is the process id of the key's present worker.
func (k *workerKey) pid() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.current.process.cmd.Process.Pid
}

// signs wants a good signature.
func signs(t *testing.T, key signer.Signer) {
	t.Helper()
	if _, err := signer.Sign(t.Context(), key, []byte("certificate request"), crypto.SHA256); err != nil {
		t.Error(err)
	}
}

// eventually waits for a condition.
func eventually(t *testing.T, limit time.Duration, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, limit)
		}
	}
}

// state is the state of a process by proc(5): "R", "S", "T", "Z"; "" when it is gone.
func state(pid int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	_, after, _ := strings.Cut(string(text), ") ")
	return after[:1]
}

func needProc(t *testing.T) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("looks at /proc")
	}
}

func kill(t *testing.T, pid int, sig syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(pid, sig); err != nil {
		t.Fatal(err)
	}
}

// stop stops a process, which takes a moment.
func stop(t *testing.T, pid int) {
	t.Helper()
	needProc(t)
	kill(t, pid, syscall.SIGSTOP)
	eventually(t, time.Second, "stop", func() bool { return state(pid) == "T" })
}

func TestWorkerConformance(t *testing.T) {
	tok := newToken(t)
	text, key := vendorKey(t)
	tok.Import(t, text, "twin", []byte{2})
	tok.Import(t, text, "twin", []byte{3})
	signertest.Run(t, signertest.Fixture{
		Backend:   Backend(workerOptions()),
		Ref:       tok.Ref("vendor"),
		Public:    &key.PublicKey,
		Missing:   tok.Ref("no-such-key"),
		Ambiguous: tok.Ref("twin"),
		Matches:   []string{`object="twin" id=%02`, `object="twin" id=%03`},
		Secrets:   []string{tok.PIN},
	})
}

func TestIsolateAttribute(t *testing.T) {
	tok := newToken(t)
	for _, tt := range []struct {
		attr    string
		isolate bool
		want    string
	}{
		{"", false, "*pkcs11.key"}, {"", true, "*pkcs11.workerKey"},
		{"&isolate=yes", false, "*pkcs11.workerKey"}, {"&isolate=no", true, "*pkcs11.key"},
	} {
		opts := workerOptions()
		opts.Isolate = tt.isolate
		key, err := Backend(opts).Open(t.Context(), parse(t, tok.Ref("vendor")+tt.attr), signer.OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("%T", key); got != tt.want {
			t.Errorf("%q, Isolate %v: %s; want %s", tt.attr, tt.isolate, got, tt.want)
		}
		if err := key.Close(); err != nil {
			t.Error(err)
		}
	}
	// How many signatures are made at a time: what the reference says, or twice what there are in the program itself.
	for query, want := range map[string]int{"": 2 * min(runtime.NumCPU(), 4), "&max-sessions=3": 3} {
		if k := openWorker(t, tok.Ref("vendor")+query, workerOptions()); cap(k.free) != want || len(k.current.lanes) != want {
			t.Errorf("%q: %d, with %d lanes; want %d", query, cap(k.free), len(k.current.lanes), want)
		}
	}
	_, err := Backend(workerOptions()).Open(t.Context(), parse(t, tok.Ref("vendor")+"&isolate=maybe"), signer.OpenOptions{})
	refused(t, err, signer.ErrReference, "isolate")
	_, err = Backend(Options{}).Open(t.Context(), parse(t, tok.Ref("vendor")+"&isolate=yes"), signer.OpenOptions{})
	refused(t, err, signer.ErrUnsupported, "no worker process")
	_, err = Backend(Options{Worker: []string{"/no/such/program"}}).Open(t.Context(), parse(t, tok.Ref("vendor")+"&isolate=yes"), signer.OpenOptions{})
	refused(t, err, signer.ErrUnavailable, "/no/such/program")
}

// The public key that is looked for, the PIN's source and warnings cross the socket.
func TestWorkerOptions(t *testing.T) {
	tok := newToken(t)
	second, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(second)
	if err != nil {
		t.Fatal(err)
	}
	tok.Import(t, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), "second", []byte{2})
	bare, _, _ := strings.Cut(tok.Ref(""), "&pin-source")
	opts := workerOptions()
	_, err = Backend(opts).Open(t.Context(), parse(t, tok.Ref("")), signer.OpenOptions{})
	refused(t, err, signer.ErrAmbiguousKey)
	var warned []string
	opts.Warn = func(text string) { warned = append(warned, text) }
	opened, err := Backend(opts).Open(t.Context(), parse(t, bare+"&pin-value="+tok.PIN), signer.OpenOptions{PublicKey: &second.PublicKey})
	if err != nil {
		t.Fatal(err)
	}
	k := opened.(*workerKey)
	defer func() { _ = k.Close() }()
	signs(t, k)
	if !second.PublicKey.Equal(k.Public()) {
		t.Error("it is not the key that was looked for")
	}
	if len(warned) != 1 || !strings.Contains(warned[0], "pin-value") {
		t.Errorf("warnings %q; want one about pin-value", warned)
	}
	k.warn("of the first worker")
	k.warn("of the first worker") // by the second one
	if len(warned) != 2 {
		t.Errorf("warnings %q; want each once", warned)
	}
}

// Neither environment nor arguments of a worker hold what hsmsign knows by its own variables, PINs above all.
func TestWorkerEnvironment(t *testing.T) {
	needProc(t)
	tok := newToken(t)
	t.Setenv("HSMSIGN_PIN", tok.PIN)
	t.Setenv("MY_PIN", tok.PIN)
	opts := workerOptions()
	opts.Secrets.Getenv = os.Getenv
	bare, _, _ := strings.Cut(tok.Ref("vendor"), "&pin-source")
	for _, ref := range []string{bare + "&pin-source=env:MY_PIN", bare + "&pin-value=" + tok.PIN} {
		k := openWorker(t, ref, opts)
		var seen string
		for _, name := range []string{"environ", "cmdline"} {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", k.pid(), name))
			if err != nil {
				t.Fatal(err)
			}
			seen += string(text)
		}
		for name, want := range map[string]bool{"HSMSIGN_": false, "MY_PIN": strings.Contains(ref, "value"), "SOFTHSM2_CONF=": true, "pkcs11-worker": true} {
			if got := strings.Contains(seen, name); got != want {
				t.Errorf("%s: %q is in the worker's environment or arguments: %v", parse(t, ref), name, got)
			}
		}
	}
}

func TestWorkerDies(t *testing.T) {
	tok := newToken(t)
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSEGV} {
		t.Run("idle, "+sig.String(), func(t *testing.T) {
			k := openWorker(t, tok.Ref("vendor"), workerOptions())
			for range 3 {
				before := k.pid()
				kill(t, before, sig)
				eventually(t, time.Second, "end", func() bool { return !k.current.alive() })
				signs(t, k)
				if now := k.pid(); now == before {
					t.Errorf("the same worker %d signs after %v", now, sig)
				}
			}
			if got := stats(k); got != (signer.Stats{Restarts: 3}) {
				t.Errorf("%+v; want 3 restarts", got)
			}
		})
		t.Run("while it signs, "+sig.String(), func(t *testing.T) {
			s := newSpy(t, tok.Module)
			k := openWorker(t, tok.Ref("vendor"), workerOptions())
			s.fault(t, "hang", "")
			done := make(chan struct{})
			go func() {
				defer close(done)
				signs(t, k)
			}()
			eventually(t, 10*time.Second, "C_Sign", func() bool { return s.calls("C_Sign") == 1 })
			kill(t, k.pid(), sig)
			<-done
			if n := s.calls("C_Sign"); n != 2 {
				t.Errorf("%d C_Sign; want the one that was lost and one more", n)
			}
		})
	}
}

// A crash inside C_Sign costs one retry; a second one in a row costs the signature, and a pause.
func TestWorkerCrashes(t *testing.T) {
	tok := newToken(t)
	s := newSpy(t, tok.Module)
	k := openWorker(t, tok.Ref("vendor"), workerOptions())
	s.fault(t, "crash", "")
	signs(t, k)
	s.fault(t, "crash", "")
	s.fault(t, "crash-too", "")
	_, err := k.SignContext(t.Context(), digest, crypto.SHA256)
	refused(t, err, signer.ErrUnavailable, "the worker process ended", "SIGSEGV: segmentation violation")
	if strings.Contains(err.Error(), "goroutine") || strings.Contains(err.Error(), "rax") {
		t.Errorf("the error tells stacks or registers: %v", err)
	}
	_, err = k.SignContext(t.Context(), digest, crypto.SHA256)
	refused(t, err, signer.ErrUnavailable, "may be started at "+time.Now().Format("2006-01-02T"), "SIGSEGV")
	time.Sleep(firstBackOff)
	signs(t, k)
	if n := s.calls("C_Sign"); n != 5 {
		t.Errorf("%d C_Sign; want 5: none while it waits", n)
	}
	s.fault(t, "refuse", "")
	before := k.pid()
	_, err = k.SignContext(t.Context(), digest, crypto.SHA256)
	refused(t, err, signer.ErrBadKey, "CKR_KEY_FUNCTION_NOT_PERMITTED")
	if k.pid() != before {
		t.Error("an answer of the token costs the worker")
	}
}

// The pause doubles up to its limit, and a signature ends it.
func TestWorkerBackOff(t *testing.T) {
	tok := newToken(t)
	k := openWorker(t, tok.Ref("vendor"), workerOptions())
	var waits []time.Duration
	k.mu.Lock()
	for range 10 {
		k.lose(errLost, time.Now())
		waits = append(waits, time.Until(k.notUntil).Round(50*time.Millisecond))
	}
	k.mu.Unlock()
	want := []time.Duration{0, 100, 200, 400, 800, 1600, 3200, 6400, 10000, 10000}
	for i := range want {
		if waits[i] != want[i]*time.Millisecond {
			t.Errorf("pauses %v; want %v ms", waits, want)
			break
		}
	}
	signs(t, k)
	kill(t, k.pid(), syscall.SIGKILL)
	signs(t, k) // at once
}
