package testpki

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"time"
)

// LeafOptions are the properties of a certificate that is not one of Apple's.
type LeafOptions struct {
	Name      string    // common name; empty: one that says what it is for
	NotBefore time.Time // zero: now
	NotAfter  time.Time // zero: one year after NotBefore
}

// IssueProfileSigner issues a certificate that signs configuration profiles, for the CSR's public key. The test root is its
// issuer: Apple issues none for this purpose, so organizations use a certificate of any CA that their devices trust.
func (a *Authority) IssueProfileSigner(csr *x509.CertificateRequest, opts LeafOptions) (*x509.Certificate, error) {
	return a.issueLeaf(csr, opts, "hsmsign TEST Profile Signer", &x509.Certificate{KeyUsage: x509.KeyUsageDigitalSignature})
}

// IssueDevice issues the identity certificate of a device, as the CA of an MDM server does. Profiles are encrypted to it.
func (a *Authority) IssueDevice(csr *x509.CertificateRequest, opts LeafOptions) (*x509.Certificate, error) {
	return a.issueLeaf(csr, opts, "hsmsign TEST Device", &x509.Certificate{
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
}

func (a *Authority) issueLeaf(csr *x509.CertificateRequest, opts LeafOptions, name string, template *x509.Certificate) (*x509.Certificate, error) {
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("check the CSR's signature: %w", err)
	}
	if opts.Name != "" {
		name = opts.Name
	}
	if opts.NotBefore.IsZero() {
		opts.NotBefore = time.Now()
	}
	if opts.NotAfter.IsZero() {
		opts.NotAfter = opts.NotBefore.AddDate(1, 0, 0)
	}
	template.Subject = pkix.Name{CommonName: name, Organization: []string{organization}}
	template.NotBefore, template.NotAfter, template.BasicConstraintsValid = opts.NotBefore, opts.NotAfter, true
	return issue(template, a.Root, csr.PublicKey, a.RootKey)
}
