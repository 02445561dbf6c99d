package chain

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"sync"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/testpki"
)

var now = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

// world is what every test starts from: an authority, and a vendor's key and certificate.
type world struct {
	*testpki.Authority
	key    *rsa.PrivateKey
	vendor *x509.Certificate
}

// madeOnce: RSA keys take a while.
var madeOnce = sync.OnceValues(func() (world, error) {
	a, err := testpki.New(now)
	if err != nil {
		return world{}, err
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return world{}, err
	}
	w := world{Authority: a, key: key}
	csr, err := request(key)
	if err != nil {
		return world{}, err
	}
	w.vendor, err = a.IssueVendor(csr, testpki.VendorOptions{Organization: "Example Corp", NotBefore: now.Add(-time.Minute)})
	return w, err
})

func newWorld(t testing.TB) world {
	t.Helper()
	w, err := madeOnce()
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func request(key crypto.Signer) (*x509.CertificateRequest, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "vendor"}}, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificateRequest(der)
}

// issue is a vendor certificate for the key; NotBefore is a minute ago unless the options say otherwise.
func (w world) issue(t testing.TB, key crypto.Signer, opts testpki.VendorOptions) *x509.Certificate {
	t.Helper()
	csr, err := request(key)
	if err != nil {
		t.Fatal(err)
	}
	if opts.NotBefore.IsZero() {
		opts.NotBefore = now.Add(-time.Minute)
	}
	c, err := w.IssueVendor(csr, opts)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// ca is a certificate authority of a shape that testpki does not make. parent nil: self-signed.
type ca struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func newCA(t testing.TB, cn string, parent *ca, change func(*x509.Certificate)) *ca {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return certify(t, cn, key, parent, change)
}

// certify makes a certificate for a key that is there already: cross-signed and renewed ones.
func certify(t testing.TB, cn string, key crypto.Signer, parent *ca, change func(*x509.Certificate)) *ca {
	t.Helper()
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 64))
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: cn},
		NotBefore: now.AddDate(-1, 0, 0), NotAfter: now.AddDate(5, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	if change != nil {
		change(tmpl)
	}
	issuer, signer := tmpl, key
	if parent != nil {
		issuer, signer = parent.cert, parent.key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, issuer, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &ca{c, key}
}

// leafOf is a plain vendor-like certificate under a ca.
func (w world) leafOf(t testing.TB, parent *ca) *x509.Certificate {
	t.Helper()
	return certify(t, "MDM Vendor: Example Corp", w.key, parent, func(c *x509.Certificate) {
		c.IsCA, c.KeyUsage, c.NotAfter = false, x509.KeyUsageDigitalSignature, now.AddDate(1, 0, 0)
	}).cert
}

func certs(c ...*x509.Certificate) []*x509.Certificate { return c }

// summary is "severity id" of each finding.
func summary(findings []fault.Finding) []string {
	s := []string{}
	for _, f := range findings {
		s = append(s, string(f.Severity)+" "+f.ID)
	}
	return s
}

// names of a path, for a readable diff.
func subjects(path []*x509.Certificate) []string {
	s := []string{}
	for _, c := range path {
		s = append(s, c.Subject.CommonName+" "+c.SerialNumber.String())
	}
	return s
}
