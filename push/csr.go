package push

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"hsmsign/signer"
)

// Subject says who a CSR is of. Apple's portal keeps none of it: the push certificate's subject is Apple's own.
type Subject struct {
	Name         string // common name, 1 to 64 characters
	Email        string // e-mail address, ASCII, at most 255 characters
	Country      string // two letters (ISO 3166-1), "DE"
	Organization string // at most 64 characters; may be empty
}

// ErrSubject means that a field of a Subject cannot stand in a CSR.
var ErrSubject = errors.New("unfit for a CSR")

// Check says whether a CSR can hold the subject; errors wrap ErrSubject.
func (s Subject) Check() error {
	_, err := s.rdn()
	return err
}

// rdn gives the subject's attributes with the string types and bounds of RFC 5280 appendix A.1. Errors wrap ErrSubject.
func (s Subject) rdn() ([]pkix.AttributeTypeAndValue, error) {
	for _, field := range []struct {
		what, value string
		least, most int
	}{{"name", s.Name, 1, 64}, {"email address", s.Email, 3, 255}, {"organization", s.Organization, 0, 64}} {
		if n := utf8.RuneCountInString(field.value); n < field.least || n > field.most {
			return nil, fmt.Errorf("%w: the %s has %d characters; %d to %d are taken", ErrSubject, field.what, n, field.least, field.most)
		}
		if !utf8.ValidString(field.value) || strings.ContainsFunc(field.value, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return nil, fmt.Errorf("%w: the %s holds a control character, or is not UTF-8", ErrSubject, field.what)
		}
	}
	local, domain, _ := strings.Cut(s.Email, "@")
	if local == "" || domain == "" || strings.ContainsFunc(s.Email, func(r rune) bool { return r <= ' ' || r > '~' }) || strings.Contains(domain, "@") {
		return nil, fmt.Errorf("%w: %q is no e-mail address", ErrSubject, s.Email)
	}
	country := strings.ToUpper(s.Country)
	if len(country) != 2 || strings.Trim(country, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" {
		return nil, fmt.Errorf("%w: the country %q is not two letters, as in \"DE\" or \"US\"", ErrSubject, s.Country)
	}
	// In the order, and with the string types, of Keychain Access's Certificate Assistant. The address is an IA5String
	// (RFC 2985 section 5.2.1), which the library would not choose by itself.
	names := []pkix.AttributeTypeAndValue{
		{Type: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 1}, Value: asn1.RawValue{Tag: asn1.TagIA5String, Bytes: []byte(s.Email)}},
		{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: s.Name},
	}
	if s.Organization != "" {
		names = append(names, pkix.AttributeTypeAndValue{Type: asn1.ObjectIdentifier{2, 5, 4, 10}, Value: s.Organization})
	}
	return append(names, pkix.AttributeTypeAndValue{Type: asn1.ObjectIdentifier{2, 5, 4, 6}, Value: country}), nil
}

// NewCSR makes a certificate signing request (RFC 2986, DER) for an RSA key, signed with SHA-256. The signature has been
// verified. Errors wrap ErrSubject, or one of signer's families.
func NewCSR(ctx context.Context, key signer.Signer, subject Subject) ([]byte, error) {
	names, err := subject.rdn()
	if err != nil {
		return nil, err
	}
	template := &x509.CertificateRequest{Subject: pkix.Name{ExtraNames: names}, SignatureAlgorithm: x509.SHA256WithRSA}
	return x509.CreateCertificateRequest(rand.Reader, template, messageKey{ctx, key})
}

// messageKey is a crypto.MessageSigner, so that crypto/x509 signs through signer.Sign: within the context's time, by
// modules that take the whole message only, and with the signature verified.
type messageKey struct {
	ctx context.Context
	key signer.Signer
}

func (k messageKey) Public() crypto.PublicKey { return k.key.Public() }

func (k messageKey) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.key.SignContext(k.ctx, digest, opts)
}

func (k messageKey) SignMessage(_ io.Reader, message []byte, opts crypto.SignerOpts) ([]byte, error) {
	return signer.Sign(k.ctx, k.key, message, opts.HashFunc())
}
