package mdmcert

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rsa"
	"encoding/hex"
	"errors"
	"fmt"
	"time"
	"unicode"

	"hsmsign/fault"
	"hsmsign/internal/cms"
	"hsmsign/internal/filekind"
	"hsmsign/signer"
)

// MaxAttachment is the size limit of a mailed attachment, in bytes. The service's have about 20 KB.
const MaxAttachment = 1 << 20

// NewRecipient returns the self-signed certificate (DER) to which the service encrypts its answer, for an RSA key that is
// used only to decrypt. It is valid for a year; the service does not check that.
func NewRecipient(ctx context.Context, key signer.Signer, now time.Time) ([]byte, error) {
	return cms.NewRecipient(ctx, key, "hsmsign mdmcert recipient", now)
}

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
	der, err := cms.Encrypt(content, cert)
	if err != nil {
		return nil, fmt.Errorf("encrypt the answer: %w", err)
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
	content, err := cms.Decrypt(der, key)
	switch {
	case errors.Is(err, cms.ErrRecipient):
		return nil, fault.Refuse("push.recipient", "the attachment is not encrypted to this key").WithFix("name the key of the order")
	case err != nil:
		f := damaged("%v", err)
		f.Fix = cmp.Or(fault.Hint(err), f.Fix)
		return nil, f
	}
	return content, nil
}

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
