package identity

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
	"encoding/hex"
	"encoding/pem"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hsmsign/signer"
)

func TestCreateCSR(t *testing.T) {
	w := newWorld(t)
	want, err := CreateCSR(t.Context(), fake{Signer: w.key}, subject)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(want)
	if err != nil {
		t.Fatal(err)
	}
	if err := csr.CheckSignature(); err != nil {
		t.Error(err)
	}
	if csr.SignatureAlgorithm != x509.SHA256WithRSA || !w.key.PublicKey.Equal(csr.PublicKey) || len(csr.Extensions) > 0 {
		t.Errorf("%v, %v", csr.SignatureAlgorithm, csr.Extensions)
	}
	// SEQUENCE of SETs: emailAddress IA5String (16), CN UTF8String (0c), O UTF8String, C PrintableString (13).
	name, err := hex.DecodeString("305d" +
		"311e301c06092a864886f70d010901160f" + hex.EncodeToString([]byte("mdm@example.com")) +
		"311430120603550403" + "0c0b" + hex.EncodeToString([]byte("Example MDM")) +
		"3111300f060355040a" + "0c08" + hex.EncodeToString([]byte("Exämple")) +
		"310b3009060355040613025553")
	if err != nil {
		t.Fatal(err)
	}
	// The outer length follows from the parts.
	name[1] = byte(len(name) - 2)
	if !bytes.Equal(csr.RawSubject, name) {
		t.Errorf("subject %x, want %x", csr.RawSubject, name)
	}
	// Strict modules are handed the message; the bytes are the same every time.
	for name, key := range map[string]signer.Signer{"again": fake{Signer: w.key}, "message": strict{fake{Signer: w.key}}} {
		got, err := CreateCSR(t.Context(), key, subject)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: other bytes, %v", name, err)
		}
	}
	block, rest := pem.Decode(EncodeCSR(want))
	if block == nil || block.Type != "CERTIFICATE REQUEST" || len(rest) > 0 || !bytes.Equal(block.Bytes, want) {
		t.Error("not one PEM block")
	}
	// Without an organization there is none, not an empty one.
	bare := subject
	bare.Organization = ""
	der, err := CreateCSR(t.Context(), fake{Signer: w.key}, bare)
	if err != nil {
		t.Fatal(err)
	}
	oid, _ := asn1.Marshal(asn1.ObjectIdentifier{2, 5, 4, 10})
	if bytes.Contains(der, oid) {
		t.Error("an organization where none was given")
	}
}

func TestCreateCSRRefuses(t *testing.T) {
	w := newWorld(t)
	big, err := rsa.GenerateKey(rand.Reader, 3072)
	if err != nil {
		t.Fatal(err)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tt := range []struct {
		name string
		ctx  context.Context
		key  signer.Signer
		want error
	}{
		{"RSA of 3072 bits", t.Context(), fake{Signer: big}, signer.ErrBadKey},
		{"ECDSA", t.Context(), fake{Signer: ec}, signer.ErrBadKey},
		{"another key signs", t.Context(), fake{Signer: w.other, public: w.key.Public()}, signer.ErrBadSignature},
		{"ended", ended, fake{Signer: w.key}, context.Canceled},
	} {
		der, err := CreateCSR(tt.ctx, tt.key, subject)
		if der != nil || !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
	var e *Error
	if err := CheckKey(big.Public()); !errors.As(err, &e) || !strings.Contains(err.Error(), "RSA of 3072 bits") || !strings.Contains(e.Hint(), "--bits 2048") {
		t.Errorf("%v", err)
	}
}

func TestSubject(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Subject)
		want   string // of the refusal; "": none
	}{
		{"good", func(*Subject) {}, ""},
		{"longest", func(s *Subject) { s.CommonName, s.Organization = strings.Repeat("ü", 64), strings.Repeat("x", 64) }, ""},
		{"no email", func(s *Subject) { s.Email = "" }, "the email address \"\" is none"},
		{"no address", func(s *Subject) { s.Email = "example.com" }, "is none"},
		{"in brackets", func(s *Subject) { s.Email = "<a@example.com>" }, "is none"},
		{"with a name", func(s *Subject) { s.Email = "A <a@example.com>" }, "is none"},
		{"not ASCII", func(s *Subject) { s.Email = "ä@example.com" }, "is none"},
		{"with a line", func(s *Subject) { s.Email = "a@example.com\n" }, "is none"},
		{"long email", func(s *Subject) { s.Email = strings.Repeat("a", 250) + "@b.com" }, "256 characters"},
		{"no name", func(s *Subject) { s.CommonName = "" }, "no common name"},
		{"long name", func(s *Subject) { s.CommonName = strings.Repeat("ü", 65) }, "the common name has 65 characters"},
		{"blank", func(s *Subject) { s.CommonName = " a" }, "the common name begins or ends with a blank"},
		{"control character", func(s *Subject) { s.CommonName = "a\x00b" }, "control character"},
		{"not UTF-8", func(s *Subject) { s.Organization = "a\xff" }, "the organization is not UTF-8"},
		{"long organization", func(s *Subject) { s.Organization = strings.Repeat("x", 65) }, "the organization has 65"},
		{"no country", func(s *Subject) { s.Country = "" }, "the country \"\""},
		{"small letters", func(s *Subject) { s.Country = "us" }, "the country \"us\""},
		{"three letters", func(s *Subject) { s.Country = "USA" }, "the country \"USA\""},
		{"digits", func(s *Subject) { s.Country = "U1" }, "the country \"U1\""},
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
		if !errors.Is(err, ErrSubject) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
		if _, err := CreateCSR(t.Context(), fake{}, s); !errors.Is(err, ErrSubject) {
			t.Errorf("%s: CreateCSR: %v", tt.name, err)
		}
	}
}

// FuzzSubject: whatever is not refused stands in the CSR as it was given.
func FuzzSubject(f *testing.F) {
	f.Add("mdm@example.com", "Example MDM", "Exämple", "US")
	key := newWorld(f).key
	f.Fuzz(func(t *testing.T, email, name, organization, country string) {
		s := Subject{Email: email, CommonName: name, Organization: organization, Country: country}
		der, err := CreateCSR(t.Context(), fake{Signer: key}, s)
		if err != nil {
			if !errors.Is(err, ErrSubject) {
				t.Fatalf("%+v: %v", s, err)
			}
			return
		}
		csr, err := x509.ParseCertificateRequest(der)
		if err != nil {
			t.Fatal(err)
		}
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

var _ crypto.MessageSigner = requester{}
