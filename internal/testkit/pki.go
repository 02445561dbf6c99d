package testkit

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"hsmsign/testpki"
)

// Must returns v and panics if err is not nil. It is for fixtures that cannot fail.
func Must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

var authorities sync.Map // from time.Time to a func() *testpki.Authority

// Authority returns the test PKI that begins at a time. It is made once for each time in a test process.
func Authority(now time.Time) *testpki.Authority {
	once, _ := authorities.LoadOrStore(now, sync.OnceValue(func() *testpki.Authority { return Must(testpki.New(now)) }))
	return once.(func() *testpki.Authority)()
}

// CSR returns a certificate signing request for a key.
func CSR(key crypto.Signer) *x509.CertificateRequest {
	template := &x509.CertificateRequest{Subject: pkix.Name{CommonName: "test"}}
	return Must(x509.ParseCertificateRequest(Must(x509.CreateCertificateRequest(rand.Reader, template, key))))
}

// Apple returns one of Apple's certificates, by its file name, from the folder in HSMSIGN_TEST_APPLE, by default
// ../shared/apple beside the checkout. It skips the test if the folder does not exist: the certificates belong to Apple
// and are not part of this project.
func Apple(t testing.TB, file string) *x509.Certificate {
	t.Helper()
	dir := os.Getenv("HSMSIGN_TEST_APPLE")
	if dir == "" {
		dir = filepath.Join(root(), "..", "shared", "apple")
		if _, err := os.Stat(dir); err != nil {
			t.Skipf("%s does not exist; HSMSIGN_TEST_APPLE names the folder of Apple's certificates", dir)
		}
	}
	data, err := os.ReadFile(filepath.Join(dir, file)) // #nosec G304 G703 -- a helper of tests
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(data)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}
