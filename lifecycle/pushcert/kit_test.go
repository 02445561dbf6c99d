package pushcert

import (
	"crypto/rsa"
	"crypto/x509"
	"sync"
	"testing"
	"time"

	"hsmsign/internal/testkit"
	"hsmsign/lifecycle/certreq"
	"hsmsign/testpki"
)

var now = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

// kit is a test authority, two customer keys, and a vendor certificate of the first.
type kit struct {
	authority  *testpki.Authority
	key, other *testkit.Signer
	private    *rsa.PrivateKey // of key
	vendor     *x509.Certificate
}

var authority = sync.OnceValues(func() (*testpki.Authority, error) { return testpki.New(now) })

func newKit(t testing.TB) *kit {
	t.Helper()
	a, err := authority()
	if err != nil {
		t.Fatal(err)
	}
	k := &kit{authority: a, private: testkit.Key("customer"), other: testkit.NewSigner(testkit.Key("other"))}
	k.key = testkit.NewSigner(k.private)
	if k.vendor, err = a.IssueVendor(request(t, k.key), testpki.VendorOptions{NotBefore: now}); err != nil {
		t.Fatal(err)
	}
	return k
}

func request(t testing.TB, key *testkit.Signer) *x509.CertificateRequest {
	t.Helper()
	der, err := certreq.Create(t.Context(), key, certreq.Subject{CommonName: "Acme MDM", Email: "mdm@acme.example", Country: "DE"})
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

// issue returns a push certificate for a key.
func (k *kit) issue(t testing.TB, key *testkit.Signer, opts testpki.PushOptions) *Certificate {
	t.Helper()
	if opts.NotBefore.IsZero() {
		opts.NotBefore = now
	}
	cert, err := k.authority.IssuePush(request(t, key), opts)
	if err != nil {
		t.Fatal(err)
	}
	return &Certificate{cert, Topic(cert)}
}
