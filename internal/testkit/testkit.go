// Package testkit contains the helpers that tests of several packages share: keys, the golden files, a test PKI, a signer
// in memory, OpenSSL, and Apple's certificates. A helper fails the test that calls it. Everything here is safe for
// concurrent use.
package testkit

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"hsmsign/fault"
)

// root returns the folder of go.mod.
func root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..")
}

// File returns the content of a file of the folder testdata next to go.mod: "golden/chain.pem".
func File(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root(), "testdata", name)) // #nosec G204 G304 -- a helper of tests
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// Until waits until a condition holds, and fails the test if it does not within 20 seconds.
func Until(t testing.TB, what string, holds func() bool) {
	t.Helper()
	often := time.NewTicker(time.Millisecond)
	defer often.Stop()
	for end := time.Now().Add(20 * time.Second); !holds(); <-often.C {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// GoldenKey returns the vendor key of the golden files, RSA-2048.
func GoldenKey(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	block, _ := pem.Decode(File(t, "golden/vendor.key"))
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return key.(*rsa.PrivateKey)
}

var keys sync.Map // from bits and name to a func() *rsa.PrivateKey

// Key returns the RSA-2048 key of a name. It is generated once in a test process.
func Key(name string) *rsa.PrivateKey { return KeyOf(2048, name) }

// KeyOf is Key for another size of modulus.
func KeyOf(bits int, name string) *rsa.PrivateKey {
	once, _ := keys.LoadOrStore(strconv.Itoa(bits)+name, sync.OnceValue(func() *rsa.PrivateKey {
		return Must(rsa.GenerateKey(rand.Reader, bits))
	}))
	return once.(func() *rsa.PrivateKey)()
}

// Signer is a signer.Signer with a key in memory. It counts its signatures and can fail.
type Signer struct {
	crypto.Signer
	Calls, Closed atomic.Int64
	// Fail returns the error of a signature; a nil Fail never fails.
	Fail func() error
	// Faulty inverts a bit of each signature.
	Faulty bool
	// Other is the result of Public; nil: the key's own.
	Other crypto.PublicKey
}

// NewSigner returns a Signer with any key.
func NewSigner(key crypto.Signer) *Signer { return &Signer{Signer: key} }

// Public returns the public key, or Other.
func (s *Signer) Public() crypto.PublicKey {
	if s.Other != nil {
		return s.Other
	}
	return s.Signer.Public()
}

// Sign is SignContext without a deadline.
func (s *Signer) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return s.SignContext(context.Background(), digest, opts)
}

// SignContext signs a digest.
func (s *Signer) SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.Calls.Add(1)
	if s.Fail != nil {
		if err := s.Fail(); err != nil {
			return nil, err
		}
	}
	sig, err := s.Signer.Sign(rand.Reader, digest, opts)
	if s.Faulty && err == nil {
		sig[0] ^= 1
	}
	return sig, err
}

// Close counts.
func (s *Signer) Close() error {
	s.Closed.Add(1)
	return nil
}

// OpenSSL runs OpenSSL in a folder and returns its standard output.
func OpenSSL(t testing.TB, dir string, stdin []byte, args ...string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "openssl", args...) // #nosec G204 G304 -- a helper of tests
	cmd.Dir, cmd.Stdin = dir, bytes.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("openssl %v: %v\n%s", args, err, stderr.Bytes())
	}
	return out
}

// Eventually waits for a condition that must become true, for 30 seconds at most.
func Eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 30 s", what)
		}
	}
}

// FindingID returns the ID of the finding that err wraps, or "".
func FindingID(err error) string {
	if f, ok := errors.AsType[*fault.Finding](err); ok {
		return f.ID
	}
	return ""
}

// Seeds fails the test unless a fuzz target of the package under test has at least n seeds.
func Seeds(t testing.TB, target string, n int) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join("testdata", "fuzz", target))
	if err != nil || len(entries) < n {
		t.Errorf("%s: %d seeds, %v; want %d", target, len(entries), err, n)
	}
}

// OK stops the test if err is not nil.
func OK(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Value returns a function that returns the value, or stops the test if err is not nil: Value(os.ReadFile(name))(t).
func Value[T any](value T, err error) func(t testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		OK(t, err)
		return value
	}
}
