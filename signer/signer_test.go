package signer

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"io"
	"testing"
)

// fake signs as it is told to.
type fake struct {
	public crypto.PublicKey
	sign   func(digest []byte, h crypto.Hash) ([]byte, error)
}

func (f fake) Public() crypto.PublicKey { return f.public }
func (f fake) Close() error             { return nil }
func (f fake) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return f.sign(digest, opts.HashFunc())
}
func (f fake) SignContext(_ context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return f.sign(digest, opts.HashFunc())
}

// messageFake is handed the message.
type messageFake struct {
	fake
	signMessage func(message []byte, h crypto.Hash) ([]byte, error)
}

func (f messageFake) SignMessageContext(_ context.Context, message []byte, opts crypto.SignerOpts) ([]byte, error) {
	return f.signMessage(message, opts.HashFunc())
}

func TestSign(t *testing.T) {
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	good := func(digest []byte, h crypto.Hash) ([]byte, error) { return rsa.SignPKCS1v15(nil, private, h, digest) }
	errDown := errors.New("token is gone")
	never := func([]byte, crypto.Hash) ([]byte, error) {
		t.Error("signed, where nothing was to be signed")
		return nil, nil
	}
	message := []byte("a certificate request")
	ofMessage := func(m []byte, h crypto.Hash) ([]byte, error) {
		if string(m) != string(message) {
			t.Errorf("the module was handed %q", m)
		}
		hash := h.New()
		hash.Write(m)
		return good(hash.Sum(nil), h)
	}
	flip := func(sign func([]byte, crypto.Hash) ([]byte, error)) func([]byte, crypto.Hash) ([]byte, error) {
		return func(b []byte, h crypto.Hash) ([]byte, error) {
			sig, err := sign(b, h)
			if err == nil {
				sig[0] ^= 1
			}
			return sig, err
		}
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey := func(sign func([]byte, crypto.Hash) ([]byte, error)) fake { return fake{&private.PublicKey, sign} }
	tests := []struct {
		name string
		key  Signer
		hash crypto.Hash
		want error
	}{
		{"SHA-256", rsaKey(good), crypto.SHA256, nil},
		{"SHA-1", rsaKey(good), crypto.SHA1, nil},
		{"message", messageFake{rsaKey(never), ofMessage}, crypto.SHA256, nil},
		{"signature with a wrong bit", rsaKey(flip(good)), crypto.SHA256, ErrBadSignature},
		{"signature of a message with a wrong bit", messageFake{rsaKey(never), flip(ofMessage)}, crypto.SHA256, ErrBadSignature},
		{"no signature", rsaKey(func([]byte, crypto.Hash) ([]byte, error) { return nil, nil }), crypto.SHA256, ErrBadSignature},
		{"signature of another hash", rsaKey(func(d []byte, _ crypto.Hash) ([]byte, error) {
			return good(append(d, make([]byte, 32)...)[:32], crypto.SHA256)
		}), crypto.SHA1, ErrBadSignature},
		{"error", rsaKey(func([]byte, crypto.Hash) ([]byte, error) { return nil, errDown }), crypto.SHA256, errDown},
		{"no hash", rsaKey(never), 0, ErrUnsupported},
		{"a hash that is not linked in", rsaKey(never), crypto.BLAKE2b_256, ErrUnsupported},
		{"not RSA", fake{ed.Public(), never}, crypto.SHA256, ErrUnsupported},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			sig, err := Sign(t.Context(), tt.key, message, tt.hash)
			if !errors.Is(err, tt.want) {
				t.Fatalf("error %v, want %v", err, tt.want)
			}
			if err != nil {
				if sig != nil {
					t.Error("a signature next to an error")
				}
				return
			}
			hash := tt.hash.New()
			hash.Write(message)
			if err := rsa.VerifyPKCS1v15(&private.PublicKey, tt.hash, hash.Sum(nil), sig); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestCheckDigest(t *testing.T) {
	both := []crypto.Hash{crypto.SHA256, crypto.SHA1}
	tests := []struct {
		name    string
		size    int
		opts    crypto.SignerOpts
		allowed []crypto.Hash
		ok      bool
	}{
		{"SHA-256", 32, crypto.SHA256, both, true},
		{"SHA-1", 20, crypto.SHA1, both, true},
		{"SHA-1 where only SHA-256 is", 20, crypto.SHA1, both[:1], false},
		{"nothing allowed", 32, crypto.SHA256, nil, false},
		{"short", 31, crypto.SHA256, both, false},
		{"long", 33, crypto.SHA256, both, false},
		{"SHA-1 called SHA-256", 20, crypto.SHA256, both, false},
		{"empty", 0, crypto.SHA256, both, false},
		{"MD5", 16, crypto.MD5, both, false},
		{"no hash", 32, crypto.Hash(0), both, false},
		{"no options", 32, nil, both, false},
		{"PSS", 32, &rsa.PSSOptions{Hash: crypto.SHA256}, both, false},
		{"PSS, nil", 32, (*rsa.PSSOptions)(nil), both, false},
	}
	for _, tt := range tests {
		h, err := CheckDigest(make([]byte, tt.size), tt.opts, tt.allowed...)
		if tt.ok && (err != nil || h != tt.opts.HashFunc()) || !tt.ok && !errors.Is(err, ErrUnsupported) {
			t.Errorf("%s: %v, %v", tt.name, h, err)
		}
	}
}
