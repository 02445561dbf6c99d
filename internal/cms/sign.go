package cms

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"time"

	"hsmsign/signer"
)

// The types of RFC 5652 section 5.
type (
	signedData struct {
		Version      int
		Digests      []pkix.AlgorithmIdentifier `asn1:"set"`
		Content      contentInfo
		Certificates asn1.RawValue
		Signers      []signerInfo `asn1:"set"`
	}
	signerInfo struct {
		Version    int
		ID         issuerAndSerial
		Digest     pkix.AlgorithmIdentifier
		Attributes asn1.RawValue
		Algorithm  pkix.AlgorithmIdentifier
		Signature  []byte
	}
	attribute struct {
		Type   asn1.ObjectIdentifier
		Values []any `asn1:"set"`
	}
)

// Sign returns a DER SignedData with the content inside, signed with RSASSA-PKCS1-v1_5 and SHA-256 at the time at. chain is
// the signer's certificate and those of its issuers, in this order; all are included. Signed attributes are content type,
// message digest and signing time. Sign works with every key store, and reads the result again with Verify, which shares no
// code with it, before it returns.
//
// The error is that of the key, or says that key and certificate do not match.
func Sign(ctx context.Context, key signer.Signer, chain []*x509.Certificate, content []byte, at time.Time) ([]byte, error) {
	if len(chain) == 0 {
		return nil, errors.New("sign without a certificate")
	}
	pub, ok := key.Public().(*rsa.PublicKey)
	if !ok || !pub.Equal(chain[0].PublicKey) {
		return nil, errors.New("the key is not that of the certificate")
	}
	digest := sha256.Sum256(content)
	attributes, err := asn1.MarshalWithParams([]attribute{
		{oidContentType, []any{oidData}},
		{oidMessageDigest, []any{digest[:]}},
		{oidSigningTime, []any{at.UTC().Truncate(time.Second)}},
	}, "set")
	if err != nil {
		return nil, err
	}
	signature, err := signer.Sign(ctx, key, attributes, crypto.SHA256)
	if err != nil {
		return nil, err
	}
	message, err := assemble(chain, content, attributes, signature)
	if err != nil {
		return nil, err
	}
	read, err := Verify(message, VerifyOptions{At: at})
	if err != nil {
		return nil, fmt.Errorf("the new signature cannot be read: %w", err)
	}
	if !read.Valid() || !read.Signer.Equal(chain[0]) || !bytes.Equal(read.Content, content) {
		return nil, fmt.Errorf("%w: the message that was made does not verify", signer.ErrBadSignature)
	}
	return message, nil
}

// assemble returns the message around a signature of the attributes.
func assemble(chain []*x509.Certificate, content, attributes, signature []byte) ([]byte, error) {
	inner, err := asn1.Marshal(content)
	if err != nil {
		return nil, err
	}
	var certificates []byte
	for _, cert := range chain {
		certificates = append(certificates, cert.Raw...)
	}
	attributes = slices.Clone(attributes)
	attributes[0] = 0xa0 // [0] IMPLICIT; what is signed has the tag of SET (RFC 5652 section 5.4)
	sha := pkix.AlgorithmIdentifier{Algorithm: oidSHA256}
	return wrap(oidSignedData, signedData{
		Version:      1,
		Digests:      []pkix.AlgorithmIdentifier{sha},
		Content:      contentInfo{oidData, asn1.RawValue{Class: asn1.ClassContextSpecific, IsCompound: true, Bytes: inner}},
		Certificates: asn1.RawValue{Class: asn1.ClassContextSpecific, IsCompound: true, Bytes: certificates},
		Signers: []signerInfo{{
			Version: 1, ID: issuerAndSerial{asn1.RawValue{FullBytes: chain[0].RawIssuer}, chain[0].SerialNumber},
			Digest: sha, Attributes: asn1.RawValue{FullBytes: attributes},
			Algorithm: pkix.AlgorithmIdentifier{Algorithm: oidRSAEncryption, Parameters: asn1.NullRawValue}, Signature: signature,
		}},
	})
}
