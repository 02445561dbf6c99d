package vendorcert

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"strings"
	"testing"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
	"hsmsign/lifecycle/certreq"
	"hsmsign/signer"
)

func TestCreateCSR(t *testing.T) {
	w := newWorld(t)
	want, err := certreq.Create(t.Context(), testkit.NewSigner(w.key), subject)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := CreateCSR(t.Context(), testkit.NewSigner(w.key), subject); err != nil || !bytes.Equal(got, want) {
		t.Errorf("not the CSR that certreq makes: %v", err)
	}
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
		name    string
		ctx     context.Context
		key     signer.Signer
		subject certreq.Subject
		want    error
	}{
		{"RSA of 3072 bits", t.Context(), testkit.NewSigner(big), subject, signer.ErrBadKey},
		{"ECDSA", t.Context(), testkit.NewSigner(ec), subject, signer.ErrBadKey},
		{"another key signs", t.Context(), &testkit.Signer{Signer: w.other, Other: w.key.Public()}, subject, signer.ErrBadSignature},
		{"ended", ended, testkit.NewSigner(w.key), subject, context.Canceled},
		{"no subject", t.Context(), testkit.NewSigner(w.key), certreq.Subject{}, certreq.ErrSubject},
	} {
		der, err := CreateCSR(tt.ctx, tt.key, tt.subject)
		if der != nil || !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
	if err := CheckKey(big.Public()); !errors.Is(err, signer.ErrBadKey) || !strings.Contains(err.Error(), "RSA of 3072 bits") || !strings.Contains(fault.Hint(err), "--bits 2048") {
		t.Errorf("%v", err)
	}
}
