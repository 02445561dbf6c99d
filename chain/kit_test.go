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
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
	"hsmsign/testpki"
)

var now = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

// world is a test authority with a vendor key and its certificate.
type world struct {
	*testpki.Authority
	key    *rsa.PrivateKey
	vendor *x509.Certificate
}

func newWorld() world {
	w := world{Authority: testkit.Authority(now), key: testkit.Key("vendor")}
	w.vendor = w.issue(w.key, testpki.VendorOptions{Organization: "Example Corp"})
	return w
}

// issue returns a vendor certificate for the key; the default of NotBefore is a minute ago.
func (w world) issue(key crypto.Signer, opts testpki.VendorOptions) *x509.Certificate {
	if opts.NotBefore.IsZero() {
		opts.NotBefore = now.Add(-time.Minute)
	}
	return testkit.Must(w.IssueVendor(testkit.CSR(key), opts))
}

// ca is a certificate authority of a shape that testpki does not issue.
type ca struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func ecKey() *ecdsa.PrivateKey { return testkit.Must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) }

// newCA returns an authority with a new key. Without a parent it is self-signed.
func newCA(cn string, parent *ca, change func(*x509.Certificate)) *ca {
	return certify(cn, ecKey(), parent, change)
}

// certify returns a certificate for an existing key: cross-signed and renewed ones.
func certify(cn string, key crypto.Signer, parent *ca, change func(*x509.Certificate)) *ca {
	tmpl := &x509.Certificate{
		SerialNumber: testkit.Must(rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 64))), Subject: pkix.Name{CommonName: cn},
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
	der := testkit.Must(x509.CreateCertificate(rand.Reader, tmpl, issuer, key.Public(), signer))
	return &ca{testkit.Must(x509.ParseCertificate(der)), key}
}

// leafOf returns a vendor-like certificate that parent issued.
func (w world) leafOf(parent *ca) *x509.Certificate {
	return certify("MDM Vendor: Example Corp", w.key, parent, func(c *x509.Certificate) {
		c.IsCA, c.KeyUsage, c.NotAfter = false, x509.KeyUsageDigitalSignature, now.AddDate(1, 0, 0)
	}).cert
}

func certs(c ...*x509.Certificate) []*x509.Certificate { return c }

// summary returns "severity id" of each finding.
func summary(findings []fault.Finding) []string {
	s := []string{}
	for _, f := range findings {
		s = append(s, string(f.Severity)+" "+f.ID)
	}
	return s
}

// subjects returns the names and serial numbers of a path, for a readable diff.
func subjects(path []*x509.Certificate) []string {
	s := []string{}
	for _, c := range path {
		s = append(s, c.Subject.CommonName+" "+c.SerialNumber.String())
	}
	return s
}

// finding returns the finding with this ID, or an empty one after a failure.
func finding(t testing.TB, findings []fault.Finding, id string) fault.Finding {
	t.Helper()
	for _, f := range findings {
		if f.ID == id {
			return f
		}
	}
	t.Errorf("%q, want %s among them", summary(findings), id)
	return fault.Finding{}
}
