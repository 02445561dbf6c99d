package mdmcert

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"math/big"
	"time"
	"unicode"

	"hsmsign/fault"
	"hsmsign/internal/cbc"
	"hsmsign/internal/filekind"
	"hsmsign/signer"
)

// MaxAttachment is the size limit of a mailed attachment, in bytes. The service's have about 20 KB.
const MaxAttachment = 1 << 20

// maxRecipients is how many private key operations an attachment can cause.
const maxRecipients = 8

// NewRecipient returns the self-signed certificate (DER) to which the service encrypts its answer, for an RSA key that is
// used only to decrypt. It is valid for a year; the service does not check that.
func NewRecipient(ctx context.Context, key signer.Signer, now time.Time) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial.Add(serial, big.NewInt(1)), // never zero (RFC 5280 section 4.1.2.2)
		Subject:      pkix.Name{CommonName: "hsmsign mdmcert recipient"},
		NotBefore:    now.Add(-time.Hour), // clocks differ
		NotAfter:     now.AddDate(1, 0, 0),
		KeyUsage:     x509.KeyUsageKeyEncipherment, BasicConstraintsValid: true,
	}
	return x509.CreateCertificate(rand.Reader, template, template, key.Public(), signer.CryptoSigner(ctx, key))
}

// The types of RFC 5652 section 6.1. RecipientInfo is a CHOICE; KeyTransRecipientInfo has no tag.
type (
	contentInfo struct {
		Type    asn1.ObjectIdentifier
		Content asn1.RawValue `asn1:"explicit,tag:0"`
	}
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
		Content   []byte `asn1:"tag:0"`
	}
	issuerAndSerial struct {
		Issuer asn1.RawValue
		Serial *big.Int
	}
)

var (
	oidData          = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	oidEnvelopedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 3}
	oidRSAESOAEP     = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 7}
	// oidAuthEnvelopedData is RFC 5083's, for modes that detect changes.
	oidAuthEnvelopedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 1, 23}
	oidRSAEncryption     = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
)

// Encrypt returns the attachment that a service mails: the hex digits of a DER PKCS#7 EnvelopedData (RFC 5652) with the
// content, for the certificate recipient (DER). The key is encrypted with PKCS #1 v1.5 and the content with AES-256-CBC,
// which all clients decrypt. The digits are one line without a newline, because MicroMDM's client refuses newlines.
//
// An unusable certificate wraps ErrOrder.
func Encrypt(content, recipient []byte) ([]byte, error) {
	cert, err := parseRecipient(recipient)
	if err != nil {
		return nil, err
	}
	mode, algorithm := cbc.NewAES256()
	contentKey := make([]byte, mode.KeySize)
	_, _ = rand.Read(contentKey) // never fails (Go 1.24)
	defer clear(contentKey)
	ciphertext, err := mode.Encrypt(contentKey, content)
	if err != nil {
		return nil, err
	}
	//nolint:staticcheck // the clients decrypt nothing else; the content key is fresh
	key, err := rsa.EncryptPKCS1v15(nil, cert.PublicKey.(*rsa.PublicKey), contentKey)
	if err != nil {
		return nil, fmt.Errorf("encrypt the answer: %w", err)
	}
	id, err := asn1.Marshal(issuerAndSerial{asn1.RawValue{FullBytes: cert.RawIssuer}, cert.SerialNumber})
	if err != nil {
		return nil, err
	}
	to, err := asn1.Marshal(keyTransRecipient{
		ID:        asn1.RawValue{FullBytes: id},
		Algorithm: pkix.AlgorithmIdentifier{Algorithm: oidRSAEncryption, Parameters: asn1.NullRawValue},
		Key:       key,
	})
	if err != nil {
		return nil, err
	}
	return encodeEnvelope(envelopedData{
		Recipients: []asn1.RawValue{{FullBytes: to}},
		Encrypted:  encryptedContent{oidData, algorithm, ciphertext},
	})
}

// encodeEnvelope returns the hex digits of an EnvelopedData.
func encodeEnvelope(envelope envelopedData) ([]byte, error) {
	inner, err := asn1.Marshal(envelope)
	if err != nil {
		return nil, err
	}
	der, err := asn1.Marshal(contentInfo{oidEnvelopedData, asn1.RawValue{Class: asn1.ClassContextSpecific, IsCompound: true, Bytes: inner}})
	if err != nil {
		return nil, err
	}
	return hex.AppendEncode(nil, der), nil
}

// Decrypt returns the content of the attachment that a service mails, the unchecked Push Certificate Request. The attachment
// is DER PKCS#7 EnvelopedData (RFC 5652) or its hex digits with any white space. The error is a *fault.Finding:
// push.attachment or push.recipient.
func Decrypt(attachment []byte, key *rsa.PrivateKey) ([]byte, error) {
	if len(attachment) > MaxAttachment {
		return nil, damaged("it is larger than %d bytes", MaxAttachment)
	}
	der, err := unhex(attachment)
	if err != nil {
		return nil, err
	}
	var info contentInfo
	if rest, err := asn1.Unmarshal(der, &info); err != nil || len(rest) > 0 {
		return nil, damaged("it is %s, not PKCS#7, or cut short", filekind.Of(der))
	}
	if info.Type.Equal(oidAuthEnvelopedData) {
		return nil, damaged("it is AuthEnvelopedData, encrypted with AES-GCM; only EnvelopedData in CBC mode is supported").WithFix(fixOpenSSL)
	}
	if !info.Type.Equal(oidEnvelopedData) {
		return nil, damaged("it is PKCS#7 of type %v, not EnvelopedData", info.Type)
	}
	var envelope envelopedData
	if rest, err := asn1.Unmarshal(info.Content.Bytes, &envelope); err != nil || len(rest) > 0 {
		return nil, damaged("its EnvelopedData cannot be read")
	}
	if len(envelope.Recipients) > maxRecipients {
		return nil, damaged("it has %d recipients; at most %d are allowed", len(envelope.Recipients), maxRecipients)
	}
	oaep := false
	for _, recipient := range envelope.Recipients {
		var r keyTransRecipient
		if _, err := asn1.Unmarshal(recipient.FullBytes, &r); err != nil || !r.Algorithm.Algorithm.Equal(oidRSAEncryption) {
			oaep = oaep || err == nil && r.Algorithm.Algorithm.Equal(oidRSAESOAEP)
			continue
		}
		//nolint:staticcheck // the service encrypts with it; a person decrypts, so there is no oracle
		if contentKey, err := rsa.DecryptPKCS1v15(nil, key, r.Key); err == nil {
			defer clear(contentKey)
			return envelope.Encrypted.decrypt(contentKey)
		}
	}
	if oaep {
		return nil, damaged("its key is encrypted with RSAES-OAEP; only PKCS #1 v1.5 is supported").WithFix(fixOpenSSL)
	}
	return nil, fault.Refuse("push.recipient", "the attachment is not encrypted to this key").WithFix("name the key of the order")
}

const fixOpenSSL = "decrypt it with openssl cms -decrypt -inform DER -inkey KEY"

func damaged(format string, args ...any) *fault.Finding {
	return fault.Refuse("push.attachment", "unreadable attachment: "+format, args...).
		WithFix("save the attachment of the service's mail again, unchanged")
}

// unhex decodes hex digits with any white space. It returns DER unchanged.
func unhex(data []byte) ([]byte, error) {
	if filekind.IsDER(data) {
		return data, nil
	}
	digits := bytes.Map(func(r rune) rune {
		if unicode.IsSpace(r) {
			return -1
		}
		return r
	}, bytes.TrimPrefix(data, []byte("\ufeff")))
	if len(digits) == 0 {
		return nil, damaged("it is empty")
	}
	der := make([]byte, hex.DecodedLen(len(digits)))
	if _, err := hex.Decode(der, digits); err != nil {
		return nil, damaged("it is %s, neither hex digits nor DER", filekind.Of(data))
	}
	return der, nil
}

// decrypt returns the content.
func (e encryptedContent) decrypt(contentKey []byte) ([]byte, error) {
	mode, err := cbc.Parse(e.Algorithm)
	if err != nil {
		return nil, damaged("%v", err)
	}
	if len(contentKey) != mode.KeySize {
		return nil, damaged("it has a key of %d bytes for a cipher with %d", len(contentKey), mode.KeySize)
	}
	plain, err := mode.Decrypt(contentKey, e.Content)
	if err != nil {
		return nil, damaged("%v", err)
	}
	return plain, nil
}
