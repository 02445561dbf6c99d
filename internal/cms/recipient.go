package cms

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"time"

	"hsmsign/signer"
)

// NewRecipient returns a self-signed certificate (DER) of a common name, to which others encrypt, for an RSA key that is used only
// to decrypt. It is valid for a year from an hour before now; services do not check that.
func NewRecipient(ctx context.Context, key signer.Signer, name string, now time.Time) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial.Add(serial, big.NewInt(1)), // never zero (RFC 5280 section 4.1.2.2)
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    now.Add(-time.Hour), // clocks differ
		NotAfter:     now.AddDate(1, 0, 0),
		KeyUsage:     x509.KeyUsageKeyEncipherment, BasicConstraintsValid: true,
	}
	return x509.CreateCertificate(rand.Reader, template, template, key.Public(), signer.CryptoSigner(ctx, key))
}
