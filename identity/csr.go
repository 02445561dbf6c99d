package identity

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/mail"
	"strings"
	"unicode"
	"unicode/utf8"

	"hsmsign/signer"
)

// ErrSubject is the family of what a CSR or a transcript cannot say: an address that is none, one witness twice.
var ErrSubject = errors.New("unusable value")

// Error is a refusal that knows what to do about itself.
type Error struct {
	Err error  // wraps ErrSubject, ErrTranscript or a family of package signer
	Fix string // one line
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// Hint is what to do about it.
func (e *Error) Hint() string { return e.Fix }

// KeyBits is the only size of RSA key that Apple's developer portal takes a vendor's CSR for.
const KeyBits = 2048

// csrBlock is the label of a PEM CSR (RFC 7468 section 7).
const csrBlock = "CERTIFICATE REQUEST"

// The upper bounds of RFC 5280 appendix A.1 (ub-common-name, ub-organization-name, ub-emailaddress-length).
const (
	maxName  = 64 // characters
	maxEmail = 255
)

// Subject is what the CSR says of the vendor. Apple puts its own subject into the certificate, and takes the CSR
// for its key.
type Subject struct {
	Email        string // an address, ASCII
	CommonName   string // 1 to 64 characters
	Organization string // at most 64 characters; empty: left out
	Country      string // ISO 3166-1, two capital letters
}

// Check says what cannot stand in a CSR; the error is an *Error that wraps ErrSubject.
func (s Subject) Check() error {
	refuse := func(fix, format string, args ...any) error {
		return &Error{Err: fmt.Errorf("%w: "+format, append([]any{ErrSubject}, args...)...), Fix: fix}
	}
	address, err := mail.ParseAddress(s.Email)
	switch {
	case err != nil || address.Address != s.Email || strings.ContainsFunc(s.Email, func(r rune) bool { return r <= ' ' || r > '~' }):
		return refuse("write it as in mdm@example.com", "the email address %q is none", shorten(s.Email))
	case len(s.Email) > maxEmail:
		return refuse("", "the email address has %d characters; at most %d are allowed", len(s.Email), maxEmail)
	case s.CommonName == "":
		return refuse("give the vendor's name", "no common name")
	case len(s.Country) != 2 || strings.ContainsFunc(s.Country, func(r rune) bool { return r < 'A' || r > 'Z' }):
		return refuse("write two capital letters, as in US", "the country %q is no ISO 3166 code", shorten(s.Country))
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
// Access writes, whose CSRs Apple's portal was made for.
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

// CreateCSR makes the vendor's CSR (RFC 2986, DER), signed by the key with SHA-256. The same key and subject always
// give the same bytes. What was made is parsed and verified before it is given out.
//
// A key that is not RSA of 2048 bits is an *Error that wraps signer.ErrBadKey: the portal takes no other.
func CreateCSR(ctx context.Context, key signer.Signer, subject Subject) ([]byte, error) {
	if err := subject.Check(); err != nil {
		return nil, err
	}
	if err := CheckKey(key.Public()); err != nil {
		return nil, err
	}
	name, err := subject.rdn()
	if err != nil {
		return nil, fmt.Errorf("encode the subject: %w", err)
	}
	template := &x509.CertificateRequest{RawSubject: name, SignatureAlgorithm: x509.SHA256WithRSA}
	der, err := x509.CreateCertificateRequest(nil, template, requester{key, ctx})
	if err != nil {
		return nil, fmt.Errorf("make the CSR: %w", err)
	}
	made, err := x509.ParseCertificateRequest(der)
	switch {
	case err != nil:
		return nil, fmt.Errorf("read the CSR that was made: %w", err)
	case string(made.RawSubject) != string(name) || !key.Public().(*rsa.PublicKey).Equal(made.PublicKey):
		return nil, errors.New("read the CSR that was made: it has another subject or key")
	}
	if err := made.CheckSignature(); err != nil {
		return nil, fmt.Errorf("%w: of the CSR that was made: %w", signer.ErrBadSignature, err)
	}
	return der, nil
}

// CheckKey refuses a key that Apple's developer portal takes no CSR for.
func CheckKey(pub crypto.PublicKey) error {
	what := fmt.Sprintf("%T", pub)
	if key, ok := pub.(*rsa.PublicKey); ok {
		if key.N.BitLen() == KeyBits {
			return nil
		}
		what = fmt.Sprintf("RSA of %d bits", key.N.BitLen())
	}
	return &Error{
		Err: fmt.Errorf("%w: it is %s; Apple's developer portal takes the vendor's CSR for RSA of %d bits only", signer.ErrBadKey, what, KeyBits),
		Fix: fmt.Sprintf("make a key with hsmsign key generate --bits %d", KeyBits),
	}
}

// EncodeCSR is a CSR as PEM.
func EncodeCSR(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: csrBlock, Bytes: der})
}

// requester lets crypto/x509 sign through signer.Sign: with a deadline, for modules that want the message too, and
// verified.
type requester struct {
	signer.Signer
	ctx context.Context
}

// SignMessage makes it a crypto.MessageSigner.
func (r requester) SignMessage(_ io.Reader, message []byte, opts crypto.SignerOpts) ([]byte, error) {
	return signer.Sign(r.ctx, r.Signer, message, opts.HashFunc())
}

// shorten keeps an error to one line.
func shorten(s string) string {
	const most = 64
	if len(s) <= most {
		return s
	}
	return s[:most] + "..."
}
