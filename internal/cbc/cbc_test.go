package cbc

import (
	"bytes"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"hsmsign/internal/testkit"
)

var oids = map[string]asn1.ObjectIdentifier{
	"aes-128-cbc": {2, 16, 840, 1, 101, 3, 4, 1, 2}, "aes-192-cbc": {2, 16, 840, 1, 101, 3, 4, 1, 22},
	"aes-256-cbc": oidAES256, "des-ede3-cbc": {1, 2, 840, 113549, 3, 7}, "des-cbc": {1, 3, 14, 3, 2, 7},
}

func algorithm(oid asn1.ObjectIdentifier, iv []byte) pkix.AlgorithmIdentifier {
	der := testkit.Must(asn1.Marshal(iv))
	return pkix.AlgorithmIdentifier{Algorithm: oid, Parameters: asn1.RawValue{FullBytes: der}}
}

// OpenSSL encrypts the same, for every length around a block.
func TestOpenSSL(t *testing.T) {
	for name, oid := range oids {
		iv := bytes.Repeat([]byte{3}, 16)
		if strings.HasPrefix(name, "des") {
			iv = iv[:8]
		}
		c := testkit.Must(Parse(algorithm(oid, iv)))
		key := bytes.Repeat([]byte{7, 8, 9}, 11)[:c.KeySize]
		for _, n := range []int{0, 1, 7, 8, 15, 16, 17, 100} {
			plain := bytes.Repeat([]byte{'x'}, n)
			data := testkit.Must(c.Encrypt(key, plain))
			want := testkit.OpenSSL(t, "", plain, "enc", "-"+name, "-provider", "legacy", "-provider", "default",
				"-K", hex.EncodeToString(key), "-iv", hex.EncodeToString(iv))
			if !bytes.Equal(data, want) {
				t.Errorf("%s, %d bytes: %x, OpenSSL %x", name, n, data, want)
			}
			if got, err := c.Decrypt(key, data); err != nil || !bytes.Equal(got, plain) {
				t.Errorf("%s, %d bytes: %q, %v", name, n, got, err)
			}
		}
	}
}

func TestNewAES256(t *testing.T) {
	key := make([]byte, 32)
	first, alg := NewAES256()
	alg.Parameters.FullBytes = testkit.Must(asn1.Marshal(alg.Parameters)) // as in a parsed file
	data := testkit.Must(first.Encrypt(key, []byte("text")))
	if got, err := testkit.Must(Parse(alg)).Decrypt(key, data); err != nil || string(got) != "text" {
		t.Errorf("%q, %v", got, err)
	}
	if second, _ := NewAES256(); bytes.Equal(data, testkit.Must(second.Encrypt(key, []byte("text")))) {
		t.Error("the initialization vector is not random")
	}
}

func TestErrors(t *testing.T) {
	for _, tt := range []struct {
		alg  pkix.AlgorithmIdentifier
		want error
	}{
		{algorithm(asn1.ObjectIdentifier{1, 2, 3}, nil), ErrCipher},
		{algorithm(oidAES256, make([]byte, 8)), ErrDamaged},
		{pkix.AlgorithmIdentifier{Algorithm: oidAES256}, ErrDamaged},
	} {
		if _, err := Parse(tt.alg); !errors.Is(err, tt.want) {
			t.Errorf("%v: %v, want %v", tt.alg, err, tt.want)
		}
	}
	if _, err := Parse(algorithm(asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 46}, nil)); !errors.Is(err, ErrCipher) || !strings.Contains(err.Error(), "AES-GCM") {
		t.Errorf("AES-256-GCM: %v", err)
	}
	c, _ := NewAES256()
	key := make([]byte, 32)
	block := testkit.Must(c.block(key))
	// raw returns the ciphertext of one block with this end.
	raw := func(end ...byte) []byte {
		data := append(make([]byte, 16-len(end)), end...)
		for i := range data {
			data[i] ^= c.iv[i]
		}
		block.Encrypt(data, data)
		return data
	}
	for name, tt := range map[string]struct {
		data []byte
		want error
	}{
		"nothing": {nil, ErrDamaged}, "half a block": {make([]byte, 15), ErrDamaged}, "padding of 1": {raw(1), nil},
		"padding of 0": {raw(0), ErrPadding}, "padding of 17": {raw(17), ErrPadding}, "padding of 200": {raw(200), ErrPadding},
		"uneven padding": {raw(1, 2), ErrPadding}, "even padding": {raw(2, 2), nil},
	} {
		if _, err := c.Decrypt(key, tt.data); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
	}
	for _, f := range []func(key, data []byte) ([]byte, error){c.Encrypt, c.Decrypt} {
		if _, err := f(key[:5], raw(1)); err == nil {
			t.Error("a key of 5 bytes is accepted")
		}
	}
}
