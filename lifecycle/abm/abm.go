// Package abm is about the server token of Apple Business Manager and Apple School Manager, with which an MDM server uses
// Apple's service for automated device enrollment (DEP).
//
// An administrator uploads the certificate of NewCertificate to Apple's portal, and downloads a file that ends in
// _smime.p7m: a mail (RFC 8551) with a CMS EnvelopedData around another mail part, which has JSON between two lines of
// dashes. Decrypt returns that JSON, and ParseToken reads when it expires, after a year.
//
// The functions depend only on their arguments and are safe for concurrent use. Refusals are *fault.Finding with the subject
// abm; they never contain a part of the token.
package abm

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/mail"
	"strings"
	"time"

	"hsmsign/fault"
	"hsmsign/internal/cms"
	"hsmsign/internal/filekind"
	"hsmsign/signer"
)

// MaxFile is the size limit of the file that Apple's portal gives, and of the token, in bytes. They have about 3 KB.
const MaxFile = 256 << 10

// NewCertificate returns the self-signed certificate (DER) to which Apple encrypts the token, for an RSA key that is used only
// to decrypt it. name is that of the MDM server, which only people read.
func NewCertificate(ctx context.Context, key signer.Signer, name string, now time.Time) ([]byte, error) {
	return cms.NewRecipient(ctx, key, name, now)
}

// Token is a server token: OAuth 1.0a credentials.
type Token struct {
	JSON   []byte    // a secret: the object as Apple made it
	Expiry time.Time // UTC
}

// values are the members of a token.
type values struct {
	ConsumerKey       string `json:"consumer_key"`
	ConsumerSecret    string `json:"consumer_secret"`
	AccessToken       string `json:"access_token"`
	AccessSecret      string `json:"access_secret"`
	AccessTokenExpiry string `json:"access_token_expiry"`
}

func refuse(format string, args ...any) *fault.Finding {
	return fault.Refuse("abm.token", format, args...).WithFix("download the server token again, and name the file unchanged")
}

// Decrypt returns the token in the file that Apple's portal gives. key is that of the certificate that was uploaded; see
// cms.Decrypt. The error is a finding, abm.token or abm.recipient, or that of a key that fails for another reason.
func Decrypt(ctx context.Context, file []byte, key crypto.Decrypter) (*Token, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if len(file) > MaxFile {
		return nil, refuse("the file is larger than %d bytes", MaxFile)
	}
	envelope, err := unwrap(file)
	if err != nil {
		return nil, err
	}
	content, err := cms.Decrypt(envelope, key)
	switch {
	case errors.Is(err, cms.ErrRecipient):
		return nil, fault.Refuse("abm.recipient", "the token is not encrypted to this key").WithFix("name the key whose certificate was uploaded before the download")
	case err != nil && fault.KindOf(err) != fault.Internal:
		return nil, err // of the key store
	case err != nil:
		f := refuse("the encrypted token cannot be read: %v", err)
		f.Fix = cmp.Or(fault.Hint(err), f.Fix)
		return nil, f
	}
	defer clear(content)
	text, err := message(content)
	if err != nil {
		return nil, err
	}
	return ParseToken(text)
}

// unwrap returns the DER or BER of a mail. Data that is no mail does not change.
func unwrap(file []byte) ([]byte, error) {
	if filekind.IsDER(file) {
		return file, nil
	}
	m, err := mail.ReadMessage(bytes.NewReader(bytes.TrimLeft(file, "\r\n")))
	if err != nil {
		return nil, refuse("it is %s, and not a file of Apple's portal", filekind.Of(file))
	}
	kind, _, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil || kind != "application/pkcs7-mime" && kind != "application/x-pkcs7-mime" {
		return nil, refuse("its content type is %q, want application/pkcs7-mime", fault.Clip(m.Header.Get("Content-Type"), 64))
	}
	if encoding := m.Header.Get("Content-Transfer-Encoding"); !strings.EqualFold(encoding, "base64") {
		return nil, refuse("its transfer encoding is %q, want base64", fault.Clip(encoding, 64))
	}
	body, err := io.ReadAll(m.Body)
	if err != nil {
		return nil, refuse("its body cannot be read")
	}
	der, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(string(body)), ""))
	if err != nil {
		return nil, refuse("its body is not base64, or was cut short")
	}
	return der, nil
}

const begin, end = "-----BEGIN MESSAGE-----", "-----END MESSAGE-----"

// message returns the text between the lines of the decrypted part.
func message(part []byte) ([]byte, error) {
	_, rest, found := bytes.Cut(part, []byte(begin))
	text, _, ended := bytes.Cut(rest, []byte(end))
	if !found || !ended {
		return nil, refuse("the decrypted content has no %q with its end", begin)
	}
	return bytes.TrimSpace(text), nil
}

// ParseToken reads the JSON of a token. The error is a finding, abm.token, without a part of it.
func ParseToken(data []byte) (*Token, error) {
	data = bytes.TrimSpace(data)
	var v values
	if len(data) > MaxFile || len(data) == 0 || data[0] != '{' || json.Unmarshal(data, &v) != nil { // its error may quote the token
		return nil, refuse("the token is not a JSON object with strings")
	}
	for _, member := range []struct{ name, value string }{
		{"consumer_key", v.ConsumerKey}, {"consumer_secret", v.ConsumerSecret}, {"access_token", v.AccessToken}, {"access_secret", v.AccessSecret},
	} {
		if member.value == "" {
			return nil, refuse("the token has no %s", member.name)
		}
	}
	expiry, err := time.Parse(time.RFC3339, v.AccessTokenExpiry)
	if err != nil {
		return nil, refuse("the access_token_expiry of the token is not a time (RFC 3339)")
	}
	return &Token{JSON: bytes.Clone(data), Expiry: expiry.UTC()}, nil
}
