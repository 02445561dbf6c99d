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
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"hsmsign/internal/testkit"
	"hsmsign/signer"
)

// strict is a key that signs messages only.
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

// fickle shows another key the first time than it signs with.
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

// madeOnce: RSA keys take a while.
var madeOnce = sync.OnceValues(func() (keys [2]*rsa.PrivateKey, err error) {
	for i := range keys {
		if keys[i], err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
			return keys, err
		}
	}
	return keys, nil
})

func newKeys(t testing.TB) (key, other *rsa.PrivateKey) {
	t.Helper()
	keys, err := madeOnce()
	if err != nil {
		t.Fatal(err)
	}
	return keys[0], keys[1]
}

var subject = Subject{Email: "mdm@example.com", CommonName: "Example MDM", Organization: "Exämple", Country: "US"}

func TestCreate(t *testing.T) {
	key, _ := newKeys(t)
	want, err := Create(t.Context(), testkit.NewSigner(key), subject)
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
	if csr.SignatureAlgorithm != x509.SHA256WithRSA || !key.PublicKey.Equal(csr.PublicKey) || len(csr.Extensions) > 0 {
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
	// Strict modules are handed the message; PKCS#1 v1.5 is deterministic, so the bytes are the same every time.
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
	// Without an organization there is none, not an empty one.
	bare := subject
	bare.Organization = ""
	der, err := Create(t.Context(), testkit.NewSigner(key), bare)
	if err != nil {
		t.Fatal(err)
	}
	oid, _ := asn1.Marshal(asn1.ObjectIdentifier{2, 5, 4, 10})
	if bytes.Contains(der, oid) {
		t.Error("an organization where none was given")
	}
}

// OpenSSL reads the same names, and takes the signature.
func TestCreateForOpenSSL(t *testing.T) {
	key, _ := newKeys(t)
	der, err := Create(t.Context(), testkit.NewSigner(key), Subject{CommonName: "Acme Gerätepark", Email: "mdm@acme.example", Country: "DE", Organization: "Acme GmbH"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "openssl", "req", "-verify", "-noout", "-subject", "-nameopt", "RFC2253,utf8,-esc_msb,show_type")
	cmd.Stdin = bytes.NewReader(EncodePEM(der))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	text, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, stderr.Bytes())
	}
	const want = "subject=C=PRINTABLESTRING:DE,O=UTF8STRING:Acme GmbH,CN=UTF8STRING:Acme Gerätepark,emailAddress=IA5STRING:mdm@acme.example"
	if strings.TrimSpace(string(text)) != want {
		t.Errorf("OpenSSL reads %q, want %q", text, want)
	}
}

func TestCreateRefuses(t *testing.T) {
	key, other := newKeys(t)
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
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
	// Its signature verifies; the CSR is still not the one that was asked for.
	changed := fickle{testkit.NewSigner(other), key.Public(), new(int)}
	if der, err := Create(t.Context(), changed, subject); der != nil || err == nil || !strings.Contains(err.Error(), "another subject or key") {
		t.Errorf("a key that changes: %v", err)
	}
}

// Where crypto/x509 hands over a digest, it is signed within the context's time too.
func TestCryptoSigner(t *testing.T) {
	key, _ := newKeys(t)
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
