package mdmcert

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/des" // #nosec G502 -- what the service encrypts with is not ours to choose; only read, never written
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
	"hsmsign/signer"
)

// MaxAttachment is the most that is read of a mailed attachment, in bytes. A real one has about 20 KB.
const MaxAttachment = 1 << 20

// maxRecipients bounds the private key operations that an attachment may ask for.
const maxRecipients = 8

// recipientYears is how long the certificate of NewRecipient is valid: nothing depends on it.
const recipientYears = 1

// NewRecipient makes the self-signed certificate (DER) to which the service encrypts its answer, for an RSA key that only
// decrypts.
func NewRecipient(ctx context.Context, key signer.Signer, now time.Time) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial.Add(serial, big.NewInt(1)), // never zero (RFC 5280 section 4.1.2.2)
		Subject:      pkix.Name{CommonName: "hsmsign mdmcert recipient"},
		NotBefore:    now.Add(-time.Hour), // clocks differ a little
		NotAfter:     now.AddDate(recipientYears, 0, 0),
		KeyUsage:     x509.KeyUsageKeyEncipherment, BasicConstraintsValid: true,
	}
	return x509.CreateCertificate(rand.Reader, template, template, key.Public(), signer.CryptoSigner(ctx, key))
}

// RFC 5652 section 6.1, as far as it is needed. RecipientInfo is a CHOICE; KeyTransRecipientInfo has no tag.
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
)

// Decrypt reads the attachment that the service mails: the hex digits, in lines, of a DER PKCS#7 EnvelopedData (RFC 5652);
// bare DER is taken too. It gives what was encrypted, the Push Certificate Request, unchecked. An error is a
// *fault.Finding.
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
		return nil, damaged("it is no PKCS#7, or cut short")
	}
	if !info.Type.Equal(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 3}) {
		return nil, damaged("it is PKCS#7 of type %v, not EnvelopedData", info.Type)
	}
	var envelope envelopedData
	if rest, err := asn1.Unmarshal(info.Content.Bytes, &envelope); err != nil || len(rest) > 0 {
		return nil, damaged("its EnvelopedData cannot be read")
	}
	if len(envelope.Recipients) > maxRecipients {
		return nil, damaged("it has %d recipients; at most %d are looked at", len(envelope.Recipients), maxRecipients)
	}
	for _, recipient := range envelope.Recipients {
		contentKey := unwrap(recipient, key)
		if contentKey == nil {
			continue
		}
		defer clear(contentKey)
		return envelope.Encrypted.decrypt(contentKey)
	}
	return nil, &fault.Finding{
		ID: "push.recipient", Severity: fault.SeverityError,
		Message: "the attachment is not encrypted to this key", Fix: "name the key that the order was placed with",
	}
}

func damaged(format string, args ...any) *fault.Finding {
	return &fault.Finding{
		ID: "push.attachment", Severity: fault.SeverityError,
		Message: "unreadable attachment: " + fmt.Sprintf(format, args...), Fix: "save the attachment of the service's mail again, unchanged",
	}
}

// unhex takes off the hex digits, and whatever white space the mail put between them.
func unhex(data []byte) ([]byte, error) {
	if len(data) > 1 && data[0] == 0x30 && data[1] >= 0x80 { // a SEQUENCE (X.690 section 8.9); no text begins so
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
		return nil, damaged("it is neither hex digits nor DER")
	}
	return der, nil
}

// unwrap gives the content's key, or nil where the recipient is another, or not encrypted to as RFC 8017 section 7.2 has it.
func unwrap(recipient asn1.RawValue, key *rsa.PrivateKey) []byte {
	var r keyTransRecipient
	if _, err := asn1.Unmarshal(recipient.FullBytes, &r); err != nil {
		return nil
	}
	if !r.Algorithm.Algorithm.Equal(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}) {
		return nil
	}
	//nolint:staticcheck // the service encrypts so; the key is used by hand, so nobody can ask it again and again
	contentKey, err := rsa.DecryptPKCS1v15(nil, key, r.Key)
	if err != nil {
		return nil
	}
	return contentKey
}

// decrypt takes the encryption off, and the padding (RFC 5652 section 6.3). The ciphers are those that OpenSSL and the Go
// libraries for PKCS#7 make EnvelopedData with.
func (e encryptedContent) decrypt(contentKey []byte) ([]byte, error) {
	newCipher, size := aes.NewCipher, 0
	switch e.Algorithm.Algorithm.String() {
	case "2.16.840.1.101.3.4.1.2":
		size = 16
	case "2.16.840.1.101.3.4.1.22":
		size = 24
	case "2.16.840.1.101.3.4.1.42":
		size = 32
	case "1.2.840.113549.3.7":
		newCipher, size = des.NewTripleDESCipher, 24 // #nosec G405 -- see the import
	case "1.3.14.3.2.7":
		newCipher, size = des.NewCipher, 8 // #nosec G405 -- see the import
	default:
		return nil, damaged("it is encrypted with cipher %v; AES, triple DES and DES in CBC mode are read", e.Algorithm.Algorithm)
	}
	if len(contentKey) != size {
		return nil, damaged("it has a key of %d bytes for a cipher of %d", len(contentKey), size)
	}
	block, err := newCipher(contentKey)
	if err != nil {
		return nil, err
	}
	var iv []byte
	if _, err := asn1.Unmarshal(e.Algorithm.Parameters.FullBytes, &iv); err != nil || len(iv) != block.BlockSize() ||
		len(e.Content) == 0 || len(e.Content)%block.BlockSize() != 0 {
		return nil, damaged("the initialisation vector or the ciphertext is not of whole blocks")
	}
	plain := make([]byte, len(e.Content))
	cipher.NewCBCDecrypter(block, iv).CryptBlocks(plain, e.Content)
	n := int(plain[len(plain)-1])
	if n < 1 || n > block.BlockSize() || !bytes.Equal(plain[len(plain)-n:], bytes.Repeat(plain[len(plain)-1:], n)) {
		return nil, damaged("what it decrypts to is not padded: it was changed on the way")
	}
	return plain[:len(plain)-n], nil
}
