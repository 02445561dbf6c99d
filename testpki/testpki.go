// Package testpki is a certificate authority for tests with the structure of Apple's: a root, an intermediate like WWDR that
// issues vendor certificates ("MDM Vendor: ..."), and an intermediate that issues push certificates. With it, Push
// Certificate Requests can be signed and verified end to end without an Apple developer account.
//
// Save writes an authority to a folder, and Load reads it, so that several runs use the same root.
//
// The names of every certificate say that it is a test. Programs trust the root only if it is given to them, and Apple's
// portal never does. The private keys are in unencrypted files because they protect nothing.
//
// An Authority does not change after New or Load, and is safe for concurrent use.
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

// Authority is a test root with its two intermediates, and their keys. WWDR issues vendor certificates, Integration issues
// push certificates.
type Authority struct {
	Root, WWDR, Integration          *x509.Certificate
	RootKey, WWDRKey, IntegrationKey *rsa.PrivateKey
}

// VendorOptions are the properties of a vendor certificate. The zero value means one like Apple's.
type VendorOptions struct {
	Organization string    // empty: the CSR's organization, or "hsmsign TEST Vendor"
	NotBefore    time.Time // zero: now
	NotAfter     time.Time // zero: one year after NotBefore

	// For tests that need a certificate with one defect.
	UID           string        // subject UID; empty: 10 characters derived from the organization, like Apple's team id
	OmitExtension bool          // omit Apple's extension 1.2.840.113635.100.4.12
	Critical      bool          // mark that extension critical
	IsCA          bool          // issue a CA certificate
	KeyUsage      x509.KeyUsage // zero: digitalSignature
}

// New returns an authority whose certificates are valid from an hour before now: the root for 25 years, the intermediates
// for 10, with RSA-2048 keys and SHA-256.
func New(now time.Time) (*Authority, error) {
	from := now.Add(-time.Hour) // clocks differ
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

// IssueVendor issues a vendor certificate for the CSR's public key of any type. Like Apple, it copies at most the
// organization from the CSR's subject. It fails if the CSR's own signature does not verify.
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

// issue adds serial number and key identifier and signs. The subject key identifier is the SHA-1 of the public key, as in
// Apple's certificates (RFC 5280 section 4.2.1.2, method 1).
func issue(tmpl, issuer *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("make a serial number: %w", err)
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
