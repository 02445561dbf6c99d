package cms

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/smallstep/pkcs7"

	"hsmsign/fault"
)

// VerifyOptions says what a SignedData is checked against.
type VerifyOptions struct {
	// Content is the content of a detached signature; nil: the content is inside.
	Content []byte
	// Roots are the certificates that are trusted; empty: trust is not checked.
	Roots []*x509.Certificate
	// Intermediates are certificates for the chain besides those in the message.
	Intermediates []*x509.Certificate
	// At is the time of the check.
	At time.Time
}

// Signed is a SignedData that was read.
type Signed struct {
	Content      []byte
	Signer       *x509.Certificate   // nil if the message does not contain it
	Certificates []*x509.Certificate // all of the message, in its order
	Chain        []*x509.Certificate // from the signer up, as far as the message, the intermediates and the roots go
	Digest       string              // "SHA-256"
	SigningTime  time.Time           // as the signer says, UTC; zero: it does not say
	Trusted      bool                // the chain ends in one of the roots, whatever the dates
	// Findings are defects and remarks, with IDs of the subject cms. Without an error among them the signature is that of
	// the signer over the content, and the certificates are valid and, if there are roots, trusted.
	Findings []fault.Finding
}

// Valid returns whether no finding is an error.
func (s *Signed) Valid() bool { return fault.First(s.Findings) == nil }

// digestNames are the digest algorithms of signatures in use.
var digestNames = map[string]string{
	"1.2.840.113549.2.5": "MD5", "1.3.14.3.2.26": "SHA-1", "2.16.840.1.101.3.4.2.4": "SHA-224",
	oidSHA256.String(): "SHA-256", "2.16.840.1.101.3.4.2.2": "SHA-384", "2.16.840.1.101.3.4.2.3": "SHA-512",
}

// Verify reads a SignedData in DER or BER with one signer, and checks signature, dates and chain. The error is a
// *fault.Finding, cms.form, if it cannot be read; everything else is in Findings.
func Verify(message []byte, o VerifyOptions) (*Signed, error) {
	der, err := toDER(message)
	if err != nil {
		return nil, form("%v", err)
	}
	p7, err := parse(der)
	if err != nil {
		return nil, form("%v", err)
	}
	if len(p7.Signers) != 1 {
		return nil, form("it has %d signers, want 1", len(p7.Signers))
	}
	switch {
	case o.Content == nil && len(p7.Content) == 0:
		return nil, form("its content is not inside")
	case o.Content != nil && len(p7.Content) > 0:
		return nil, form("its content is inside, and not detached")
	case o.Content != nil:
		p7.Content = o.Content
	}
	s := &Signed{Content: p7.Content, Certificates: p7.Certificates, Signer: p7.GetOnlySigner()}
	oid := p7.Signers[0].DigestAlgorithm.Algorithm.String()
	if s.Digest = digestNames[oid]; s.Digest == "" {
		s.Digest = oid
	}
	_ = p7.UnmarshalSignedAttribute(oidSigningTime, &s.SigningTime) // it is optional
	s.SigningTime = s.SigningTime.UTC()
	if s.Signer == nil {
		s.add(fault.Refuse("cms.no-signer", "the signer's certificate is not in the message").WithFix("include the signer's certificate"))
		return s, nil
	}
	if f := checkSignature(p7, s); f != nil {
		s.add(f)
	}
	if s.Digest == "SHA-1" || s.Digest == "MD5" {
		s.add(fault.Refuse("cms.digest", "the signature uses %s, which no longer proves who signed", s.Digest).WithFix("sign it again with SHA-256"))
	}
	s.checkChain(o)
	return s, nil
}

func (s *Signed) add(f *fault.Finding) { s.Findings = append(s.Findings, *f) }

func form(format string, args ...any) *fault.Finding {
	return fault.Refuse("cms.form", "not a readable signature (CMS SignedData): "+format, args...)
}

// parse reads a SignedData. The library panics on some damaged messages; that is reported as damage.
func parse(der []byte) (p7 *pkcs7.PKCS7, err error) {
	defer func() {
		if recover() != nil {
			err = errBER
		}
	}()
	var info contentInfo
	if _, err := asn1.Unmarshal(der, &info); err != nil {
		return nil, errBER
	}
	if !info.Type.Equal(oidSignedData) {
		return nil, fmt.Errorf("it is PKCS#7 of type %v", info.Type)
	}
	return pkcs7.Parse(der)
}

// checkSignature returns why the signature is not one of the signer over the content, or nil.
func checkSignature(p7 *pkcs7.PKCS7, s *Signed) (finding *fault.Finding) {
	defer func() {
		if recover() != nil { // of the library
			finding = fault.Refuse("cms.signature", "the signature is damaged")
		}
	}()
	if len(p7.Signers[0].AuthenticatedAttributes) > 0 {
		var kind asn1.ObjectIdentifier
		if err := p7.UnmarshalSignedAttribute(oidContentType, &kind); err != nil || !kind.Equal(oidData) {
			return fault.Refuse("cms.signature", "the signature is not over data: its content type is %v", kind)
		}
	} else if bytes.HasPrefix(p7.Content, []byte{0x31}) {
		// A signature over attributes is also one without attributes over their encoding, a SET.
		return fault.Refuse("cms.signature", "the content could be the signed attributes of another message")
	}
	err := p7.Verify()
	var outside *pkcs7.SigningTimeNotValidError
	switch {
	case errors.As(err, &outside):
		return fault.Refuse("cms.signing-time", "the signature was made on %s, when the signer's certificate was not valid (%s to %s)",
			day(outside.SigningTime), day(outside.NotBefore), day(outside.NotAfter))
	case err != nil:
		var mismatch *pkcs7.MessageDigestMismatchError
		if errors.As(err, &mismatch) {
			return fault.Refuse("cms.signature", "the content was changed after it was signed")
		}
		return fault.Refuse("cms.signature", "the signature is not that of the certificate %q: %s", s.Signer.Subject.CommonName, fault.Clip(err.Error(), 128))
	}
	return nil
}

// checkChain builds the chain, and checks dates and trust.
func (s *Signed) checkChain(o VerifyOptions) {
	s.Chain = Chain(s.Signer, slices.Concat(s.Certificates, o.Intermediates, o.Roots))
	for _, cert := range s.Chain {
		switch {
		case o.At.After(cert.NotAfter):
			s.add(fault.Refuse("cms.expired", "the certificate %q expired on %s", cert.Subject.CommonName, day(cert.NotAfter)))
		case o.At.Before(cert.NotBefore):
			s.add(fault.Refuse("cms.not-yet-valid", "the certificate %q is valid from %s on", cert.Subject.CommonName, day(cert.NotBefore)))
		}
	}
	if len(o.Roots) == 0 {
		return
	}
	roots, others := x509.NewCertPool(), x509.NewCertPool()
	for _, cert := range o.Roots {
		roots.AddCert(cert)
	}
	for _, cert := range slices.Concat(s.Certificates, o.Intermediates) {
		others.AddCert(cert)
	}
	// The dates have findings of their own: trust is checked at a time when the signer was valid.
	_, err := s.Signer.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: others, CurrentTime: nearest(o.At, s.Signer), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if s.Trusted = err == nil; err != nil {
		s.add(fault.Refuse("cms.untrusted", "the signer %q is not issued by a trusted root: %s", s.Signer.Subject.CommonName, fault.Clip(err.Error(), 160)))
	}
}

// maxChain is how many certificates a chain may have.
const maxChain = 8

// Chain returns the certificates from leaf up to the last issuer that is known, at most maxChain. Whether they are trusted and
// valid now is not checked.
func Chain(leaf *x509.Certificate, known []*x509.Certificate) []*x509.Certificate {
	chain := []*x509.Certificate{leaf}
	for len(chain) < maxChain {
		issuer := issuerOf(chain[len(chain)-1], known)
		if issuer == nil || slices.ContainsFunc(chain, issuer.Equal) {
			break
		}
		chain = append(chain, issuer)
	}
	return chain
}

// issuerOf returns the certificate that issued cert, nil if it is not known.
func issuerOf(cert *x509.Certificate, known []*x509.Certificate) *x509.Certificate {
	for _, c := range known {
		if bytes.Equal(c.RawSubject, cert.RawIssuer) && c.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature) == nil {
			return c
		}
	}
	return nil
}

// nearest returns the time in the validity of a certificate that is nearest to t.
func nearest(t time.Time, cert *x509.Certificate) time.Time {
	switch {
	case t.After(cert.NotAfter):
		return cert.NotAfter
	case t.Before(cert.NotBefore):
		return cert.NotBefore
	}
	return t
}

func day(t time.Time) string { return t.UTC().Format(time.DateOnly) }
