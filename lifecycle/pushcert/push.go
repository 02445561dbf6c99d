// Package pushcert is the customer's side of an Apple push certificate for MDM: the key and the CSR that its life begins
// with, the push certificate that Apple's portal gives, its topic, its renewal, and the file that an MDM server takes.
//
//	csr, err := certreq.Create(ctx, key, certreq.Subject{CommonName: "Acme MDM", Email: "mdm@acme.example", Country: "DE"})
//	// ... the MDM vendor signs it, Apple's portal answers ...
//	cert, err := pushcert.ParseCertificate(file)
//	pfx, err := pushcert.EncodePKCS12(cert, private, passphrase, pushcert.Modern)
//
// What is wrong with a customer's file is a *fault.Finding whose ID starts with "push.". Everything here is a function
// of its arguments, and safe for concurrent use.
package pushcert

import (
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"strings"
	"time"

	"hsmsign/chain"
	"hsmsign/fault"
)

// MaxCertificate is the most that is read of a push certificate's file, in bytes.
const MaxCertificate = chain.MaxFile

// topicPrefix begins the topic of every push certificate for MDM; that of an app's is the app's bundle identifier.
const topicPrefix = "com.apple.mgmt."

// expiresSoon is when a renewal is due: Apple mails the owner as early.
const expiresSoon = 30 * 24 * time.Hour

const (
	date      = "2006-01-02"
	fixPortal = "give the certificate that https://identity.apple.com/pushcert gave for download (MDM_ ... _Certificate.pem)"
	fixRenew  = "renew it at https://identity.apple.com/pushcert, by \"Renew\" and with the Apple Account that it was made with"
)

// Certificate is a push certificate for MDM.
type Certificate struct {
	*x509.Certificate
	// Topic is what the MDM server and its devices know each other by: "com.apple.mgmt.External." and a UUID.
	Topic string
}

// Topic gives the topic of a certificate, or "" when it is not a push certificate for MDM.
func Topic(cert *x509.Certificate) string {
	if uid := userID(cert); strings.HasPrefix(uid, topicPrefix) {
		return uid
	}
	return ""
}

// userID is the attribute UID of the subject (RFC 4519 section 2.39), where Apple writes the topic.
func userID(cert *x509.Certificate) string {
	for _, attribute := range cert.Subject.Names {
		if s, ok := attribute.Value.(string); ok && attribute.Type.Equal(asn1.ObjectIdentifier{0, 9, 2342, 19200300, 100, 1, 1}) {
			return s
		}
	}
	return ""
}

// ParseCertificate reads the one push certificate in data: PEM, DER or PKCS#7, other certificates beside it allowed. It
// does not look at dates: see Check. The error is a *fault.Finding and says what the file is instead.
func ParseCertificate(data []byte) (*Certificate, error) {
	certs, err := chain.Parse(data)
	var f *fault.Finding
	if errors.As(err, &f) {
		return nil, refuse("push.unreadable", fixPortal, "not a push certificate: %s", f.Message)
	}
	if err != nil {
		return nil, err
	}
	var found *Certificate
	for _, cert := range certs {
		topic := Topic(cert)
		if topic == "" {
			continue
		}
		if found != nil {
			return nil, refuse("push.count", "give the newest alone", "the file holds several push certificates, until %s and until %s",
				found.NotAfter.UTC().Format(date), cert.NotAfter.UTC().Format(date))
		}
		found = &Certificate{cert, topic}
	}
	if found == nil {
		return nil, refuse("push.kind", fixPortal, "this is %s; the push certificate is wanted that Apple's portal gave", describe(certs[0]))
	}
	return found, nil
}

// describe says what a certificate is that is no push certificate for MDM.
func describe(cert *x509.Certificate) string {
	if pin, ok := chain.Lookup(cert); ok {
		return "Apple's " + pin.Name
	}
	switch {
	case strings.HasPrefix(cert.Subject.CommonName, "MDM Vendor:"):
		return "the MDM vendor's certificate"
	case cert.IsCA:
		return fmt.Sprintf("the certificate of a CA, %q", clip(cert.Subject.CommonName))
	case userID(cert) != "":
		return fmt.Sprintf("a certificate for the topic %q, which is not MDM's", clip(userID(cert)))
	}
	return fmt.Sprintf("the certificate of %q", clip(cert.Subject.CommonName))
}

// clip bounds a name from a certificate, which may be of any length.
func clip(name string) string { return fault.Clip(name, 128) }

// Check says what is wrong with the certificate's dates at that time.
func (c *Certificate) Check(now time.Time) []fault.Finding {
	switch {
	case now.Before(c.NotBefore):
		return []fault.Finding{*refuse("push.not-yet-valid", "check this machine's clock", "the push certificate is valid from %s", c.NotBefore.UTC().Format(time.RFC3339))}
	case now.After(c.NotAfter):
		return []fault.Finding{*refuse("push.expired", fixRenew, "the push certificate expired on %s: no device can be reached with it", c.NotAfter.UTC().Format(date))}
	case c.NotAfter.Sub(now) < expiresSoon:
		return []fault.Finding{{ID: "push.expires-soon", Severity: fault.SeverityWarning, Fix: fixRenew,
			Message: fmt.Sprintf("the push certificate expires on %s: %d days are left", c.NotAfter.UTC().Format(date), c.NotAfter.Sub(now)/(24*time.Hour))}}
	}
	return nil
}

// MatchKey is an error, a *fault.Finding, unless the certificate holds this public key.
func (c *Certificate) MatchKey(pub crypto.PublicKey) error {
	if key, ok := c.PublicKey.(*rsa.PublicKey); ok && key.Equal(pub) {
		return nil
	}
	return refuse("push.key-mismatch", "give the key that the CSR was made with, or the certificate of this key",
		"the push certificate is not that of the key: it holds the public key with SHA-256 %s, the key has %s",
		chain.SPKISHA256(c.PublicKey), chain.SPKISHA256(pub))
}

// CheckRenewal is an error, a *fault.Finding, unless renewed can take the place of old: it has the same topic, or every
// device would have to enrol again, it ends later, and it is valid at that time.
func CheckRenewal(old, renewed *Certificate, now time.Time) error {
	switch {
	case old.Topic != renewed.Topic:
		return refuse("push.topic",
			"do not install it, every device would have to enrol again: was it made with the same Apple Account, and by \"Renew\" rather than \"Create\"?",
			"the topic is another one: %q before, %q now", clip(old.Topic), clip(renewed.Topic))
	case old.Equal(renewed.Certificate):
		return refuse("push.not-later", "give the old one as old and the renewed one as new", "the two are the same certificate, valid until %s", old.NotAfter.UTC().Format(date))
	case renewed.NotAfter.Before(old.NotAfter):
		return refuse("push.not-later", "are the two files exchanged?", "the new certificate ends on %s, before the old one on %s",
			renewed.NotAfter.UTC().Format(date), old.NotAfter.UTC().Format(date))
	}
	return fault.First(renewed.Check(now))
}

func refuse(id, fix, format string, args ...any) *fault.Finding {
	return &fault.Finding{ID: id, Severity: fault.SeverityError, Message: fmt.Sprintf(format, args...), Fix: fix}
}
