package certreq

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"net/mail"
	"strings"
	"unicode"
	"unicode/utf8"

	"hsmsign/fault"
)

// ErrSubject: a value cannot be part of a CSR's subject.
var ErrSubject = fault.Usage.New("unusable value")

// The upper bounds of RFC 5280 appendix A.1 (ub-common-name, ub-organization-name, ub-emailaddress-length).
const (
	maxName  = 64 // characters
	maxEmail = 255
)

// Subject says who a CSR is of. Apple puts its own subject into its certificates, and takes the CSR for its key.
type Subject struct {
	Email        string // an address, ASCII, at most 255 characters
	CommonName   string // 1 to 64 characters
	Organization string // at most 64 characters; empty: left out
	Country      string // ISO 3166-1, two capital letters
}

// Check returns an error that wraps ErrSubject if a value cannot be part of a CSR.
func (s Subject) Check() error {
	refuse := func(fix, format string, args ...any) error {
		return fault.Errorf("%w: %s", ErrSubject, fmt.Sprintf(format, args...)).Fix(fix)
	}
	if len(s.Email) > maxEmail {
		return refuse("give a shorter one", "the email address has %d characters; at most %d are allowed", len(s.Email), maxEmail)
	}
	address, err := mail.ParseAddress(s.Email)
	switch {
	case err != nil || address.Address != s.Email || strings.ContainsFunc(s.Email, func(r rune) bool { return r <= ' ' || r > '~' }):
		return refuse("write it as in mdm@example.com", "the email address %.64q is none", s.Email)
	case s.CommonName == "":
		return refuse("give a name", "no common name")
	case len(s.Country) != 2 || strings.ContainsFunc(s.Country, func(r rune) bool { return r < 'A' || r > 'Z' }):
		return refuse("write two capital letters, as in US", "the country %.64q is no ISO 3166 code", s.Country)
	}
	for _, name := range []struct{ what, value string }{{"common name", s.CommonName}, {"organization", s.Organization}} {
		switch n := utf8.RuneCountInString(name.value); {
		case n > maxName:
			return refuse("shorten it", "the %s has %d characters; X.520 allows %d", name.what, n, maxName)
		case !utf8.ValidString(name.value) || strings.ContainsFunc(name.value, unicode.IsControl):
			return refuse("write plain text", "the %s is not UTF-8 or holds a control character", name.what)
		case strings.TrimSpace(name.value) != name.value:
			return refuse("take the blanks off", "the %s begins or ends with a blank", name.what)
		}
	}
	return nil
}

// rdn is the subject in DER, in the order and with the string types that the Certificate Assistant of Keychain
// Access writes, whose CSRs Apple's portals were made for.
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
