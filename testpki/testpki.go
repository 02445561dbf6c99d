// Package testpki is an Apple-shaped certificate authority for tests: a root, a WWDR-like intermediate under
// it, and vendor certificates ("MDM Vendor: ...") as Apple issues them; and beside that the authority that issues
// push certificates. With it a machine without an Apple developer account can sign and verify Push Certificate
// Requests from end to end.
//
//	authority, err := testpki.New(time.Now())
//	vendor, err := authority.IssueVendor(csr, testpki.VendorOptions{Organization: "Example Corp"})
//	// chain: vendor, authority.WWDR, authority.Root
//	cert, err := authority.IssuePush(customerCSR, testpki.PushOptions{})
//
// Save keeps an authority in a folder and Load reads it back, so that a later run issues from the same root.
//
// Every certificate says in its names that it is a test. Nobody trusts the root unless it is told to, and
// Apple's portal never does. The private keys lie in plain files: they guard nothing.
//
// An Authority is not changed after New or Load, and is safe for concurrent use.
package testpki

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" // #nosec G505 -- a key identifier (RFC 5280 section 4.2.1.2), not a signature
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base32"
	"errors"
	"fmt"
	"math/big"
	"time"
)

const (
	organization = "hsmsign TEST PKI - not Apple"
	rootName     = "hsmsign TEST Root CA"
	wwdrName     = "hsmsign TEST Worldwide Developer Relations CA"
	pushName     = "hsmsign TEST Application Integration CA"
	keyBits      = 2048
)

// Authority is a test root with two intermediates under it, and their keys. WWDR issues vendor certificates, Integration
// push certificates.
type Authority struct {
	Root, WWDR, Integration          *x509.Certificate
	RootKey, WWDRKey, IntegrationKey *rsa.PrivateKey
}

// VendorOptions shape a vendor certificate. The zero value gives one like Apple's.
type VendorOptions struct {
	Organization string    // empty: the CSR's organization, or "hsmsign TEST Vendor"
	NotBefore    time.Time // zero: now
	NotAfter     time.Time // zero: one year after NotBefore

	// Knobs for tests that need a certificate which is wrong in one way.
	UID           string        // subject UID; empty: 10 characters derived from the organization, as Apple's team id
	OmitExtension bool          // leave out Apple's extension 1.2.840.113635.100.4.12
	Critical      bool          // mark that extension critical
	IsCA          bool          // issue a CA certificate
	KeyUsage      x509.KeyUsage // zero: digitalSignature
}

// New makes an authority whose certificates begin an hour before now: RSA-2048 keys and SHA-256, the root for
// 25 years, the intermediates for 10.
func New(now time.Time) (*Authority, error) {
	from := now.Add(-time.Hour) // clocks differ a little
	rootKey, err := rsa.GenerateKey(rand.Reader, keyBits)
	if err != nil {
		return nil, fmt.Errorf("generate the test root's key: %w", err)
	}
	wwdrKey, err := rsa.GenerateKey(rand.Reader, keyBits)
	if err != nil {
		return nil, fmt.Errorf("generate the test WWDR's key: %w", err)
	}
	rootTmpl := authorityTemplate(pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{
		{Type: oidCountry, Value: "US"}, {Type: oidOrganization, Value: organization}, {Type: oidCommonName, Value: rootName},
	}}, from, 25)
	root, err := issue(rootTmpl, rootTmpl, rootKey.Public(), rootKey)
	if err != nil {
		return nil, err
	}
	wwdrTmpl := authorityTemplate(pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{
		{Type: oidCommonName, Value: wwdrName}, {Type: oidUnit, Value: "G3"},
		{Type: oidOrganization, Value: organization}, {Type: oidCountry, Value: "US"},
	}}, from, 10)
	wwdrTmpl.MaxPathLenZero = true
	wwdrTmpl.ExtraExtensions = []pkix.Extension{{Id: oidWWDRMarker, Value: asn1.NullBytes}}
	wwdr, err := issue(wwdrTmpl, root, wwdrKey.Public(), rootKey)
	if err != nil {
		return nil, err
	}
	a := &Authority{Root: root, WWDR: wwdr, RootKey: rootKey, WWDRKey: wwdrKey}
	return a, a.addIntegration(from)
}

// IssueVendor issues a vendor certificate for the CSR's public key, which may be of any type. Of the CSR's
// subject it takes the organization at most, as Apple does. It fails when the CSR's own signature does not
// verify.
func (a *Authority) IssueVendor(csr *x509.CertificateRequest, opts VendorOptions) (*x509.Certificate, error) {
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("check the vendor CSR's signature: %w", err)
	}
	org := opts.Organization
	if org == "" && len(csr.Subject.Organization) > 0 {
		org = csr.Subject.Organization[0]
	}
	if org == "" {
		org = "hsmsign TEST Vendor"
	}
	if opts.NotBefore.IsZero() {
		opts.NotBefore = time.Now()
	}
	if opts.NotAfter.IsZero() {
		opts.NotAfter = opts.NotBefore.AddDate(1, 0, 0)
	}
	if opts.UID == "" {
		sum := sha256.Sum256([]byte(org))
		opts.UID = base32.StdEncoding.EncodeToString(sum[:])[:10]
	}
	if opts.KeyUsage == 0 {
		opts.KeyUsage = x509.KeyUsageDigitalSignature
	}
	tmpl := &x509.Certificate{
		Subject: pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{
			{Type: oidUserID, Value: opts.UID}, {Type: oidCommonName, Value: "MDM Vendor: " + org},
			{Type: oidUnit, Value: organization}, {Type: oidOrganization, Value: org}, {Type: oidCountry, Value: "US"},
		}},
		NotBefore: opts.NotBefore, NotAfter: opts.NotAfter,
		KeyUsage: opts.KeyUsage, BasicConstraintsValid: true, IsCA: opts.IsCA,
	}
	if !opts.OmitExtension {
		tmpl.ExtraExtensions = []pkix.Extension{{Id: oidVendor, Critical: opts.Critical, Value: asn1.NullBytes}}
	}
	return issue(tmpl, a.WWDR, csr.PublicKey, a.WWDRKey)
}

// Object identifiers of subject attributes (RFC 4519) and of Apple's extensions.
var (
	oidUserID       = asn1.ObjectIdentifier{0, 9, 2342, 19200300, 100, 1, 1}
	oidCommonName   = asn1.ObjectIdentifier{2, 5, 4, 3}
	oidCountry      = asn1.ObjectIdentifier{2, 5, 4, 6}
	oidOrganization = asn1.ObjectIdentifier{2, 5, 4, 10}
	oidUnit         = asn1.ObjectIdentifier{2, 5, 4, 11}
	oidWWDRMarker   = asn1.ObjectIdentifier{1, 2, 840, 113635, 100, 6, 2, 1} // "this is a WWDR intermediate"
	oidVendor       = asn1.ObjectIdentifier{1, 2, 840, 113635, 100, 4, 12}   // "may sign push certificate requests"
)

func authorityTemplate(subject pkix.Name, from time.Time, years int) *x509.Certificate {
	return &x509.Certificate{
		Subject: subject, NotBefore: from, NotAfter: from.AddDate(years, 0, 0),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true,
	}
}

// issue adds what every certificate has (serial number, key identifier), and signs. The subject key identifier
// is the SHA-1 of the public key, as in Apple's certificates (RFC 5280 section 4.2.1.2, method 1).
func issue(tmpl, issuer *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("draw a serial number: %w", err)
	}
	tmpl.SerialNumber = serial.Add(serial, big.NewInt(1)) // never zero (RFC 5280 section 4.1.2.2)
	if tmpl.SubjectKeyId, err = keyID(pub); err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, issuer, pub, key)
	if err != nil {
		return nil, fmt.Errorf("issue a test certificate: %w", err)
	}
	return x509.ParseCertificate(der)
}

func keyID(pub crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, fmt.Errorf("encode the public key: %w", err)
	}
	var spki struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if rest, err := asn1.Unmarshal(der, &spki); err != nil || len(rest) > 0 {
		return nil, errors.New("encode the public key: malformed SubjectPublicKeyInfo")
	}
	sum := sha1.Sum(spki.Key.Bytes) // #nosec G401 -- a key identifier, see the import
	return sum[:], nil
}
