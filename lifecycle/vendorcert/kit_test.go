package vendorcert

import (
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"sync"
	"testing"
	"time"

	"hsmsign/internal/testkit"
	"hsmsign/lifecycle/certreq"
	"hsmsign/testpki"
)

// world is what the tests start from: an authority, and two keys.
type world struct {
	*testpki.Authority
	key, other *rsa.PrivateKey
}

var authority = sync.OnceValues(func() (*testpki.Authority, error) { return testpki.New(time.Now().AddDate(-2, 0, 0)) })

func newWorld(t testing.TB) world {
	t.Helper()
	a, err := authority()
	if err != nil {
		t.Fatal(err)
	}
	return world{a, testkit.Key("vendor"), testkit.Key("other")}
}

var subject = certreq.Subject{Email: "mdm@example.com", CommonName: "Example MDM", Organization: "Exämple", Country: "US"}

func csrOf(t testing.TB, key crypto.Signer) *x509.CertificateRequest {
	t.Helper()
	der, err := CreateCSR(t.Context(), testkit.NewSigner(key), subject)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

// issue gives a vendor certificate for the key.
func (w world) issue(t testing.TB, key crypto.Signer, opts testpki.VendorOptions) *x509.Certificate {
	t.Helper()
	cert, err := w.IssueVendor(csrOf(t, key), opts)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}
