package testpki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"time"
)

// Identity is one certificate of device management with its key.
type Identity struct {
	Kind        string // as in docs/certificates.md: "device-scep"
	Certificate *x509.Certificate
	Key         crypto.Signer       // *rsa.PrivateKey or *ecdsa.PrivateKey
	Chain       []*x509.Certificate // its issuers up to the root
}

// oidRequestAgent is the extended key usage of a registration authority (Microsoft's "certificate request agent").
var oidRequestAgent = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 20, 2, 1}

// identities makes the fixtures of Identities.
type identities struct {
	a    *Authority
	now  time.Time
	list []Identity
	err  error // the first one; nothing is made after it
}

// Identities returns a new certificate of every kind that device management knows, valid from an hour before now: those that
// Apple issues, under the authority, and those of an organization, each under a CA of its own. None is used twice.
func (a *Authority) Identities(now time.Time) ([]Identity, error) {
	s := &identities{a: a, now: now}
	s.apple("vendor", func(csr *x509.CertificateRequest) (*x509.Certificate, error) {
		return a.IssueVendor(csr, VendorOptions{NotBefore: s.from()})
	}, a.WWDR)
	s.list = append(s.list, Identity{"apple-ca", a.WWDR, a.WWDRKey, []*x509.Certificate{a.Root}})
	for _, kind := range []string{"push", "push-profile-manager"} {
		s.apple(kind, func(csr *x509.CertificateRequest) (*x509.Certificate, error) {
			return a.IssuePush(csr, PushOptions{NotBefore: s.from()})
		}, a.Integration)
	}
	signs := x509.KeyUsageDigitalSignature
	both := signs | x509.KeyUsageKeyEncipherment
	client := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	ca := s.ca("device-ca", "hsmsign TEST Device CA")
	s.leaf("device", "hsmsign TEST Device", ca, newEC, &x509.Certificate{KeyUsage: signs, ExtKeyUsage: client})
	s.leaf("device-pkcs12", "hsmsign TEST Device (PKCS#12)", nil, newRSA, &x509.Certificate{KeyUsage: both, ExtKeyUsage: client})
	s.leaf("device-scep", "hsmsign TEST Device (SCEP)", ca, newRSA, &x509.Certificate{KeyUsage: both, ExtKeyUsage: client})
	s.leaf("device-acme", "hsmsign TEST Device (ACME)", ca, newEC, &x509.Certificate{KeyUsage: signs, ExtKeyUsage: client})
	s.leaf("scep-ra", "hsmsign TEST SCEP RA", ca, newRSA, &x509.Certificate{KeyUsage: both, UnknownExtKeyUsage: []asn1.ObjectIdentifier{oidRequestAgent}})
	s.leaf("profile-signing", "hsmsign TEST Profile Signer", nil, newRSA, &x509.Certificate{KeyUsage: signs, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}})
	s.leaf("profile-encryption", "hsmsign TEST Device (encryption)", ca, newRSA, &x509.Certificate{KeyUsage: x509.KeyUsageKeyEncipherment})
	s.ca("trusted", "hsmsign TEST Organization Root")
	server := s.ca("server-ca", "hsmsign TEST Server CA")
	s.leaf("server-tls", "hsmsign TEST MDM Server", server, newEC, &x509.Certificate{
		KeyUsage: signs, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, DNSNames: []string{"mdm.example"},
	})
	s.leaf("abm-token", "hsmsign TEST Server Token", nil, newRSA, &x509.Certificate{KeyUsage: x509.KeyUsageKeyEncipherment})
	s.ca("dep-anchor", "hsmsign TEST DEP Anchor")
	return s.list, s.err
}

func (s *identities) from() time.Time { return s.now.Add(-time.Hour) } // clocks differ

func newRSA() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, keyBits) }

func newEC() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// apple adds a certificate that the authority issues for a CSR; issuer is one of its intermediates.
func (s *identities) apple(kind string, issue func(csr *x509.CertificateRequest) (*x509.Certificate, error), issuer *x509.Certificate) {
	if s.err != nil {
		return
	}
	key, err := newRSA()
	var der []byte
	if err == nil {
		der, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "hsmsign TEST " + kind}}, key)
	}
	var csr *x509.CertificateRequest
	if err == nil {
		csr, err = x509.ParseCertificateRequest(der)
	}
	var cert *x509.Certificate
	if err == nil {
		cert, err = issue(csr)
	}
	s.add(Identity{kind, cert, key, []*x509.Certificate{issuer, s.a.Root}}, err)
}

// ca adds a CA with a certificate of its own for ten years.
func (s *identities) ca(kind, name string) *Identity {
	template := authorityTemplate(pkix.Name{CommonName: name, Organization: []string{organization}}, s.from(), 10)
	return s.issue(kind, nil, newEC, template)
}

// leaf adds a certificate for a year that the issuer issues; nil: it is self-signed.
func (s *identities) leaf(kind, name string, issuer *Identity, newKey func() (crypto.Signer, error), template *x509.Certificate) {
	template.Subject = pkix.Name{CommonName: name, Organization: []string{organization}}
	template.NotBefore, template.NotAfter, template.BasicConstraintsValid = s.from(), s.from().AddDate(1, 0, 0), true
	s.issue(kind, issuer, newKey, template)
}

func (s *identities) issue(kind string, issuer *Identity, newKey func() (crypto.Signer, error), template *x509.Certificate) *Identity {
	if s.err != nil {
		return nil
	}
	key, err := newKey()
	made := Identity{Kind: kind, Key: key}
	if err == nil {
		parent, parentKey := template, key
		if issuer != nil {
			parent, parentKey = issuer.Certificate, issuer.Key
			made.Chain = append([]*x509.Certificate{issuer.Certificate}, issuer.Chain...)
		}
		made.Certificate, err = issue(template, parent, key.Public(), parentKey)
	}
	s.add(made, err)
	return &made
}

func (s *identities) add(made Identity, err error) {
	if s.err == nil && err != nil {
		s.err = fmt.Errorf("make the test identity %q: %w", made.Kind, err)
	}
	s.list = append(s.list, made)
}
