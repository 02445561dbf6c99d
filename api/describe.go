package api

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"math"
	"strings"
	"time"

	"hsmsign/chain"
	"hsmsign/fault"
	"hsmsign/internal/strictder"
	"hsmsign/lifecycle/pushcert"
	"hsmsign/request"
	"hsmsign/signer"
)

// Certificate describes a certificate.
type Certificate struct {
	Kind      string `json:"kind"` // vendor, push, apple, ca, other
	Name      string `json:"name"` // what it is, in words
	Subject   string `json:"subject"`
	Issuer    string `json:"issuer"`
	Serial    string `json:"serial"`
	NotBefore string `json:"not_before"`
	NotAfter  string `json:"not_after"`
	DaysLeft  int    `json:"days_left"` // negative after expiry
	Topic     string `json:"topic,omitempty"`
	Key       string `json:"key"`
	Signature string `json:"signature"`
	KeyID     string `json:"subject_key_id,omitempty"`
	IssuerID  string `json:"authority_key_id,omitempty"`
	KeySHA256 string `json:"key_sha256"` // of the SubjectPublicKeyInfo
	SHA256    string `json:"sha256"`     // of the DER
}

// NewCertificate describes a certificate at the given time.
func NewCertificate(cert *x509.Certificate, now time.Time) Certificate {
	c := Certificate{
		Subject: Name(cert.Subject), Issuer: Name(cert.Issuer), Serial: cert.SerialNumber.Text(16),
		NotBefore: cert.NotBefore.UTC().Format(time.RFC3339), NotAfter: cert.NotAfter.UTC().Format(time.RFC3339),
		DaysLeft: int(math.Floor(cert.NotAfter.Sub(now).Hours() / 24)),
		Key:      keyName(cert.PublicKey, cert.PublicKeyAlgorithm, cert.RawSubjectPublicKeyInfo), Signature: cert.SignatureAlgorithm.String(),
		KeyID: hex.EncodeToString(cert.SubjectKeyId), IssuerID: hex.EncodeToString(cert.AuthorityKeyId),
		KeySHA256: SHA256(cert.RawSubjectPublicKeyInfo), SHA256: SHA256(cert.Raw),
	}
	c.Kind, c.Name = "other", "certificate"
	topic := pushcert.Topic(cert)
	pin, pinned := chain.Lookup(cert)
	switch {
	case pinned:
		c.Kind, c.Name = "apple", "Apple's "+pin.Name+", as pinned"
	case topic != "":
		c.Kind, c.Name, c.Topic = "push", "push certificate", topic
	case cert.IsCA:
		c.Kind, c.Name = "ca", "CA certificate, not one of Apple's"
	case chain.HasVendorExtension(cert) || strings.HasPrefix(cert.Subject.CommonName, "MDM Vendor:"):
		c.Kind, c.Name = "vendor", "MDM vendor certificate"
	}
	return c
}

// NewCertificates describes certificates in their order.
func NewCertificates(certs []*x509.Certificate, now time.Time) []Certificate {
	all := []Certificate{}
	for _, cert := range certs {
		all = append(all, NewCertificate(cert, now))
	}
	return all
}

// shortNames are those of RFC 4519 and PKCS #9 for the attributes that Apple and its customers use.
var shortNames = map[string]string{
	"2.5.4.3": "CN", "2.5.4.6": "C", "2.5.4.7": "L", "2.5.4.8": "ST", "2.5.4.10": "O", "2.5.4.11": "OU",
	"0.9.2342.19200300.100.1.1": "UID", "1.2.840.113549.1.9.1": "emailAddress",
}

// Name returns a distinguished name in the order of its encoding, with UID and emailAddress as text, which the standard
// library prints as hex. It is for people; compare names by their DER.
func Name(name pkix.Name) string {
	var parts []string
	for _, attribute := range name.Names {
		short, ok := shortNames[attribute.Type.String()]
		if !ok {
			short = attribute.Type.String()
		}
		parts = append(parts, fmt.Sprintf("%s=%v", short, attribute.Value))
	}
	return strings.Join(parts, ", ")
}

func keyName(pub any, algorithm x509.PublicKeyAlgorithm, spki []byte) string {
	if key, ok := pub.(*rsa.PublicKey); ok {
		return fmt.Sprintf("RSA %d bits, exponent %d", key.N.BitLen(), key.E)
	}
	if algorithm == x509.UnknownPublicKeyAlgorithm {
		return strictder.KeyType(spki)
	}
	return algorithm.String()
}

// SHA256 returns the SHA-256 of data in hex.
func SHA256(data []byte) string { return fmt.Sprintf("%x", sha256.Sum256(data)) }

// CSR describes a certificate signing request.
type CSR struct {
	Subject   string `json:"subject"`
	Key       string `json:"key"`
	Signature string `json:"signature"`
	KeySHA256 string `json:"key_sha256"`
	SHA256    string `json:"sha256"`
}

// NewCSR describes a certificate signing request.
func NewCSR(csr *x509.CertificateRequest) *CSR {
	return &CSR{
		Subject: Name(csr.Subject), Key: keyName(csr.PublicKey, csr.PublicKeyAlgorithm, csr.RawSubjectPublicKeyInfo),
		Signature: csr.SignatureAlgorithm.String(), KeySHA256: SHA256(csr.RawSubjectPublicKeyInfo), SHA256: SHA256(csr.Raw),
	}
}

// Key describes a private key, or what a token shows of its key pair.
type Key struct {
	Ref         string            `json:"ref"`
	Type        string            `json:"type,omitempty"` // "public", "cert"; absent for a private key
	Store       string            `json:"store"`
	Label       string            `json:"label,omitempty"`
	ID          string            `json:"id,omitempty"`
	Algorithm   string            `json:"algorithm,omitempty"`
	Bits        int               `json:"bits,omitempty"`
	KeySHA256   string            `json:"key_sha256,omitempty"` // of the SubjectPublicKeyInfo
	Properties  []signer.Property `json:"properties"`
	Certificate *Certificate      `json:"certificate,omitempty"` // stored with the key
}

// Token describes one slot of a PKCS#11 module and the token in it.
type Token struct {
	Ref          string   `json:"ref,omitempty"` // names the token; absent if it is not initialized
	Slot         uint     `json:"slot"`
	Label        string   `json:"label,omitempty"`
	Serial       string   `json:"serial,omitempty"`
	Manufacturer string   `json:"manufacturer,omitempty"`
	Model        string   `json:"model,omitempty"`
	Flags        []string `json:"flags"`
	Error        string   `json:"error,omitempty"` // why the module does not describe the token
}

// NewKey describes a private key at the given time.
func NewKey(k signer.KeyInfo, now time.Time) Key {
	key := Key{
		Ref: k.Ref, Type: k.Type, Store: k.Store, Label: k.Label, ID: k.ID, Algorithm: k.Algorithm, Bits: k.Bits, Properties: append([]signer.Property{}, k.Properties...),
	}
	if k.Public != nil {
		key.KeySHA256 = chain.SPKISHA256(k.Public)
	}
	if k.Cert != nil {
		cert := NewCertificate(k.Cert, now)
		key.Certificate = &cert
	}
	return key
}

// NewVerifyResult describes the verdict on a request at the given time.
func NewVerifyResult(file string, r *request.Report, now time.Time) VerifyResult {
	result := VerifyResult{
		File: file, OK: r.OK(), Digest: DigestName(r.Digest), Chain: NewCertificates(r.Chain, now), Findings: append([]fault.Finding{}, r.Findings...),
	}
	if r.CSR != nil {
		result.CSR = NewCSR(r.CSR)
	}
	if result.OK {
		result.Root, result.UseBefore = RootOf(r.Chain), Time(chain.FirstExpiry(r.Chain).NotAfter)
	}
	return result
}

// RootOf returns whose root a complete chain contains.
func RootOf(certs []*x509.Certificate) string {
	for _, cert := range certs {
		if pin, ok := chain.Lookup(cert); ok && pin.Root {
			return RootApple
		}
	}
	return RootGiven
}

// DigestName returns the name of a hash as --digest accepts it: "sha256"; "" for no hash.
func DigestName(h crypto.Hash) string {
	if h == 0 {
		return ""
	}
	return strings.ToLower(strings.ReplaceAll(h.String(), "-", ""))
}
