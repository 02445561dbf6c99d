// Package testkit is what tests of several packages share: fixed keys, the golden files, a key in memory, and programs
// that give a second opinion. A helper fails the test that calls it. Everything here is safe for concurrent use.
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

// File reads a file of the folder testdata at the top: "golden/chain.pem".
func File(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root(), "testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// GoldenKey returns the vendor key of the golden files, RSA-2048. All stores sign with it in tests.
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

// Key returns an RSA-2048 key. It is generated once for each name in a test process.
func Key(name string) *rsa.PrivateKey { return KeyOf(2048, name) }

// KeyOf is Key for another size of modulus.
func KeyOf(bits int, name string) *rsa.PrivateKey {
	once, _ := keys.LoadOrStore(strconv.Itoa(bits)+name, sync.OnceValue(func() *rsa.PrivateKey {
		key, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			panic(err)
		}
		return key
	}))
	return once.(func() *rsa.PrivateKey)()
}

// Signer is a key in memory as a signer.Signer. It counts its signatures, and fails as it is told to.
type Signer struct {
	crypto.Signer
	Calls atomic.Int64
	// Fail returns the error of a signature; nil: none.
	Fail func() error
	// Faulty inverts a bit of each signature.
	Faulty bool
	// Other is the public key that the Signer claims to have; nil: its own.
	Other crypto.PublicKey
}

// NewSigner returns a Signer over any key.
func NewSigner(key crypto.Signer) *Signer { return &Signer{Signer: key} }

// Public returns the public key.
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

// Close does nothing.
func (s *Signer) Close() error { return nil }

// OpenSSL runs OpenSSL in a folder and returns its standard output.
func OpenSSL(t testing.TB, dir string, stdin []byte, args ...string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "openssl", args...)
	cmd.Dir, cmd.Stdin = dir, bytes.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("openssl %v: %v\n%s", args, err, stderr.Bytes())
	}
	return out
}

// Apple reads one of Apple's certificate files (DER) from the folder that HSMSIGN_TEST_APPLE names, by default
// ../shared/apple beside the checkout. The test is skipped if the folder does not exist: the certificates are Apple's,
// and not part of this project.
func Apple(t testing.TB, file string) *x509.Certificate {
	t.Helper()
	dir := os.Getenv("HSMSIGN_TEST_APPLE")
	if dir == "" {
		dir = filepath.Join(root(), "..", "shared", "apple")
		if _, err := os.Stat(dir); err != nil {
			t.Skipf("%s is not there; HSMSIGN_TEST_APPLE names the folder with Apple's certificates", dir)
		}
	}
	data, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(data)
	if err != nil {
		t.Fatal(err)
	}
	return cert
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
