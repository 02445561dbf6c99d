// Package signer is the center of hsmsign: a private key that stays in its store (a file, a PKCS#11 token, a cloud
// KMS) and signs there.
//
// A reference names a key ("file:vendor.key", "pkcs11:token=mdm;object=vendor?..."); ParseRef reads it. The Backend of
// the reference's scheme opens the key and returns a Signer. Sign signs a message and verifies the signature.
//
// A Signer is a crypto.Signer, so crypto/x509 and crypto/tls accept it. Everything here is safe for concurrent use.
// Errors wrap one of the families in errors.go and never contain a secret.
package signer

import (
	"context"
	"crypto"
	"crypto/rsa"
	_ "crypto/sha1" // #nosec G505 -- Apple's portal accepted SHA-1 from vendor certificates before 2021; used only on request
	_ "crypto/sha256"
	"fmt"
	"io"
)

// Signer is a private key that stays in its store. Safe for concurrent use. Errors wrap one of the families of this
// package.
type Signer interface {
	// Sign is SignContext without a deadline. It ignores rand: PKCS#1 v1.5 is deterministic.
	crypto.Signer
	// SignContext signs a digest (raw bytes, as long as the hash) with RSASSA-PKCS1-v1_5 and returns the signature (as
	// long as the modulus). It neither changes nor keeps the digest. The error wraps ErrUnsupported for a digest of
	// another length and for options that are not a crypto.Hash which the key supports, ctx.Err() if ctx ends first,
	// and ErrClosed after Close.
	SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error)
	// Close releases what the key uses. Closing twice is not an error.
	Close() error
}

// MessageSigner is implemented by Signers that need the whole message, because their module does not sign a bare digest.
// The Signer decides where the message is hashed.
type MessageSigner interface {
	SignMessageContext(ctx context.Context, message []byte, opts crypto.SignerOpts) ([]byte, error)
}

// Sign hashes the message with h, signs it, and verifies the signature with the key's public key before it returns: a
// faulty signature is never released (ErrBadSignature). A faulty RSA-CRT signature would reveal the key (Boneh,
// DeMillo, Lipton, 1997).
func Sign(ctx context.Context, key Signer, message []byte, h crypto.Hash) ([]byte, error) {
	pub, ok := key.Public().(*rsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("%w: a key of type %T; Apple accepts RSA only", ErrUnsupported, key.Public())
	}
	if !h.Available() {
		return nil, fmt.Errorf("%w: hash %v", ErrUnsupported, h)
	}
	hash := h.New()
	hash.Write(message)
	digest := hash.Sum(nil)

	var sig []byte
	var err error
	if ms, ok := key.(MessageSigner); ok {
		sig, err = ms.SignMessageContext(ctx, message, h)
	} else {
		sig, err = key.SignContext(ctx, digest, h)
	}
	if err != nil {
		return nil, err
	}
	if err := rsa.VerifyPKCS1v15(pub, h, digest, sig); err != nil {
		return nil, fmt.Errorf("%w: the key store returned %d bytes that its own public key does not verify", ErrBadSignature, len(sig))
	}
	return sig, nil
}

// CheckDigest returns the hash of opts. Every backend calls it before it signs. The error wraps ErrUnsupported unless the
// hash is one of allowed, without PSS, and the digest has its length.
func CheckDigest(digest []byte, opts crypto.SignerOpts, allowed ...crypto.Hash) (crypto.Hash, error) {
	if _, pss := opts.(*rsa.PSSOptions); pss {
		return 0, fmt.Errorf("%w: RSASSA-PSS; Apple accepts RSASSA-PKCS1-v1_5", ErrUnsupported)
	}
	if opts == nil {
		return 0, fmt.Errorf("%w: no hash given", ErrUnsupported)
	}
	h := opts.HashFunc()
	for _, a := range allowed {
		if h != a {
			continue
		}
		if len(digest) != h.Size() {
			return 0, fmt.Errorf("%w: a digest of %d bytes; %v has %d", ErrUnsupported, len(digest), h, h.Size())
		}
		return h, nil
	}
	return 0, fmt.Errorf("%w: hash %v", ErrUnsupported, h)
}

// CryptoSigner adapts a Signer to crypto/x509. SignMessage calls the function Sign: it works with modules that need the
// whole message, and it verifies the signature. Sign signs a digest with SignContext. Both end with ctx, so use the
// result for one call.
func CryptoSigner(ctx context.Context, key Signer) crypto.MessageSigner { return messageKey{ctx, key} }

type messageKey struct {
	ctx context.Context
	key Signer
}

func (k messageKey) Public() crypto.PublicKey { return k.key.Public() }

func (k messageKey) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.key.SignContext(k.ctx, digest, opts)
}

func (k messageKey) SignMessage(_ io.Reader, message []byte, opts crypto.SignerOpts) ([]byte, error) {
	return Sign(k.ctx, k.key, message, opts.HashFunc())
}
