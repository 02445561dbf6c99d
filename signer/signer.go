// Package signer is the centre of hsmsign: a private key that stays where it is, in a file, a PKCS#11 module
// or a cloud KMS, and signs there.
//
// A key is named by a reference ("file:vendor.key", "pkcs11:token=mdm;object=vendor?..."), which ParseRef
// reads. The backend for the reference's scheme opens it and gives a Signer. Sign then makes a signature over
// a message and verifies it before it hands it out:
//
//	ref, err := signer.ParseRef("file:vendor.key")
//	key, err := file.Backend(secrets).Open(ctx, ref)
//	defer key.Close()
//	sig, err := signer.Sign(ctx, key, der, crypto.SHA256)
//
// A Signer is a crypto.Signer, so it also drops into crypto/x509 and crypto/tls. Everything here is safe for
// concurrent use. Errors wrap one of the families in errors.go, and never hold a secret.
package signer

import (
	"context"
	"crypto"
	"crypto/rsa"
	_ "crypto/sha1" // #nosec G505 -- Apple's portal took SHA-1 from vendor certificates older than 2021; signed with only when asked for by name
	_ "crypto/sha256"
	"fmt"
)

// Signer is a private key that stays in its backend. It is a crypto.Signer, so it drops into crypto/x509, CMS
// and TLS. Safe for concurrent use. Errors wrap one of the families of this package.
type Signer interface {
	// Signer's Sign is SignContext without a deadline; its rand argument is ignored, as PKCS#1 v1.5 needs none.
	crypto.Signer
	// SignContext signs a digest (the hash's own length, raw bytes) with RSASSA-PKCS1-v1_5 and gives the
	// signature (as long as the modulus). The digest is neither changed nor kept. A digest of the wrong
	// length, and options that are not a plain crypto.Hash the key can sign with, wrap ErrUnsupported.
	// When ctx ends first the error wraps ctx.Err(); after Close it wraps ErrClosed.
	SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error)
	// Close gives back what the key holds. Closing twice is no error.
	Close() error
}

// MessageSigner is for modules that refuse to sign a bare digest: it is handed the message. A Signer that has
// this ability decides itself how the message is hashed.
type MessageSigner interface {
	SignMessageContext(ctx context.Context, message []byte, opts crypto.SignerOpts) ([]byte, error)
}

// Backend is one kind of key store.
type Backend struct {
	// Open finds the one key that ref names. Not finding it wraps ErrKeyNotFound, finding several
	// ErrAmbiguousKey with the matches listed.
	Open func(ctx context.Context, ref Ref) (Signer, error)
	// Generate makes the key that ref names and opens it. A key of that name wraps ErrKeyExists; nothing is
	// ever replaced.
	Generate func(ctx context.Context, ref Ref, spec KeySpec) (Signer, error)
	// List gives every private key that ref matches; what ref leaves out matches all. It may be empty.
	List func(ctx context.Context, ref Ref) ([]KeyInfo, error)
	// Diagnose and Certificates may be nil: then the backend has no such thing.
	Diagnose     Diagnose
	Certificates *CertificateStore
	// InFlight is how many signatures a batch should have under way with the key that ref names. Nil: that is for the
	// cores of this machine to say.
	InFlight func(ref Ref) int
}

// Sign hashes the message with h, signs it, and verifies the signature with the key's public key before it
// returns: a faulty HSM's signature never gets out (ErrBadSignature), which for RSA-CRT also means that a
// fault in the HSM cannot leak the key (Boneh, DeMillo, Lipton, 1997).
func Sign(ctx context.Context, key Signer, message []byte, h crypto.Hash) ([]byte, error) {
	pub, ok := key.Public().(*rsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("%w: a key of type %T; Apple takes RSA only", ErrUnsupported, key.Public())
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

// CheckDigest is the check that every backend makes before it signs: a plain hash of those given (not PSS),
// and a digest of exactly its length. The error wraps ErrUnsupported.
func CheckDigest(digest []byte, opts crypto.SignerOpts, allowed ...crypto.Hash) (crypto.Hash, error) {
	if _, pss := opts.(*rsa.PSSOptions); pss {
		return 0, fmt.Errorf("%w: RSASSA-PSS; Apple takes RSASSA-PKCS1-v1_5", ErrUnsupported)
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
			return 0, fmt.Errorf("%w: a digest of %d bytes where %v has %d", ErrUnsupported, len(digest), h, h.Size())
		}
		return h, nil
	}
	return 0, fmt.Errorf("%w: hash %v", ErrUnsupported, h)
}
