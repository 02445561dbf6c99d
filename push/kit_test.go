package push

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"hsmsign/certreq"
	"hsmsign/finding"
	"hsmsign/signer"
	"hsmsign/signer/file"
	"hsmsign/testpki"
)

var now = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

// kit is made once: its RSA keys take a while.
type kit struct {
	authority  *testpki.Authority
	key, other signer.Signer
	private    *rsa.PrivateKey // of key
	vendor     *x509.Certificate
}

var sharedKit = sync.OnceValues(func() (*kit, error) {
	dir, err := os.MkdirTemp("", "push")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	k := &kit{}
	if k.authority, err = testpki.New(now); err != nil {
		return nil, err
	}
	for name, key := range map[string]*signer.Signer{"a": &k.key, "b": &k.other} {
		ref, err := signer.ParseRef("file:" + filepath.Join(dir, name) + "?unencrypted=allow")
		if err != nil {
			return nil, err
		}
		if *key, err = file.Backend(file.Options{}).Generate(context.Background(), ref, signer.KeySpec{Bits: 2048}); err != nil {
			return nil, err
		}
	}
	if k.private, err = file.Export(k.key); err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, k.private)
	if err != nil {
		return nil, err
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, err
	}
	k.vendor, err = k.authority.IssueVendor(csr, testpki.VendorOptions{NotBefore: now})
	return k, err
})

func newKit(t testing.TB) *kit {
	t.Helper()
	k, err := sharedKit()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// issue gives a push certificate for a key.
func (k *kit) issue(t testing.TB, key signer.Signer, opts testpki.PushOptions) *Certificate {
	t.Helper()
	der, err := certreq.Create(context.Background(), key, certreq.Subject{CommonName: "Acme MDM", Email: "mdm@acme.example", Country: "DE"})
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	if opts.NotBefore.IsZero() {
		opts.NotBefore = now
	}
	cert, err := k.authority.IssuePush(csr, opts)
	if err != nil {
		t.Fatal(err)
	}
	return &Certificate{cert, Topic(cert)}
}

// openssl runs OpenSSL in a folder, as a second opinion.
func openssl(t testing.TB, dir string, stdin []byte, args ...string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "openssl", args...)
	cmd.Dir = dir
	cmd.Stdin = bytes.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("openssl %v: %v\n%s", args, err, stderr.Bytes())
	}
	return out
}

// findingID is the ID of an error that is a finding.
func findingID(err error) string {
	var f *finding.Finding
	if errors.As(err, &f) {
		return f.ID
	}
	return ""
}
