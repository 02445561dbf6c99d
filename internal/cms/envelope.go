package cms

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	"hsmsign/fault"
	"hsmsign/internal/cbc"
	"hsmsign/internal/filekind"
)

// MaxRecipients is how many recipients a message may have: each causes a private key operation of the reader.
const MaxRecipients = 8

// The sizes of a recipient's key, in bits.
const (
	minKeyBits = 2048
	maxKeyBits = 8192
)

// ErrRecipient means that a message is not encrypted to the key, or was changed: the two cannot be told apart.
var ErrRecipient = errors.New("it is not encrypted to this key")

// The types of RFC 5652 section 6.1. RecipientInfo is a CHOICE; KeyTransRecipientInfo has no tag.
type (
	envelopedData struct {
		Version    int
		Originator asn1.RawValue   `asn1:"optional,tag:0"`
		Recipients []asn1.RawValue `asn1:"set"`
		Encrypted  encryptedContent
		Attributes asn1.RawValue `asn1:"optional,tag:1"`
	}
	keyTransRecipient struct {
		Version   int
		ID        asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Key       []byte
	}
	encryptedContent struct {
		Type      asn1.ObjectIdentifier
		Algorithm pkix.AlgorithmIdentifier
		Content   asn1.RawValue `asn1:"tag:0"` // OCTET STRING, which BER may split
	}
	issuerAndSerial struct {
		Issuer asn1.RawValue
		Serial *big.Int
	}
)

// CheckRecipient returns why nothing can be encrypted to a certificate, or nil.
func CheckRecipient(cert *x509.Certificate) error {
	if pub, ok := cert.PublicKey.(*rsa.PublicKey); !ok || pub.N.BitLen() < minKeyBits || pub.N.BitLen() > maxKeyBits {
		return fmt.Errorf("it has no RSA key of %d to %d bits", minKeyBits, maxKeyBits)
	}
	return nil
}

// Encrypt returns a DER EnvelopedData with the content, for the keys of all recipients: the content with AES-256-CBC and a
// fresh key, which is encrypted to each recipient with RSAES-PKCS1-v1_5. Every reader in use decrypts these. The recipients
// must pass CheckRecipient; there are 1 to MaxRecipients of them.
func Encrypt(content []byte, recipients ...*x509.Certificate) ([]byte, error) {
	if len(recipients) == 0 || len(recipients) > MaxRecipients {
		return nil, fmt.Errorf("encrypt to %d recipients: there are 1 to %d", len(recipients), MaxRecipients)
	}
	mode, algorithm := cbc.NewAES256()
	contentKey := make([]byte, mode.KeySize)
	_, _ = rand.Read(contentKey) // never fails (Go 1.24)
	defer clear(contentKey)
	ciphertext, err := mode.Encrypt(contentKey, content)
	if err != nil {
		return nil, err
	}
	envelope := envelopedData{Encrypted: encryptedContent{
		oidData, algorithm, asn1.RawValue{Class: asn1.ClassContextSpecific, Bytes: ciphertext},
	}}
	for _, cert := range recipients {
		if err := CheckRecipient(cert); err != nil {
			return nil, fmt.Errorf("encrypt to the certificate %q: %w", cert.Subject.CommonName, err)
		}
		to, err := recipientOf(cert, contentKey)
		if err != nil {
			return nil, err
		}
		envelope.Recipients = append(envelope.Recipients, asn1.RawValue{FullBytes: to})
	}
	return wrap(oidEnvelopedData, envelope)
}

// recipientOf returns the content key, encrypted to a certificate.
func recipientOf(cert *x509.Certificate, contentKey []byte) ([]byte, error) {
	//nolint:staticcheck // the readers decrypt nothing else; the content key is fresh
	key, err := rsa.EncryptPKCS1v15(nil, cert.PublicKey.(*rsa.PublicKey), contentKey)
	if err != nil {
		return nil, fmt.Errorf("encrypt to the certificate %q: %w", cert.Subject.CommonName, err)
	}
	id, err := asn1.Marshal(issuerAndSerial{asn1.RawValue{FullBytes: cert.RawIssuer}, cert.SerialNumber})
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(keyTransRecipient{
		ID:        asn1.RawValue{FullBytes: id},
		Algorithm: pkix.AlgorithmIdentifier{Algorithm: oidRSAEncryption, Parameters: asn1.NullRawValue},
		Key:       key,
	})
}

// fixOpenSSL is the hint for messages that only other programs decrypt.
const fixOpenSSL = "decrypt it with openssl cms -decrypt -inform DER -inkey KEY"

// Decrypt returns the content of an EnvelopedData in DER or BER. key is an RSA key: rsa.PrivateKey, or one in a token. Each
// recipient of the message that could be the key is tried. Errors are phrases about the message ("it is ..."), and wrap
// ErrRecipient if no recipient is the key, or the error of a key that fails for another reason. CBC does not detect changes:
// the caller checks the content.
func Decrypt(message []byte, key crypto.Decrypter) ([]byte, error) {
	der, err := toDER(message)
	if err != nil {
		return nil, fmt.Errorf("it is %s, not PKCS#7, or cut short", filekind.Of(message))
	}
	var info contentInfo
	if _, err := asn1.Unmarshal(der, &info); err != nil {
		return nil, fmt.Errorf("it is %s, not PKCS#7, or cut short", filekind.Of(message))
	}
	if info.Type.Equal(oidAuthEnvelopedData) {
		return nil, fault.WithHint(errors.New("it is AuthEnvelopedData, encrypted with AES-GCM; only EnvelopedData in CBC mode is supported"), fixOpenSSL)
	}
	if !info.Type.Equal(oidEnvelopedData) {
		return nil, fmt.Errorf("it is PKCS#7 of type %v, not EnvelopedData", info.Type)
	}
	var envelope envelopedData
	if rest, err := asn1.Unmarshal(info.Content.Bytes, &envelope); err != nil || len(rest) > 0 {
		return nil, errors.New("its EnvelopedData cannot be read")
	}
	if len(envelope.Recipients) > MaxRecipients {
		return nil, fmt.Errorf("it has %d recipients; at most %d are allowed", len(envelope.Recipients), MaxRecipients)
	}
	return envelope.open(key)
}

// open tries the recipients one by one.
func (e envelopedData) open(key crypto.Decrypter) ([]byte, error) {
	oaep := false
	for _, recipient := range e.Recipients {
		var r keyTransRecipient
		if _, err := asn1.Unmarshal(recipient.FullBytes, &r); err != nil || !r.Algorithm.Algorithm.Equal(oidRSAEncryption) {
			oaep = oaep || err == nil && r.Algorithm.Algorithm.Equal(oidRSAESOAEP)
			continue
		}
		// A person decrypts a file, so there is nobody who could ask a thousand times (Bleichenbacher).
		contentKey, err := key.Decrypt(rand.Reader, r.Key, nil)
		if err == nil {
			defer clear(contentKey)
			return e.Encrypted.decrypt(contentKey)
		}
		if k := fault.KindOf(err); k != fault.Internal { // of the key store: the key was not asked
			return nil, err
		}
	}
	if oaep {
		return nil, fault.WithHint(errors.New("its key is encrypted with RSAES-OAEP; only PKCS #1 v1.5 is supported"), fixOpenSSL)
	}
	return nil, ErrRecipient
}

// decrypt returns the content.
func (e encryptedContent) decrypt(contentKey []byte) ([]byte, error) {
	mode, err := cbc.Parse(e.Algorithm)
	if err != nil {
		return nil, err
	}
	if len(contentKey) != mode.KeySize {
		return nil, fmt.Errorf("it has a key of %d bytes for a cipher with %d", len(contentKey), mode.KeySize)
	}
	ciphertext, err := joinPieces(e.Content)
	if err != nil {
		return nil, err
	}
	return mode.Decrypt(contentKey, ciphertext)
}
