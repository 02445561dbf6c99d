package pushcert

import (
	"bytes"
	"crypto/rsa"
	"fmt"

	"software.sslmate.com/src/go-pkcs12"

	"hsmsign/fault"
)

// Encryption is the encryption of a PKCS#12 file.
type Encryption int

// The encryptions. Modern is PBES2 with AES-256-CBC and PBKDF2-HMAC-SHA256 of 600,000 iterations, and a MAC with SHA-256;
// OpenSSL 1.1.1, Java 12, Windows Server 2019 and newer versions read it. Legacy is triple DES and SHA-1, for older ones.
const (
	Modern Encryption = iota
	Legacy
)

// The iterations of the key derivations and of the MAC. OWASP's Password Storage Cheat Sheet recommends 600,000; old
// importers expect OpenSSL's PKCS12_DEFAULT_ITER. The library's default of one iteration for the legacy MAC would make it
// easy to guess the passphrase.
const (
	iterations       = 600_000
	legacyIterations = 2048
)

// ErrPassphrase means a passphrase that importers cannot use.
var ErrPassphrase = fault.Auth.New("unusable passphrase")

// EncodePKCS12 returns the certificate and its private key as PKCS#12 (RFC 7292, DER), which MDM servers import
// (MDM_APNSCert.pfx). For another key the error is a *fault.Finding (push.key-mismatch); for a passphrase that is not
// printable ASCII it wraps ErrPassphrase.
func EncodePKCS12(cert *Certificate, private *rsa.PrivateKey, passphrase []byte, encryption Encryption) ([]byte, error) {
	if err := cert.MatchKey(private.Public()); err != nil {
		return nil, err
	}
	// OpenSSL and Windows encode other characters differently, and Java refuses them for PBES2.
	if bytes.ContainsFunc(passphrase, func(r rune) bool { return r < ' ' || r > '~' }) {
		return nil, fault.Errorf("%w: it contains characters other than printable ASCII, which importers encode differently", ErrPassphrase).
			Fix("use letters, digits, punctuation and spaces")
	}
	// Not the newer PBMAC1 of RFC 9579: OpenSSL 3.0 and Java 17 do not read it.
	encoder := pkcs12.Modern2023.WithIterations(iterations)
	if encryption == Legacy {
		encoder = pkcs12.LegacyDES.WithIterations(legacyIterations)
	}
	pfx, err := encoder.Encode(private, cert.Certificate, nil, string(passphrase))
	if err != nil {
		return nil, fmt.Errorf("encode PKCS#12: %w", err)
	}
	return pfx, nil
}
