// Package certreq makes certificate signing requests (RFC 2986) with any signer.Signer: the vendor's for Apple's
// developer portal, and the customer's for the MDM vendor.
//
// The functions depend only on their arguments and are safe for concurrent use if the Signer is.
package certreq

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"

	"hsmsign/fault"
	"hsmsign/internal/strictder"
	"hsmsign/signer"
)

// Create returns a CSR (DER) for an RSA key, signed with SHA-256. The same key and subject always give the same bytes.
// signer.Sign verifies the signature, and Create checks that the new CSR has this subject and key.
//
// Errors wrap ErrSubject, signer.ErrBadKey (not an RSA key), signer.ErrBadSignature, or the family of the key's error.
func Create(ctx context.Context, key signer.Signer, subject Subject) ([]byte, error) {
	if err := subject.Check(); err != nil {
		return nil, err
	}
	pub, ok := key.Public().(*rsa.PublicKey)
	if !ok {
		return nil, fault.Errorf("%w: a key of type %T; Apple accepts RSA only", signer.ErrBadKey, key.Public()).Fix("make an RSA key")
	}
	name, err := subject.rdn()
	if err != nil {
		return nil, fmt.Errorf("encode the subject: %w", err)
	}
	template := &x509.CertificateRequest{RawSubject: name, SignatureAlgorithm: x509.SHA256WithRSA}
	der, err := x509.CreateCertificateRequest(nil, template, signer.CryptoSigner(ctx, key))
	if err != nil {
		return nil, fmt.Errorf("make the CSR: %w", err)
	}
	made, err := strictder.ParseCertificateRequest(der)
	switch {
	case err != nil:
		return nil, fmt.Errorf("parse the new CSR: %w", err)
	case string(made.RawSubject) != string(name) || !pub.Equal(made.PublicKey):
		return nil, errors.New("parse the new CSR: it has another subject or key")
	}
	return der, nil
}

// EncodePEM returns a CSR as PEM (RFC 7468 section 7).
func EncodePEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}
