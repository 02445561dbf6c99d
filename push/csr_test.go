package push

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"strings"
	"testing"

	"hsmsign/signer"
)

func TestNewCSR(t *testing.T) {
	k := newKit(t)
	der, err := NewCSR(t.Context(), k.key, Subject{Name: "Acme Gerätepark", Email: "mdm@acme.example", Country: "de", Organization: "Acme GmbH"})
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil || csr.CheckSignature() != nil || csr.SignatureAlgorithm != x509.SHA256WithRSA || !k.private.PublicKey.Equal(csr.PublicKey) {
		t.Fatalf("%v: not a CSR of this key, signed with SHA-256", err)
	}
	// OpenSSL reads the same names, and takes the signature.
	text := openssl(t, t.TempDir(), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}),
		"req", "-verify", "-noout", "-subject", "-nameopt", "RFC2253,utf8,-esc_msb,show_type")
	const want = "subject=C=PRINTABLESTRING:DE,O=PRINTABLESTRING:Acme GmbH,CN=UTF8STRING:Acme Gerätepark,emailAddress=IA5STRING:mdm@acme.example"
	if strings.TrimSpace(string(text)) != want {
		t.Errorf("OpenSSL reads %q, want %q", text, want)
	}
	// PKCS#1 v1.5 is deterministic, so the CSR is.
	again, err := NewCSR(t.Context(), k.key, Subject{Name: "Acme Gerätepark", Email: "mdm@acme.example", Country: "DE", Organization: "Acme GmbH"})
	if err != nil || !bytes.Equal(again, der) {
		t.Errorf("%v: the same key and subject give another CSR", err)
	}
}

func TestNewCSRFails(t *testing.T) {
	k := newKit(t)
	if _, err := NewCSR(t.Context(), down{k.key}, Subject{Name: "a", Email: "a@b", Country: "DE"}); !errors.Is(err, errDown) {
		t.Errorf("got %v", err)
	}
	if _, err := NewCSR(t.Context(), down{k.key}, Subject{}); !errors.Is(err, ErrSubject) {
		t.Errorf("got %v, and the key was asked", err)
	}
	wrong := mixed{k.key, k.other}
	if _, err := NewCSR(t.Context(), wrong, Subject{Name: "a", Email: "a@b", Country: "DE"}); !errors.Is(err, signer.ErrBadSignature) {
		t.Errorf("a signature by another key: %v", err)
	}
}

// mixed signs with another key than it shows.
type mixed struct {
	signer.Signer
	shown signer.Signer
}

func (m mixed) Public() crypto.PublicKey { return m.shown.Public() }

func TestSubjectCheck(t *testing.T) {
	good := Subject{Name: "Acme MDM", Email: "mdm@acme.example", Country: "DE"}
	for _, tt := range []struct {
		name   string
		change func(*Subject)
		ok     bool
	}{
		{"good", func(*Subject) {}, true},
		{"small letters", func(s *Subject) { s.Country = "us" }, true},
		{"64 characters", func(s *Subject) { s.Name = strings.Repeat("ä", 64) }, true},
		{"65 characters", func(s *Subject) { s.Name = strings.Repeat("a", 65) }, false},
		{"no name", func(s *Subject) { s.Name = "" }, false},
		{"newline", func(s *Subject) { s.Name = "a\nb" }, false},
		{"not UTF-8", func(s *Subject) { s.Name = "a\xff" }, false},
		{"organization of 65", func(s *Subject) { s.Organization = strings.Repeat("a", 65) }, false},
		{"no domain", func(s *Subject) { s.Email = "mdm@" }, false},
		{"no at", func(s *Subject) { s.Email = "acme.example" }, false},
		{"two ats", func(s *Subject) { s.Email = "a@b@c" }, false},
		{"not ASCII", func(s *Subject) { s.Email = "gerät@acme.example" }, false},
		{"blank", func(s *Subject) { s.Email = "m dm@acme.example" }, false},
		{"256 characters", func(s *Subject) { s.Email = strings.Repeat("a", 252) + "@b.c" }, false},
		{"country's name", func(s *Subject) { s.Country = "Germany" }, false},
		{"digits", func(s *Subject) { s.Country = "D1" }, false},
		{"no country", func(s *Subject) { s.Country = "" }, false},
	} {
		s := good
		tt.change(&s)
		if err := s.Check(); (err == nil) != tt.ok || err != nil && !errors.Is(err, ErrSubject) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}
