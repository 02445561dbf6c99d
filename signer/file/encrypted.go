package file

import (
	"context"
	"crypto/pbkdf2"
	"crypto/rsa"
	"crypto/sha1" // #nosec G505 -- the default PRF of PBKDF2 (RFC 8018 appendix A.2), as HMAC
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"hash"
	"slices"
	"strings"

	"golang.org/x/crypto/scrypt"

	"hsmsign/fault"
	"hsmsign/internal/cbc"
	"hsmsign/internal/filekind"
	"hsmsign/internal/pfx"
	"hsmsign/signer"
)

// The limits of a key derivation, so that a hostile file costs seconds and not minutes. The scrypt limit is sixteen times the default of OpenSSL.
const (
	maxIterations = pfx.MaxIterations
	maxScryptWork = 2 << 20 // N * r * p; the memory is 128 * N * r bytes, so at most 256 MiB
)

// The parameters of PBES2 (RFC 8018 appendix A.4).
type (
	encryptedInfo struct {
		Algorithm pkix.AlgorithmIdentifier
		Data      []byte
	}
	pbes2Params  struct{ KDF, Cipher pkix.AlgorithmIdentifier }
	pbkdf2Params struct {
		Salt       []byte
		Iterations int
		KeyLength  int                      `asn1:"optional"`
		PRF        pkix.AlgorithmIdentifier `asn1:"optional"`
	}
	scryptParams struct { // RFC 7914 section 7.1
		Salt      []byte
		N, R, P   int
		KeyLength int `asn1:"optional"`
	}
)

const fixOldPEM = "write the key as PKCS#8: hsmsign key convert"

// parseOldPEM reads a key with the encryption of RFC 1421, whose key derivation is one MD5. Existing files have it, such
// as every key of mdmctl.
func (s *session) parseOldPEM(ctx context.Context, block *pem.Block) (*rsa.PrivateKey, error) {
	cipher, _, _ := strings.Cut(block.Headers["DEK-Info"], ",")
	if !slices.Contains([]string{"DES-EDE3-CBC", "AES-128-CBC", "AES-192-CBC", "AES-256-CBC"}, cipher) {
		return nil, fault.Errorf("%w: PEM encrypted with %q; AES and triple DES in CBC mode are supported", signer.ErrBadKey, fault.Clip(cipher, 64)).Fix(s.fixConvert())
	}
	passphrase, err := s.passphrase(ctx)
	if err != nil {
		return nil, err
	}
	defer clear(passphrase)
	plain, err := x509.DecryptPEMBlock(block, passphrase) //nolint:staticcheck // deprecated because it is weak, of which Open warns
	defer clear(plain)
	if err := decrypted(plain, err, x509.IncorrectPasswordError); err != nil {
		return nil, err
	}
	return s.parse(ctx, &pem.Block{Bytes: plain})
}

// fixConvert returns the hint for a key that OpenSSL can convert to PKCS#8 with PBES2.
func (s *session) fixConvert() string {
	return fmt.Sprintf("convert it: openssl pkcs8 -topk8 -v2 aes-256-cbc -in %s -out NEW.key", s.path)
}

// parseEncrypted reads RFC 5208's EncryptedPrivateKeyInfo.
func (s *session) parseEncrypted(ctx context.Context, der []byte) (*rsa.PrivateKey, error) {
	var info encryptedInfo
	if _, err := asn1.Unmarshal(der, &info); err != nil {
		return nil, fmt.Errorf("%w: damaged PKCS#8: %w", signer.ErrBadKey, err)
	}
	if info.Algorithm.Algorithm.String() != "1.2.840.113549.1.5.13" {
		return nil, fault.Errorf("%w: PKCS#8 encrypted with %v; only PBES2 is supported", signer.ErrBadKey, info.Algorithm.Algorithm).Fix(s.fixConvert())
	}
	var params pbes2Params
	if _, err := asn1.Unmarshal(info.Algorithm.Parameters.FullBytes, &params); err != nil {
		return nil, fmt.Errorf("%w: damaged PBES2 parameters: %w", signer.ErrBadKey, err)
	}
	mode, err := cbc.Parse(params.Cipher)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", signer.ErrBadKey, err)
	}
	if mode.KeySize < 16 { // DES
		return nil, fmt.Errorf("%w: encrypted with DES, which is too weak", signer.ErrBadKey)
	}
	derive, err := derivation(params.KDF, mode.KeySize)
	if err != nil {
		return nil, err
	}
	passphrase, err := s.passphrase(ctx)
	if err != nil {
		return nil, err
	}
	defer clear(passphrase)
	derived, err := derive(passphrase)
	if err != nil {
		return nil, fmt.Errorf("%w: key derivation: %w", signer.ErrBadKey, err)
	}
	defer clear(derived)
	plain, err := mode.Decrypt(derived, info.Data)
	defer clear(plain)
	if err := decrypted(plain, err, cbc.ErrPadding); err != nil {
		return nil, err
	}
	return parsePKCS8(plain)
}

// decrypted returns the error of a decryption; padding is its error for a wrong padding. One wrong passphrase in 256 results
// in a valid padding, but not in a key.
func decrypted(plain []byte, err, padding error) error {
	switch {
	case errors.Is(err, padding), err == nil && filekind.Shape(plain) == "":
		return errWrongPassphrase()
	case err != nil:
		return fmt.Errorf("%w: %w", signer.ErrBadKey, err)
	}
	return nil
}

func errWrongPassphrase() error {
	return fmt.Errorf("%w: the passphrase is wrong, or the file is damaged", signer.ErrAuth)
}

// derivation reads the parameters of the key derivation and checks their limits.
func derivation(alg pkix.AlgorithmIdentifier, keyLength int) (func(passphrase []byte) ([]byte, error), error) {
	switch alg.Algorithm.String() {
	case "1.2.840.113549.1.5.12":
		var p pbkdf2Params
		if _, err := asn1.Unmarshal(alg.Parameters.FullBytes, &p); err != nil {
			return nil, fmt.Errorf("%w: damaged PBKDF2 parameters: %w", signer.ErrBadKey, err)
		}
		prf, err := pseudoRandom(p.PRF.Algorithm)
		if err != nil {
			return nil, err
		}
		if p.Iterations < 1 || p.Iterations > maxIterations {
			return nil, fmt.Errorf("%w: PBKDF2 with %d iterations; 1 to %d are accepted", signer.ErrBadKey, p.Iterations, maxIterations)
		}
		return func(passphrase []byte) ([]byte, error) {
			return pbkdf2.Key(prf, string(passphrase), p.Salt, p.Iterations, keyLength)
		}, nil
	case "1.3.6.1.4.1.11591.4.11":
		var p scryptParams
		if _, err := asn1.Unmarshal(alg.Parameters.FullBytes, &p); err != nil {
			return nil, fmt.Errorf("%w: damaged scrypt parameters: %w", signer.ErrBadKey, err)
		}
		if min(p.N, p.R, p.P) < 1 || max(p.N, p.R, p.P) > maxScryptWork ||
			p.N*p.R > maxScryptWork || p.N*p.R*p.P > maxScryptWork { // in this order nothing overflows
			return nil, fmt.Errorf("%w: scrypt with N=%d, r=%d, p=%d, which is above the limit", signer.ErrBadKey, p.N, p.R, p.P)
		}
		return func(passphrase []byte) ([]byte, error) {
			return scrypt.Key(passphrase, p.Salt, p.N, p.R, p.P, keyLength)
		}, nil
	}
	return nil, fmt.Errorf("%w: encrypted with key derivation %v; PBKDF2 and scrypt are supported", signer.ErrBadKey, alg.Algorithm)
}

// pseudoRandom returns the hash of PBKDF2 (RFC 8018 appendix B.1.2); the default is SHA-1.
func pseudoRandom(oid asn1.ObjectIdentifier) (func() hash.Hash, error) {
	switch oid.String() {
	case "", "1.2.840.113549.2.7":
		return sha1.New, nil
	case "1.2.840.113549.2.9":
		return sha256.New, nil
	case "1.2.840.113549.2.10":
		return sha512.New384, nil
	case "1.2.840.113549.2.11":
		return sha512.New, nil
	}
	return nil, fmt.Errorf("%w: PBKDF2 with the pseudo-random function %v", signer.ErrBadKey, oid)
}

// parsePKCS12 reads RFC 7292's PFX with one key.
func (s *session) parsePKCS12(ctx context.Context, der []byte) (*rsa.PrivateKey, error) {
	if err := pfx.Check(der); err != nil {
		return nil, fmt.Errorf("%w: %w", signer.ErrBadKey, err)
	}
	passphrase, err := s.passphrase(ctx)
	if err != nil {
		return nil, err
	}
	defer clear(passphrase)
	content, err := pfx.Decode(ctx, der, passphrase)
	switch {
	case errors.Is(err, pfx.ErrPassphrase):
		return nil, errWrongPassphrase()
	case err != nil && ctx.Err() != nil:
		return nil, err
	case err != nil:
		return nil, fault.Errorf("%w: %w", signer.ErrBadKey, err).Fix(fmt.Sprintf("extract the key: openssl pkcs12 -in %s -nocerts -out NEW.key", s.path))
	}
	return asRSA(content.Key)
}
