package signer_test

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"hsmsign/chain"
	"hsmsign/internal/testkit"
	"hsmsign/request"
	"hsmsign/signer"
)

// Nothing that reads requests, certificates or other signed structures accepts the probe message.
func TestProbeMessage(t *testing.T) {
	message := []byte(signer.ProbeMessage)
	for name, parse := range map[string]func() error{
		"CSR":                  func() error { _, err := request.DecodeCSR(message); return err },
		"DER CSR":              func() error { _, err := x509.ParseCertificateRequest(message); return err },
		"request":              func() error { _, err := request.Parse(message); return err },
		"certificate":          func() error { _, err := x509.ParseCertificate(message); return err },
		"certificates":         func() error { _, err := chain.Parse(message); return err },
		"tbs":                  func() error { var v struct{ A asn1.RawValue }; _, err := asn1.Unmarshal(message, &v); return err },
		"CRL":                  func() error { _, err := x509.ParseRevocationList(message); return err },
		"any DER, also a part": func() error { var v asn1.RawValue; _, err := asn1.Unmarshal(message, &v); return err },
		"JSON":                 func() error { var v any; return json.Unmarshal(message, &v) },
		"base64":               func() error { _, err := base64.StdEncoding.DecodeString(signer.ProbeMessage); return err },
	} {
		if parse() == nil {
			t.Errorf("%s: the probe message is one", name)
		}
	}
	if block, _ := pem.Decode(message); block != nil || strings.HasPrefix(signer.ProbeMessage, " ") || strings.ContainsFunc(signer.ProbeMessage, func(r rune) bool { return r > '~' }) {
		t.Error("the probe message is not plain text")
	}
}

// signed remembers the digests that a key signed.
type signed struct {
	*testkit.Signer
	digests [][]byte
}

func (s *signed) SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	s.digests = append(s.digests, slices.Clone(digest))
	return s.Signer.SignContext(ctx, digest, opts)
}

// A probe signs the probe message, and a faulty signature is an error.
func TestProbe(t *testing.T) {
	key := &signed{Signer: testkit.NewSigner(testkit.Key("probe"))}
	testkit.OK(t, signer.Probe(t.Context(), key))
	want := sha256.Sum256([]byte(signer.ProbeMessage))
	if len(key.digests) != 1 || !slices.Equal(key.digests[0], want[:]) {
		t.Errorf("the digests %x", key.digests)
	}
	if key.Public().(*rsa.PublicKey).N.BitLen() != 2048 {
		t.Error("another key")
	}
	key.Faulty = true
	if err := signer.Probe(t.Context(), key); !errors.Is(err, signer.ErrBadSignature) {
		t.Errorf("a faulty signature: %v", err)
	}
}

// An attempt without an id is known by the reason.
func TestOperationNames(t *testing.T) {
	o := &signer.Operation{Reason: "why"}
	o.Attempted("id 1", time.Time{}, nil) // not printable as one word: dropped
	o.Attempted("id-2", time.Time{}, errors.New("throttled"))
	if got := strings.Join(o.Names(), ","); got != "why,id-2" {
		t.Errorf("names %s", got)
	}
	if names := (*signer.Operation)(nil).Names(); names != nil {
		t.Errorf("no operation: %v", names)
	}
}
