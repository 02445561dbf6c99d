//go:build cgo

package pkcs11

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"hsmsign/signer"
)

func TestFindKey(t *testing.T) {
	tok := newToken(t)
	text, _ := vendorKey(t)
	tok.Import(t, text, "R&D a+b", []byte{0xff, 0x00})
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	tok.Import(t, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), "curve", []byte{9})

	ref := func(path string) string { return strings.Replace(tok.Ref(""), "?", ";"+path+"?", 1) }
	for _, path := range []string{"object=vendor", "id=%01", "object=vendor;id=%01;type=private", "object=R&D%20a+b", "id=%ff%00"} {
		mustOpen(t, ref(path))
	}
	mustOpen(t, tok.Ref("R&D a+b"))

	all := []string{`object="vendor" id=%01`, `object="R&D a+b" id=%FF%00`, `object="curve" id=%09 (not RSA)`}
	bad := []struct {
		path   string
		family error
		says   []string
	}{
		{"object=vendor;id=%02", signer.ErrKeyNotFound, all},
		{"object=vendo", signer.ErrKeyNotFound, all},
		{"id=", signer.ErrKeyNotFound, all},
		{"object=curve", signer.ErrKeyNotFound, all},
		{"type=private", signer.ErrAmbiguousKey, all[:2]},
	}
	for _, tt := range bad {
		_, err := Backend(Options{}).Open(t.Context(), parse(t, ref(tt.path)), signer.OpenOptions{})
		refused(t, err, tt.family, tt.says...)
	}

	for n := range 12 {
		tok.Import(t, text, "many", []byte{0x40, byte(n)})
	}
	_, err = Backend(Options{}).Open(t.Context(), parse(t, tok.Ref("many")), signer.OpenOptions{})
	refused(t, err, signer.ErrAmbiguousKey, "; and more")
	if n := strings.Count(err.Error(), `object="many" id=`); n != maxListed {
		t.Errorf("%d keys listed; want %d", n, maxListed)
	}
}

// The certificate's key chooses where the reference names no object, whether or not the token shows the modulus of
// private keys.
func TestFindKeyByPublicKey(t *testing.T) {
	tok := newToken(t)
	_, private := vendorKey(t)
	for n := range 12 { // more than an error lists
		other, err := rsa.GenerateKey(rand.Reader, 1024)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(other)
		if err != nil {
			t.Fatal(err)
		}
		tok.Import(t, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), "other", []byte{0x40, byte(n)})
	}
	s := script(t, tok.Module)
	open := func(pub crypto.PublicKey, ref string) (signer.Signer, error) {
		return Backend(Options{}).Open(t.Context(), parse(t, ref), signer.OpenOptions{PublicKey: pub})
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, hidden := range []bool{false, true} {
		s.hideModulus = hidden
		key, err := open(&private.PublicKey, tok.Ref(""))
		if err != nil {
			t.Fatalf("hidden %v: %v", hidden, err)
		}
		if !private.PublicKey.Equal(key.Public()) {
			t.Error("it is another key")
		}
		if err := key.Close(); err != nil {
			t.Error(err)
		}
	}
	s.hideModulus = false
	unknown, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		pub    crypto.PublicKey
		ref    string
		family error
	}{
		{nil, tok.Ref(""), signer.ErrAmbiguousKey},
		{ec.Public(), tok.Ref(""), signer.ErrAmbiguousKey},
		{&unknown.PublicKey, tok.Ref(""), signer.ErrKeyNotFound},
		{&private.PublicKey, tok.Ref("other"), signer.ErrAmbiguousKey}, // the reference comes first
	} {
		_, err := open(tt.pub, tt.ref)
		refused(t, err, tt.family)
	}
}

// Some tokens show the modulus of the public key only.
func TestPublicKeyObject(t *testing.T) {
	tok := newToken(t)
	text, private := vendorKey(t)
	s := script(t, tok.Module)
	tok.Import(t, text, "other", []byte{9})
	hide := func(code pkcs11.Error) {
		hidden := false
		s.attribute = func(a *pkcs11.Attribute) error {
			if a.Type == pkcs11.CKA_MODULUS && !hidden {
				hidden = true
				return code
			}
			return nil
		}
	}
	hide(pkcs11.CKR_ATTRIBUTE_SENSITIVE)
	key := mustOpen(t, tok.Ref("vendor"))
	if !private.PublicKey.Equal(key.Public()) {
		t.Error("the public key is another one")
	}
	tok.Import(t, text, "twin", []byte{1})
	if err := key.Close(); err != nil {
		t.Fatal(err)
	}
	hide(pkcs11.CKR_ATTRIBUTE_SENSITIVE)
	_, err := Backend(Options{}).Open(t.Context(), parse(t, tok.Ref("vendor")), signer.OpenOptions{})
	refused(t, err, signer.ErrBadKey, "2 public keys have its id")
	hide(pkcs11.CKR_DEVICE_ERROR) // no reason to look elsewhere
	_, err = Backend(Options{}).Open(t.Context(), parse(t, tok.Ref("vendor")), signer.OpenOptions{})
	refused(t, err, signer.ErrUnavailable, "C_GetAttributeValue", "CKR_DEVICE_ERROR")
}

func TestParsePublicKey(t *testing.T) {
	_, private := vendorKey(t)
	n := private.N.Bytes()
	odd := func(bits int) []byte { return new(big.Int).SetBit(big.NewInt(1), bits-1, 1).Bytes() }
	tests := []struct {
		name string
		n, e []byte
		says string
	}{
		{"the test key", n, []byte{1, 0, 1}, ""},
		{"leading zeros", append([]byte{0, 0}, n...), []byte{0, 3}, ""},
		{"1024 bits", odd(1024), []byte{3}, ""},
		{"1023 bits", odd(1023), []byte{3}, "1023 bits"},
		{"16385 bits", odd(16385), []byte{3}, "16385 bits"},
		{"empty", nil, []byte{3}, "0 bits"},
		{"even modulus", append(n[:len(n):len(n)], 0), []byte{3}, "modulus is even"},
		{"no exponent", n, nil, "exponent"},
		{"exponent 1", n, []byte{1}, "exponent"},
		{"even exponent", n, []byte{4}, "exponent"},
		{"large exponent", n, []byte{0x80, 0, 0, 1}, "exponent"},
		{"huge exponent", n, n, "exponent"},
	}
	for _, tt := range tests {
		pub, err := parsePublicKey(tt.n, tt.e)
		switch {
		case tt.says == "" && (err != nil || pub.N.Cmp(new(big.Int).SetBytes(tt.n)) != 0):
			t.Errorf("%s: %v, %v", tt.name, pub, err)
		case tt.says != "" && (!errors.Is(err, signer.ErrBadKey) || !strings.Contains(err.Error(), tt.says)):
			t.Errorf("%s: error %v; want %q", tt.name, err, tt.says)
		}
	}
}
