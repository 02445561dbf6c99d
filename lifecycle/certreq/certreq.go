// Package certreq makes certificate signing requests (RFC 2986) with any signer.Signer: the vendor's for Apple's
// developer portal, and the customer's for the MDM vendor.
//
// The functions depend only on their arguments and are safe for concurrent use if the Signer is.
package certreq

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"net/mail"
	"strings"
	"unicode"
	"unicode/utf8"

	"hsmsign/fault"
	"hsmsign/internal/strictder"
	"hsmsign/signer"
)

// Create returns a CSR (DER) for an RSA key, signed with SHA-256. The same key and subject always give the same bytes.
// signer.Sign verifies the signature, and Create checks that the new CSR has this subject and key.
//
// Errors wrap ErrSubject, signer.ErrBadKey (not an RSA key), signer.ErrBadSignature, or the family of the key's error.
func Create(ctx context.Context, key signer.Signer, subject Subject) ([]byte, error) {
	if err := subject.Check(); err != nil {
		return nil, err
	}
	pub, ok := key.Public().(*rsa.PublicKey)
	if !ok {
		return nil, fault.Errorf("%w: a key of type %T; Apple accepts RSA only", signer.ErrBadKey, key.Public()).Fix("make an RSA key")
	}
	name, err := subject.rdn()
	if err != nil {
		return nil, fmt.Errorf("encode the subject: %w", err)
	}
	template := &x509.CertificateRequest{RawSubject: name, SignatureAlgorithm: x509.SHA256WithRSA}
	der, err := x509.CreateCertificateRequest(nil, template, signer.CryptoSigner(ctx, key))
	if err != nil {
		return nil, fmt.Errorf("make the CSR: %w", err)
	}
	made, err := strictder.ParseCertificateRequest(der)
	switch {
	case err != nil:
		return nil, fmt.Errorf("parse the new CSR: %w", err)
	case string(made.RawSubject) != string(name) || !pub.Equal(made.PublicKey):
		return nil, errors.New("parse the new CSR: it has another subject or key")
	}
	return der, nil
}

// EncodePEM returns a CSR as PEM (RFC 7468 section 7).
func EncodePEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

// ErrSubject means that a value cannot be part of a CSR's subject.
var ErrSubject = fault.Usage.New("unusable value")

// The upper bounds of RFC 5280 appendix A.1 (ub-common-name, ub-organization-name, ub-emailaddress-length).
const (
	maxName  = 64 // characters
	maxEmail = 255
)

// countries are the alpha-2 codes of ISO 3166-1: the second letters of each first one.
var countries = map[byte]string{
	'A': "DEFGILMOQRSTUWXZ", 'B': "ABDEFGHIJLMNOQRSTVWYZ", 'C': "ACDFGHIKLMNORUVWXYZ", 'D': "EJKMOZ",
	'E': "CEGHRST", 'F': "IJKMOR", 'G': "ABDEFGHILMNPQRSTUWY", 'H': "KMNRTU",
	'I': "DELMNOQRST", 'J': "EMOP", 'K': "EGHIMNPRWYZ", 'L': "ABCIKRSTUVY",
	'M': "ACDEFGHKLMNOPQRSTUVWXYZ", 'N': "ACEFGILOPRUZ", 'O': "M", 'P': "AEFGHKLMNRSTWY",
	'Q': "A", 'R': "EOSUW", 'S': "ABCDEGHIJKLMNORSTVXYZ", 'T': "CDFGHJKLMNORTVWZ",
	'U': "AGMSYZ", 'V': "ACEGINU", 'W': "FS", 'Y': "ET",
	'Z': "AMW",
}

func isCountry(code string) bool {
	return len(code) == 2 && strings.IndexByte(countries[code[0]], code[1]) >= 0
}

// Subject is the subject of a CSR. Apple's certificates have other subjects; Apple uses only the key of a CSR.
type Subject struct {
	Email        string // an address, ASCII, at most 255 characters
	CommonName   string // 1 to 64 characters
	Organization string // at most 64 characters; optional
	Country      string // ISO 3166-1 alpha-2 code, capital letters
}

// Check returns an error that wraps ErrSubject if a value cannot be part of a CSR.
func (s Subject) Check() error {
	if len(s.Email) > maxEmail {
		return fault.Errorf("%w: the email address has %d characters; at most %d are allowed", ErrSubject, len(s.Email), maxEmail).Fix("use a shorter one")
	}
	address, err := mail.ParseAddress(s.Email)
	switch {
	case err != nil || address.Address != s.Email || strings.ContainsFunc(s.Email, func(r rune) bool { return r <= ' ' || r > '~' }):
		return fault.Errorf("%w: %.64q is not an email address", ErrSubject, s.Email).Fix("write it as in mdm@example.com")
	case s.CommonName == "":
		return fault.Errorf("%w: the common name is empty", ErrSubject).Fix("give a name")
	case !isCountry(s.Country):
		return fault.Errorf("%w: the country %.64q is not a two-letter ISO 3166 code", ErrSubject, s.Country).
			Fix("write two capital letters, as in US; the United Kingdom is GB")
	}
	for _, name := range []struct{ what, value string }{{"common name", s.CommonName}, {"organization", s.Organization}} {
		switch n := utf8.RuneCountInString(name.value); {
		case n > maxName:
			return fault.Errorf("%w: the %s has %d characters; X.520 allows %d", ErrSubject, name.what, n, maxName).Fix("shorten it")
		case !utf8.ValidString(name.value) || strings.ContainsFunc(name.value, unicode.IsControl):
			return fault.Errorf("%w: the %s is not UTF-8 or contains a control character", ErrSubject, name.what).Fix("write plain text")
		case strings.TrimSpace(name.value) != name.value:
			return fault.Errorf("%w: the %s begins or ends with white space", ErrSubject, name.what).Fix("remove the white space")
		}
	}
	return nil
}

// rdn returns the subject in DER, with the order and the string types of Keychain Access's Certificate Assistant, whose
// CSRs Apple's portals expect.
func (s Subject) rdn() ([]byte, error) {
	var sequence pkix.RDNSequence
	for _, attribute := range []struct {
		oid   asn1.ObjectIdentifier
		tag   int
		value string
	}{
		{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 1}, asn1.TagIA5String, s.Email}, // RFC 2985 section 5.2.1
		{asn1.ObjectIdentifier{2, 5, 4, 3}, asn1.TagUTF8String, s.CommonName},
		{asn1.ObjectIdentifier{2, 5, 4, 10}, asn1.TagUTF8String, s.Organization},
		{asn1.ObjectIdentifier{2, 5, 4, 6}, asn1.TagPrintableString, s.Country},
	} {
		if attribute.value != "" {
			sequence = append(sequence, pkix.RelativeDistinguishedNameSET{
				{Type: attribute.oid, Value: asn1.RawValue{Tag: attribute.tag, Bytes: []byte(attribute.value)}},
			})
		}
	}
	return asn1.Marshal(sequence)
}
