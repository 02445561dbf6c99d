package certreq

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
	"hsmsign/signer"
)

// strict is a key that signs only messages.
type strict struct{ *testkit.Signer }

func (s strict) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, io.ErrUnexpectedEOF
}
func (s strict) SignContext(context.Context, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, io.ErrUnexpectedEOF
}
func (s strict) SignMessageContext(_ context.Context, message []byte, opts crypto.SignerOpts) ([]byte, error) {
	hash := opts.HashFunc().New()
	hash.Write(message)
	return s.Signer.Sign(rand.Reader, hash.Sum(nil), opts)
}

// fickle returns another public key the first time.
type fickle struct {
	*testkit.Signer
	first crypto.PublicKey
	asked *int
}

func (f fickle) Public() crypto.PublicKey {
	if *f.asked++; *f.asked == 1 {
		return f.first
	}
	return f.Signer.Public()
}

func newKeys() (key, other *rsa.PrivateKey) { return testkit.Key("key"), testkit.Key("other") }

var subject = Subject{Email: "mdm@example.com", CommonName: "Example MDM", Organization: "Exämple", Country: "US"}

func TestCreate(t *testing.T) {
	key, _ := newKeys()
	want := testkit.Must(Create(t.Context(), testkit.NewSigner(key), subject))
	csr := testkit.Must(x509.ParseCertificateRequest(want))
	if err := csr.CheckSignature(); err != nil {
		t.Error(err)
	}
	if csr.SignatureAlgorithm != x509.SHA256WithRSA || !key.PublicKey.Equal(csr.PublicKey) || len(csr.Extensions) > 0 {
		t.Errorf("%v, %v", csr.SignatureAlgorithm, csr.Extensions)
	}
	// PKCS#1 v1.5 is deterministic: the bytes are the same every time, also if a strict module signs the message.
	for name, key := range map[string]signer.Signer{"again": testkit.NewSigner(key), "message": strict{testkit.NewSigner(key)}} {
		got, err := Create(t.Context(), key, subject)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: other bytes, %v", name, err)
		}
	}
	block, rest := pem.Decode(EncodePEM(want))
	if block == nil || block.Type != "CERTIFICATE REQUEST" || len(rest) > 0 || !bytes.Equal(block.Bytes, want) {
		t.Error("not one PEM block")
	}
	// The organization is optional.
	bare := subject
	bare.Organization = ""
	der := testkit.Must(Create(t.Context(), testkit.NewSigner(key), bare))
	if bytes.Contains(der, testkit.Must(asn1.Marshal(asn1.ObjectIdentifier{2, 5, 4, 10}))) {
		t.Error("the CSR has an empty organization")
	}
}

// OpenSSL reads the same names and verifies the signature.
func TestCreateForOpenSSL(t *testing.T) {
	key, _ := newKeys()
	der := testkit.Must(Create(t.Context(), testkit.NewSigner(key), Subject{CommonName: "Acme Gerätepark", Email: "mdm@acme.example", Country: "DE", Organization: "Acme GmbH"}))
	text := testkit.OpenSSL(t, "", EncodePEM(der), "req", "-verify", "-noout", "-subject", "-nameopt", "RFC2253,utf8,-esc_msb,show_type")
	const want = "subject=C=PRINTABLESTRING:DE,O=UTF8STRING:Acme GmbH,CN=UTF8STRING:Acme Gerätepark,emailAddress=IA5STRING:mdm@acme.example"
	if strings.TrimSpace(string(text)) != want {
		t.Errorf("OpenSSL reads %q, want %q", text, want)
	}
}

func TestCreateRefuses(t *testing.T) {
	key, other := newKeys()
	ec := testkit.Must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	errDown := errors.New("token is gone")
	for _, tt := range []struct {
		name string
		ctx  context.Context
		key  signer.Signer
		want error
	}{
		{"ECDSA", t.Context(), testkit.NewSigner(ec), signer.ErrBadKey},
		{"another key signs", t.Context(), &testkit.Signer{Signer: other, Other: key.Public()}, signer.ErrBadSignature},
		{"ended", ended, testkit.NewSigner(key), context.Canceled},
		{"down", t.Context(), &testkit.Signer{Signer: key, Fail: func() error { return errDown }}, errDown},
	} {
		der, err := Create(tt.ctx, tt.key, subject)
		if der != nil || !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
	// The signature verifies, but the CSR has another key.
	changed := fickle{testkit.NewSigner(other), key.Public(), new(int)}
	if der, err := Create(t.Context(), changed, subject); der != nil || err == nil || !strings.Contains(err.Error(), "another subject or key") {
		t.Errorf("a key that changes: %v", err)
	}
}

// The context also ends a signature over a digest, which older versions of crypto/x509 use.
func TestCryptoSigner(t *testing.T) {
	key, _ := newKeys()
	digest := make([]byte, crypto.SHA256.Size())
	signature, err := signer.CryptoSigner(t.Context(), testkit.NewSigner(key)).Sign(nil, digest, crypto.SHA256)
	if err != nil || rsa.VerifyPKCS1v15(&key.PublicKey, crypto.SHA256, digest, signature) != nil {
		t.Errorf("%v, or a signature that does not verify", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := signer.CryptoSigner(ended, testkit.NewSigner(key)).Sign(nil, digest, crypto.SHA256); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v", err)
	}
}

func TestSubject(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Subject)
		want   string // in the error; "": accepted
	}{
		{"good", func(*Subject) {}, ""},
		{"longest", func(s *Subject) { s.CommonName, s.Organization = strings.Repeat("ü", 64), strings.Repeat("x", 64) }, ""},
		{"longest email", func(s *Subject) { s.Email = strings.Repeat("a", 251) + "@b.c" }, ""},
		{"shortest", func(s *Subject) { *s = Subject{Email: "a@b", CommonName: "a", Country: "DE"} }, ""},
		{"empty", func(s *Subject) { *s = Subject{} }, "\"\" is not an email address"},
		{"no email", func(s *Subject) { s.Email = "" }, "\"\" is not an email address"},
		{"no at", func(s *Subject) { s.Email = "example.com" }, "is not an email address"},
		{"no domain", func(s *Subject) { s.Email = "mdm@" }, "is not an email address"},
		{"two ats", func(s *Subject) { s.Email = "a@b@c" }, "is not an email address"},
		{"blank in the email", func(s *Subject) { s.Email = "m dm@example.com" }, "is not an email address"},
		{"in brackets", func(s *Subject) { s.Email = "<a@example.com>" }, "is not an email address"},
		{"with a name", func(s *Subject) { s.Email = "A <a@example.com>" }, "is not an email address"},
		{"not ASCII", func(s *Subject) { s.Email = "ä@example.com" }, "is not an email address"},
		{"with a line", func(s *Subject) { s.Email = "a@example.com\n" }, "is not an email address"},
		{"long email", func(s *Subject) { s.Email = strings.Repeat("a", 252) + "@b.c" }, "256 characters"},
		{"no name", func(s *Subject) { s.CommonName = "" }, "the common name is empty"},
		{"long name", func(s *Subject) { s.CommonName = strings.Repeat("ü", 65) }, "the common name has 65 characters"},
		{"blank", func(s *Subject) { s.CommonName = " a" }, "the common name begins or ends with white space"},
		{"control character", func(s *Subject) { s.CommonName = "a\x00b" }, "control character"},
		{"newline", func(s *Subject) { s.CommonName = "a\nb" }, "control character"},
		{"name not UTF-8", func(s *Subject) { s.CommonName = "a\xff" }, "the common name is not UTF-8"},
		{"not UTF-8", func(s *Subject) { s.Organization = "a\xff" }, "the organization is not UTF-8"},
		{"long organization", func(s *Subject) { s.Organization = strings.Repeat("x", 65) }, "the organization has 65"},
		{"no country", func(s *Subject) { s.Country = "" }, "the country \"\""},
		{"small letters", func(s *Subject) { s.Country = "us" }, "the country \"us\""},
		{"not assigned", func(s *Subject) { s.Country = "ZZ" }, "the country \"ZZ\""},
		{"reserved", func(s *Subject) { s.Country = "UK" }, "the country \"UK\""},
		{"three letters", func(s *Subject) { s.Country = "USA" }, "the country \"USA\""},
		{"country's name", func(s *Subject) { s.Country = "Germany" }, "the country \"Germany\""},
		{"digits", func(s *Subject) { s.Country = "U1" }, "the country \"U1\""},
		{"endless", func(s *Subject) { s.Country = strings.Repeat("U", 1e6) }, "\"" + strings.Repeat("U", 64) + "\""},
	} {
		s := subject
		tt.change(&s)
		err := s.Check()
		if tt.want == "" {
			if err != nil {
				t.Errorf("%s: %v", tt.name, err)
			}
			continue
		}
		if !errors.Is(err, ErrSubject) || !strings.Contains(err.Error(), tt.want) || fault.Hint(err) == "" {
			t.Errorf("%s: %v, want %q and a hint", tt.name, err, tt.want)
		}
		// Create checks the subject before it uses the key, here nil.
		if _, err := Create(t.Context(), testkit.NewSigner(nil), s); !errors.Is(err, ErrSubject) {
			t.Errorf("%s: Create: %v", tt.name, err)
		}
	}
}

// The number of codes is that of ISO 3166-1, and they are capital letters in their order.
func TestCountries(t *testing.T) {
	n := 0
	for first := byte('A'); first <= 'Z'; first++ {
		seconds := []byte(countries[first])
		n += len(seconds)
		if !slices.IsSorted(seconds) || len(slices.Compact(seconds)) != len(countries[first]) {
			t.Errorf("%c: %s", first, countries[first])
		}
	}
	for _, code := range []string{"AD", "BQ", "CW", "GB", "SS", "SX", "US", "ZW"} {
		if !isCountry(code) {
			t.Errorf("%s is missing", code)
		}
	}
	if n != 249 {
		t.Errorf("%d codes", n)
	}
}

func TestSeeds(t *testing.T) { testkit.Seeds(t, "FuzzSubject", 2) }

// FuzzSubject checks that the CSR contains every accepted value unchanged.
func FuzzSubject(f *testing.F) {
	f.Add("mdm@example.com", "Example MDM", "Exämple", "US")
	key, _ := newKeys()
	f.Fuzz(func(t *testing.T, email, name, organization, country string) {
		s := Subject{Email: email, CommonName: name, Organization: organization, Country: country}
		der, err := Create(t.Context(), testkit.NewSigner(key), s)
		if err != nil {
			if !errors.Is(err, ErrSubject) {
				t.Fatalf("%+v: %v", s, err)
			}
			return
		}
		csr := testkit.Must(x509.ParseCertificateRequest(der))
		var got []string
		for _, a := range csr.Subject.Names {
			value, _ := a.Value.(string)
			got = append(got, value)
		}
		want := []string{email, name, organization, country}
		if organization == "" {
			want = []string{email, name, country}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	})
}
