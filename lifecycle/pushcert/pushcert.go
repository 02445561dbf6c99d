// Package pushcert handles a customer's Apple push certificate for MDM: it reads the certificate from Apple's portal, checks
// its topic, dates, key and renewal, and encodes certificate and key for an MDM server.
//
// An error about a customer's file is a *fault.Finding whose ID starts with "push.". The functions depend only on their
// arguments and are safe for concurrent use.
package pushcert

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"strings"
	"time"

	"hsmsign/chain"
	"hsmsign/fault"
)

// MaxCertificate is the size limit of a push certificate's file, in bytes.
const MaxCertificate = chain.MaxFile

// topicPrefix begins the topic of every push certificate for MDM. The topic of an app is its bundle identifier.
const topicPrefix = "com.apple.mgmt."

// expiresSoon is how early Apple mails the owner.
const expiresSoon = 30 * 24 * time.Hour

const (
	date      = "2006-01-02"
	fixPortal = "give the certificate that you downloaded from https://identity.apple.com/pushcert (MDM_ ... _Certificate.pem)"
	fixRenew  = "renew it at https://identity.apple.com/pushcert with \"Renew\" and the Apple Account that created it"
	maxName   = 128 // bytes of a name from a certificate in a message
)

// Certificate is a push certificate for MDM.
type Certificate struct {
	*x509.Certificate
	// Topic identifies the MDM server to its devices: "com.apple.mgmt.External." and a UUID.
	Topic string
}

// Topic returns the topic of a certificate, or "" if it is not a push certificate for MDM.
func Topic(cert *x509.Certificate) string {
	if uid := userID(cert); strings.HasPrefix(uid, topicPrefix) {
		return uid
	}
	return ""
}

// userID returns the attribute UID of the subject (RFC 4519 section 2.39), where Apple writes the topic.
func userID(cert *x509.Certificate) string {
	for _, attribute := range cert.Subject.Names {
		if s, ok := attribute.Value.(string); ok && attribute.Type.Equal(asn1.ObjectIdentifier{0, 9, 2342, 19200300, 100, 1, 1}) {
			return s
		}
	}
	return ""
}

// ParseCertificate returns the only push certificate in data (PEM, DER or PKCS#7), which may contain other certificates. It
// does not check dates: see Check. The error is a *fault.Finding that says what the file is instead: push.unreadable,
// push.kind or push.count.
func ParseCertificate(data []byte) (*Certificate, error) {
	certs, err := chain.Parse(data)
	if err != nil {
		return nil, fault.Refuse("push.unreadable", "not a push certificate: %v", err).WithFix(fixPortal)
	}
	var found *Certificate
	for _, cert := range certs {
		topic := Topic(cert)
		if topic == "" {
			continue
		}
		if found != nil {
			return nil, fault.Refuse("push.count", "the file contains several push certificates, valid until %s and %s",
				found.NotAfter.UTC().Format(date), cert.NotAfter.UTC().Format(date)).WithFix("give only the newest")
		}
		found = &Certificate{cert, topic}
	}
	if found == nil {
		return nil, fault.Refuse("push.kind", "this is %s, not the push certificate from Apple's portal", describe(certs[0])).WithFix(fixPortal)
	}
	return found, nil
}

// describe returns the kind of a certificate that is not a push certificate for MDM.
func describe(cert *x509.Certificate) string {
	if pin, ok := chain.Lookup(cert); ok {
		return "Apple's " + pin.Name
	}
	switch {
	case strings.HasPrefix(cert.Subject.CommonName, "MDM Vendor:"):
		return "the MDM vendor's certificate"
	case cert.IsCA:
		return fmt.Sprintf("the certificate of a CA, %q", fault.Clip(cert.Subject.CommonName, maxName))
	case userID(cert) != "":
		return fmt.Sprintf("a certificate for the topic %q, which is not MDM's", fault.Clip(userID(cert), maxName))
	}
	return fmt.Sprintf("the certificate of %q", fault.Clip(cert.Subject.CommonName, maxName))
}

// Check returns the findings about the certificate's dates at a time.
func (c *Certificate) Check(now time.Time) []fault.Finding {
	switch {
	case now.Before(c.NotBefore):
		return []fault.Finding{*fault.Refuse("push.not-yet-valid", "the push certificate is valid from %s", c.NotBefore.UTC().Format(time.RFC3339)).
			WithFix("check this machine's clock")}
	case now.After(c.NotAfter):
		return []fault.Finding{*fault.Refuse("push.expired", "the push certificate expired on %s: no device can be reached with it", c.NotAfter.UTC().Format(date)).
			WithFix(fixRenew)}
	case c.NotAfter.Sub(now) < expiresSoon:
		return []fault.Finding{*fault.Warn("push.expires-soon", "the push certificate expires on %s: %d days are left",
			c.NotAfter.UTC().Format(date), c.NotAfter.Sub(now)/(24*time.Hour)).WithFix(fixRenew)}
	}
	return nil
}

// MatchKey returns a *fault.Finding (push.key-mismatch) unless the certificate contains this public key.
func (c *Certificate) MatchKey(pub crypto.PublicKey) error {
	if key, ok := c.PublicKey.(*rsa.PublicKey); ok && key.Equal(pub) {
		return nil
	}
	return fault.Refuse("push.key-mismatch", "the push certificate does not match the key: it contains the public key with SHA-256 %s, the key has %s",
		chain.SPKISHA256(c.PublicKey), chain.SPKISHA256(pub)).WithFix("give the key of the CSR, or the certificate of this key")
}

// CheckIssuer returns a *fault.Finding (push.issuer) if one of the certificates has the name of the issuer and did not issue this
// one. Without such a certificate there is nothing to check: Apple's portal adds none either.
func (c *Certificate) CheckIssuer(others []*x509.Certificate) error {
	var err error
	for _, other := range others {
		if !bytes.Equal(other.RawSubject, c.RawIssuer) {
			continue
		}
		if err = c.CheckSignatureFrom(other); err == nil {
			return nil
		}
	}
	if err == nil {
		return nil
	}
	return fault.Refuse("push.issuer", "the certificate of the issuer %q in the file did not issue the push certificate: %s",
		fault.Clip(c.Issuer.CommonName, maxName), fault.Clip(err.Error(), maxName)).WithFix("export the file again; the certificate may be forged")
}

// CheckRenewal returns a *fault.Finding unless renewed can replace old: it has the same topic (otherwise every device would
// have to enrol again), expires later, and is valid at the time now.
func CheckRenewal(old, renewed *Certificate, now time.Time) error {
	switch {
	case old.Topic != renewed.Topic:
		return fault.Refuse("push.topic", "the topic differs: %q before, %q now", fault.Clip(old.Topic, maxName), fault.Clip(renewed.Topic, maxName)).
			WithFix("do not install it, every device would have to enrol again; use the same Apple Account, and \"Renew\" instead of \"Create\"")
	case old.Equal(renewed.Certificate):
		return fault.Refuse("push.not-later", "both are the same certificate, valid until %s", old.NotAfter.UTC().Format(date)).
			WithFix("give the old certificate as old and the renewed one as new")
	case renewed.NotAfter.Before(old.NotAfter):
		return fault.Refuse("push.not-later", "the new certificate expires on %s, before the old one on %s",
			renewed.NotAfter.UTC().Format(date), old.NotAfter.UTC().Format(date)).WithFix("check the order of the two files")
	}
	return fault.First(renewed.Check(now))
}
