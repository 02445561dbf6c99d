package main

import (
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"math"
	"strings"
	"time"

	"hsmsign/chain"
	"hsmsign/lifecycle/pushcert"
	"hsmsign/request"
)

// certInfo is what is shown of a certificate, as JSON too.
type certInfo struct {
	Kind      string `json:"kind"` // vendor, push, apple, ca, other
	Name      string `json:"name"` // what it is, in words
	Subject   string `json:"subject"`
	Issuer    string `json:"issuer"`
	Serial    string `json:"serial"` // hex
	NotBefore string `json:"not_before"`
	NotAfter  string `json:"not_after"`
	DaysLeft  int    `json:"days_left"` // negative once expired
	Topic     string `json:"topic,omitempty"`
	Key       string `json:"key"`
	Signature string `json:"signature"`
	KeyID     string `json:"subject_key_id,omitempty"`
	IssuerID  string `json:"authority_key_id,omitempty"`
	KeySHA256 string `json:"key_sha256"` // of the SubjectPublicKeyInfo
	SHA256    string `json:"sha256"`     // of the DER
}

var oidVendorMarker = asn1.ObjectIdentifier{1, 2, 840, 113635, 100, 4, 12}

func describeCert(cert *x509.Certificate, now time.Time) certInfo {
	info := certInfo{
		Subject: describeName(cert.Subject), Issuer: describeName(cert.Issuer), Serial: cert.SerialNumber.Text(16),
		NotBefore: cert.NotBefore.UTC().Format(time.RFC3339), NotAfter: cert.NotAfter.UTC().Format(time.RFC3339),
		DaysLeft: int(math.Floor(cert.NotAfter.Sub(now).Hours() / 24)),
		Key:      describeKey(cert.PublicKey, cert.PublicKeyAlgorithm), Signature: cert.SignatureAlgorithm.String(),
		KeyID: hex.EncodeToString(cert.SubjectKeyId), IssuerID: hex.EncodeToString(cert.AuthorityKeyId),
		KeySHA256: hexSHA256(cert.RawSubjectPublicKeyInfo), SHA256: hexSHA256(cert.Raw),
	}
	info.Kind, info.Name = "other", "certificate"
	topic := pushcert.Topic(cert)
	pin, pinned := chain.Lookup(cert)
	switch {
	case pinned:
		info.Kind, info.Name = "apple", "Apple's "+pin.Name+", as pinned"
	case topic != "":
		info.Kind, info.Name, info.Topic = "push", "push certificate", topic
	case cert.IsCA:
		info.Kind, info.Name = "ca", "CA certificate, not one of Apple's"
	case isVendor(cert):
		info.Kind, info.Name = "vendor", "MDM vendor certificate"
	}
	return info
}

// attributeNames are the short names of RFC 4519, and PKCS #9's emailAddress: those that Apple and its customers use.
var attributeNames = map[string]string{
	"2.5.4.3": "CN", "2.5.4.6": "C", "2.5.4.7": "L", "2.5.4.8": "ST", "2.5.4.10": "O", "2.5.4.11": "OU",
	"0.9.2342.19200300.100.1.1": "UID", "1.2.840.113549.1.9.1": "emailAddress",
}

// describeName shows a name in the order it is written in. The library's own form prints UID and emailAddress as
// hex. It is for people: to compare names, compare their DER.
func describeName(name pkix.Name) string {
	var parts []string
	for _, attribute := range name.Names {
		short, ok := attributeNames[attribute.Type.String()]
		if !ok {
			short = attribute.Type.String()
		}
		parts = append(parts, fmt.Sprintf("%s=%v", short, attribute.Value))
	}
	return strings.Join(parts, ", ")
}

// isVendor goes by Apple's extension, or by the name where it is absent.
func isVendor(cert *x509.Certificate) bool {
	for _, e := range cert.Extensions {
		if e.Id.Equal(oidVendorMarker) {
			return true
		}
	}
	return strings.HasPrefix(cert.Subject.CommonName, "MDM Vendor:")
}

func describeKey(pub any, algorithm x509.PublicKeyAlgorithm) string {
	if key, ok := pub.(*rsa.PublicKey); ok {
		return fmt.Sprintf("RSA %d bits, exponent %d", key.N.BitLen(), key.E)
	}
	return algorithm.String()
}

// csrInfo is what is shown of a CSR, as JSON too.
type csrInfo struct {
	Subject   string `json:"subject"`
	Key       string `json:"key"`
	Signature string `json:"signature"`
	KeySHA256 string `json:"key_sha256"`
	SHA256    string `json:"sha256"`
}

func describeCSR(parsed *x509.CertificateRequest) csrInfo {
	return csrInfo{
		Subject: describeName(parsed.Subject), Key: describeKey(parsed.PublicKey, parsed.PublicKeyAlgorithm),
		Signature: parsed.SignatureAlgorithm.String(), KeySHA256: hexSHA256(parsed.RawSubjectPublicKeyInfo), SHA256: hexSHA256(parsed.Raw),
	}
}

// printCert shows a certificate, indented under its title.
func (u *ui) printCert(title string, c certInfo) {
	u.print("%s: %s", title, c.Name)
	u.field("subject", c.Subject)
	u.field("issuer", c.Issuer)
	u.field("serial", c.Serial)
	left := fmt.Sprintf("%d days left", c.DaysLeft)
	if c.DaysLeft < 0 {
		left = "expired"
	}
	u.field("valid", fmt.Sprintf("%s to %s (%s)", c.NotBefore, c.NotAfter, left))
	u.field("topic", c.Topic)
	u.field("key", c.Key)
	u.field("key SHA-256", c.KeySHA256)
	u.field("SHA-256", c.SHA256)
}

func (u *ui) printCSR(title string, c csrInfo) {
	u.print("%s: certificate signing request", title)
	u.field("subject", c.Subject)
	u.field("key", c.Key)
	u.field("signed with", c.Signature)
	u.field("key SHA-256", c.KeySHA256)
	u.field("SHA-256", c.SHA256)
}

// field shows one named value; an empty one is left out.
func (u *ui) field(name, value string) {
	if value != "" {
		u.print("  %-12s %s", name, value)
	}
}

// digestName is the name of a request's hash, as --digest takes it.
func digestName(r *request.Report) string {
	if r.Digest == 0 {
		return ""
	}
	return strings.ToLower(strings.ReplaceAll(r.Digest.String(), "-", ""))
}
