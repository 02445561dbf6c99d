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
	"strings"
	"testing"

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
