package pushcert

import (
	"bytes"
	"crypto/rsa"
	"fmt"

	"software.sslmate.com/src/go-pkcs12"

	"hsmsign/fault"
)

// Encryption is how a PKCS#12 file is encrypted.
type Encryption int

// The encryptions. Modern: PBES2 with AES-256-CBC and PBKDF2-HMAC-SHA256 of 600,000 iterations, MAC with SHA-256; OpenSSL
// 1.1.1, Java 12, Windows Server 2019 and what is newer read it. Legacy: triple DES and SHA-1, for what is older.
const (
	Modern Encryption = iota
	Legacy
)

// The iterations of the key derivations and of the MAC. OWASP's Password Storage Cheat Sheet asks for 600,000; what is
// old was made for OpenSSL's PKCS12_DEFAULT_ITER. (The library's one round for the legacy MAC would give the passphrase to
// whoever tries many.)
const (
	iterations       = 600_000
	legacyIterations = 2048
)

// ErrPassphrase means a passphrase that importers could not use.
var ErrPassphrase = fault.Auth.New("unfit passphrase")

// EncodePKCS12 writes the certificate and its private key as PKCS#12 (RFC 7292, DER), as MDM servers import them
// (MDM_APNSCert.pfx). A key that is not the certificate's is a *fault.Finding; a passphrase that is not printable ASCII
// wraps ErrPassphrase.
func EncodePKCS12(cert *Certificate, private *rsa.PrivateKey, passphrase []byte, encryption Encryption) ([]byte, error) {
	if err := cert.MatchKey(private.Public()); err != nil {
		return nil, err
	}
	// OpenSSL and Windows encode other characters each in their own way, and Java takes none for PBES2.
	if bytes.ContainsFunc(passphrase, func(r rune) bool { return r < ' ' || r > '~' }) {
		return nil, fmt.Errorf("%w: it holds characters other than printable ASCII, which not every importer reads alike", ErrPassphrase)
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
