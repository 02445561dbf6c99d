//go:build cgo && linux

package pkcs11

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
	"hsmsign/signer"
	softhsmtest "hsmsign/softhsm-test"
)

// TestMain lets the test binary also be the worker.
func TestMain(m *testing.M) {
	// The race detector delays the exit of a program by a second, and each worker is one.
	_ = os.Setenv("GORACE", os.Getenv("GORACE")+" atexit_sleep_ms=0")
	if len(os.Args) < 2 || os.Args[1] != "pkcs11-worker" {
		os.Exit(m.Run())
	}
	if err := RunWorker(context.Background(), os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// workerOptions start the test binary as a worker for every reference that does not have isolate=no.
func workerOptions() Options {
	return Options{Isolate: true, Worker: []string{os.Args[0], "pkcs11-worker"}}
}

// digest is any SHA-256 digest.
var digest = bytes.Repeat([]byte{0xab}, 32)

// newToken returns a token with the golden key as "vendor", id 01.
func newToken(tb testing.TB, opts ...softhsmtest.Option) *softhsmtest.Token {
	tb.Helper()
	tok := softhsmtest.New(tb, opts...)
	tok.Import(tb, testkit.File(tb, "golden/vendor.key"), "vendor", []byte{1})
	return tok
}

// faulty returns a token with the golden key behind a module with scripted faults.
func faulty(tb testing.TB) (*softhsmtest.Token, *softhsmtest.FaultModule) {
	tb.Helper()
	tok := newToken(tb)
	f := softhsmtest.BuildFaultModule(tb)
	f.Use(tok)
	return tok, f
}

// keyPEM returns a private key as PKCS#8.
func keyPEM(tb testing.TB, key any) []byte {
	tb.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		tb.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func newECKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

// bare returns a reference without pin-source.
func bare(ref string) string {
	ref, _, _ = strings.Cut(ref, "&pin-source")
	return ref
}

// with returns the reference to any key of a token with more path attributes.
func with(tok *softhsmtest.Token, path string) string {
	return strings.Replace(tok.Ref(""), "?", ";"+path+"?", 1)
}

func open(tb testing.TB, opts Options, ref string) (signer.Signer, error) {
	tb.Helper()
	return Backend(opts).Open(tb.Context(), parse(tb, ref), signer.OpenOptions{})
}

// openFails opens a reference, which must fail.
func openFails(t *testing.T, ref string, family error, says ...string) {
	t.Helper()
	_, err := open(t, Options{}, ref)
	refused(t, err, family, says...)
}

// mustOpenWith opens a reference until the test ends.
func mustOpenWith(tb testing.TB, opts Options, ref string) signer.Signer {
	tb.Helper()
	key, err := open(tb, opts, ref)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { closeKey(tb, key) })
	return key
}

func mustOpen(tb testing.TB, ref string) *key {
	tb.Helper()
	return mustOpenWith(tb, Options{}, ref).(*key)
}

func closeKey(tb testing.TB, key signer.Signer) {
	tb.Helper()
	if err := key.Close(); err != nil {
		tb.Error(err)
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

// hinted is refused for an error that must have a hint.
func hinted(t *testing.T, err, family error, says ...string) {
	t.Helper()
	refused(t, err, family, says...)
	if fault.Hint(err) == "" {
		t.Errorf("%v has no hint", err)
	}
}

// mustSign makes a signature within 20 s and verifies it.
func mustSign(t *testing.T, key signer.Signer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := signer.Sign(ctx, key, []byte("certificate request"), crypto.SHA256); err != nil {
		t.Error(err)
	}
}

// calls compares the number of calls.
func calls(t *testing.T, f *softhsmtest.FaultModule, want map[string]int) {
	t.Helper()
	got := f.Calls(t)
	for name, n := range want {
		if got[name] != n {
			t.Errorf("%d calls of %s; want %d", got[name], name, n)
		}
	}
}

// stats returns the figures of an open key.
func stats(key signer.Signer) signer.Stats { return key.(signer.Statistics).Stats() }

// tool runs pkcs11-tool as the user of the token, past the module with the faults, and returns its output.
func tool(t *testing.T, tok *softhsmtest.Token, args ...string) string {
	t.Helper()
	module, err := softhsmtest.FindModule()
	if err != nil {
		t.Fatal(err)
	}
	args = append([]string{"--module", module, "--token-label", tok.Label, "--login", "--pin", tok.PIN}, args...)
	out, err := exec.CommandContext(t.Context(), "pkcs11-tool", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("pkcs11-tool (Debian: apt-get install opensc): %v: %s", err, out)
	}
	return string(out)
}
