// Package certreq makes certificate signing requests (RFC 2986) with any signer.Signer: the vendor's for Apple's
// developer portal, and the customer's for the MDM vendor.
//
//	subject := certreq.Subject{Email: "mdm@example.com", CommonName: "Example MDM", Country: "US"}
//	der, err := certreq.Create(ctx, key, subject)
//	err = os.WriteFile("example.csr", certreq.EncodePEM(der), 0o644)
//
// Everything here is a function of its arguments, and safe for concurrent use as far as the Signer is.
package certreq

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"

	"hsmsign/signer"
)

// Create makes a CSR (DER) for an RSA key, signed with SHA-256. The same key and subject always give the same bytes.
// What was made is parsed and verified before it is given out.
//
// Errors wrap ErrSubject, or one of signer's families: ErrBadKey where the key is not RSA, ErrBadSignature,
// or that of the key's own failure.
func Create(ctx context.Context, key signer.Signer, subject Subject) ([]byte, error) {
	if err := subject.Check(); err != nil {
		return nil, err
	}
	pub, ok := key.Public().(*rsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("%w: a key of type %T; Apple takes RSA only", signer.ErrBadKey, key.Public())
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
	made, err := x509.ParseCertificateRequest(der)
	switch {
	case err != nil:
		return nil, fmt.Errorf("read the CSR that was made: %w", err)
	case string(made.RawSubject) != string(name) || !pub.Equal(made.PublicKey):
		return nil, errors.New("read the CSR that was made: it has another subject or key")
	}
	if err := made.CheckSignature(); err != nil {
		return nil, fmt.Errorf("%w: of the CSR that was made: %w", signer.ErrBadSignature, err)
	}
	return der, nil
}

// EncodePEM is a CSR as PEM (RFC 7468 section 7).
func EncodePEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}
