package signer

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"errors"
	"testing"

	"hsmsign/internal/testkit"
)

// messageSigner accepts whole messages only.
type messageSigner struct {
	*testkit.Signer
	digest  *testkit.Signer // that signs the digest of the message
	message string
}

func (m *messageSigner) SignMessageContext(ctx context.Context, message []byte, opts crypto.SignerOpts) ([]byte, error) {
	m.message = string(message)
	h := opts.HashFunc().New()
	h.Write(message)
	return m.digest.SignContext(ctx, h.Sum(nil), opts)
}

// changed is a Signer whose signatures are changed.
type changed struct {
	*testkit.Signer
	change func(sig []byte) []byte
}

func (c changed) SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	sig, err := c.Signer.SignContext(ctx, digest, opts)
	return c.change(sig), err
}

func TestSign(t *testing.T) {
	private := testkit.GoldenKey(t)
	good := func() *testkit.Signer { return testkit.NewSigner(private) }
	errDown := errors.New("token is gone")
	never := &testkit.Signer{Signer: private, Fail: func() error { t.Error("it was asked to sign"); return nil }}
	faulty := &testkit.Signer{Signer: private, Faulty: true}
	const message = "a certificate request"
	tests := []struct {
		name string
		key  Signer
		hash crypto.Hash
		want error
	}{
		{"SHA-256", good(), crypto.SHA256, nil},
		{"SHA-1", good(), crypto.SHA1, nil},
		{"message", &messageSigner{Signer: never, digest: good()}, crypto.SHA256, nil},
		{"signature with a wrong bit", faulty, crypto.SHA256, ErrBadSignature},
		{"signature of a message with a wrong bit", &messageSigner{Signer: never, digest: faulty}, crypto.SHA256, ErrBadSignature},
		{"no signature", changed{good(), func([]byte) []byte { return nil }}, crypto.SHA256, ErrBadSignature},
		{"short signature", changed{good(), func(sig []byte) []byte { return sig[1:] }}, crypto.SHA256, ErrBadSignature},
		{"signature of another key", &testkit.Signer{Signer: private, Other: &testkit.Key("other").PublicKey}, crypto.SHA256, ErrBadSignature},
		{"error", &testkit.Signer{Signer: private, Fail: func() error { return errDown }}, crypto.SHA256, errDown},
		{"no hash", never, 0, ErrUnsupported},
		{"a hash that is not linked", never, crypto.BLAKE2b_256, ErrUnsupported},
		{"not RSA", testkit.NewSigner(ed25519.NewKeyFromSeed(make([]byte, 32))), crypto.SHA256, ErrUnsupported},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			sig, err := Sign(t.Context(), tt.key, []byte(message), tt.hash)
			if !errors.Is(err, tt.want) || err != nil && sig != nil {
				t.Fatalf("%d bytes, %v; want %v", len(sig), err, tt.want)
			}
			if m, ok := tt.key.(*messageSigner); ok && m.message != message {
				t.Errorf("the module received %q", m.message)
			}
			if err == nil {
				verify(t, &private.PublicKey, tt.hash, message, sig)
			}
		})
	}
}

func verify(t *testing.T, public *rsa.PublicKey, h crypto.Hash, message string, sig []byte) {
	t.Helper()
	hash := h.New()
	hash.Write([]byte(message))
	testkit.OK(t, rsa.VerifyPKCS1v15(public, h, hash.Sum(nil), sig))
}

// TestCryptoSigner: signatures are verified, end with the context, and use the whole message if the module needs it.
func TestCryptoSigner(t *testing.T) {
	private := testkit.GoldenKey(t)
	key := testkit.NewSigner(private)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tt := range []struct {
		name string
		ctx  context.Context
		key  Signer
		want error
	}{
		{"good", t.Context(), key, nil},
		{"message", t.Context(), &messageSigner{Signer: &testkit.Signer{Signer: private, Faulty: true}, digest: key}, nil},
		{"faulty", t.Context(), &testkit.Signer{Signer: private, Faulty: true}, ErrBadSignature},
		{"ended", ended, key, context.Canceled},
	} {
		adapted := CryptoSigner(tt.ctx, tt.key)
		sig, err := adapted.SignMessage(nil, []byte("message"), crypto.SHA256)
		if !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
		if err == nil {
			verify(t, adapted.Public().(*rsa.PublicKey), crypto.SHA256, "message", sig)
		}
	}
	digest := crypto.SHA256.New()
	digest.Write([]byte("message"))
	sig := testkit.Value(CryptoSigner(t.Context(), key).Sign(nil, digest.Sum(nil), crypto.SHA256))(t)
	verify(t, &private.PublicKey, crypto.SHA256, "message", sig)
	if _, err := CryptoSigner(ended, key).Sign(nil, digest.Sum(nil), crypto.SHA256); !errors.Is(err, context.Canceled) {
		t.Errorf("a digest after the end: %v", err)
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
		{"SHA-1, which is not allowed", 20, crypto.SHA1, both[:1], false},
		{"nothing allowed", 32, crypto.SHA256, nil, false},
		{"short", 31, crypto.SHA256, both, false},
		{"long", 33, crypto.SHA256, both, false},
		{"a SHA-1 digest as SHA-256", 20, crypto.SHA256, both, false},
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
