package testpki

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"time"
)

// ServerToken returns the JSON of a server token as Apple Business Manager makes them, with random credentials that open nothing.
func ServerToken(expiry time.Time) []byte {
	data, _ := json.Marshal(map[string]string{ // strings always marshal
		"consumer_key": "CK_" + rand.Text(), "consumer_secret": "CS_" + rand.Text(), "access_token": "AT_" + rand.Text(), "access_secret": "AS_" + rand.Text(),
		"access_token_expiry": expiry.UTC().Format(time.RFC3339),
	})
	return data
}

// ServerTokenPart returns the mail part around a server token, which Apple encrypts to the certificate of the MDM server with CMS
// EnvelopedData. Any CMS program does that: openssl cms -encrypt makes a file as Apple's portal gives.
func ServerTokenPart(token []byte) []byte {
	return fmt.Appendf(nil, "Content-Type: text/plain;charset=UTF-8\r\nContent-Transfer-Encoding: 7bit\r\n\r\n-----BEGIN MESSAGE-----\r\n%s\r\n-----END MESSAGE-----\r\n", token)
}

// ServerTokenKey returns a key and the self-signed certificate to which a server token is encrypted.
func ServerTokenKey(now time.Time) (*rsa.PrivateKey, *x509.Certificate, error) {
	key, err := rsa.GenerateKey(rand.Reader, keyBits)
	if err != nil {
		return nil, nil, fmt.Errorf("generate the server token's key: %w", err)
	}
	template := &x509.Certificate{
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(1, 0, 0), KeyUsage: x509.KeyUsageKeyEncipherment, BasicConstraintsValid: true,
	}
	template.Subject.CommonName = "hsmsign TEST MDM server"
	cert, err := issue(template, template, key.Public(), key)
	return key, cert, err
}
