package file

import (
	"context"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"hsmsign/fault"
	"hsmsign/internal/cbc"
	"hsmsign/internal/wholefile"
	"hsmsign/signer"
)

// iterations of PBKDF2-HMAC-SHA256 for a new key, as the Password Storage Cheat Sheet of OWASP recommends.
const iterations = 600_000

// envPassphrase is read if the reference names no passphrase file.
const envPassphrase = "HSMSIGN_PASSPHRASE" // #nosec G101 -- the name of a variable

// Generate creates an RSA key and writes it to the file that the reference names, which must not exist.
func (s *session) Generate(ctx context.Context, spec signer.KeySpec) (signer.Signer, error) {
	if !slices.Contains([]int{2048, 3072, 4096}, spec.Bits) {
		return nil, fmt.Errorf("%w: RSA of %d bits; keys of 2048, 3072 or 4096 bits are created", signer.ErrUnsupported, spec.Bits)
	}
	// Before the prompt for a passphrase; write checks it again.
	if _, err := os.Lstat(s.path); err == nil {
		return nil, s.exists()
	}
	dir := filepath.Dir(s.path)
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return nil, fault.Errorf("%w: there is no folder %q", signer.ErrReference, dir).Fix("create the folder")
	}
	passphrase, err := s.newPassphrase(ctx)
	if err != nil {
		return nil, err
	}
	defer clear(passphrase)
	private, err := rsa.GenerateKey(rand.Reader, spec.Bits)
	if err != nil {
		return nil, err
	}
	text, err := EncodePEM(private, passphrase)
	if err != nil {
		return nil, err
	}
	defer clear(text)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := s.write(text); err != nil {
		return nil, err
	}
	return newKey(s.ref, private), nil
}

func (s *session) exists() error {
	return fault.Errorf("%w: file %q", signer.ErrKeyExists, s.path).Fix("name another file; nothing is replaced")
}

// write writes the complete file or nothing.
func (s *session) write(text []byte) error {
	err := wholefile.Write(s.path, text, 0o600, false)
	if errors.Is(err, fs.ErrExist) {
		return s.exists()
	}
	return err
}

// newPassphrase returns the passphrase of a new key, or nil if the key may be written without one.
func (s *session) newPassphrase(ctx context.Context) ([]byte, error) {
	if s.passphraseFile != "" || s.Secrets.Getenv != nil && s.Secrets.Getenv(envPassphrase) != "" {
		return s.passphrase(ctx)
	}
	if s.unencrypted {
		if s.Warn != nil {
			s.Warn(fmt.Sprintf("unencrypted=allow: everyone who can read %q can sign", s.path))
		}
		return nil, nil
	}
	passphrase, err := s.Secrets.ReadNew(ctx, fmt.Sprintf("new passphrase of %q", s.path))
	switch {
	case err != nil && s.Secrets.Prompt == nil:
		return nil, fault.Errorf("%w: %w", signer.ErrAuth, err).
			Fix("add ?passphrase-file=PATH to the reference, or set " + envPassphrase + "; for a test key, add ?unencrypted=allow")
	case err != nil:
		return nil, fmt.Errorf("%w: %w", signer.ErrAuth, err)
	}
	return passphrase, nil
}

// EncodePEM returns a key as PKCS#8 in PEM, encrypted with PBES2 (PBKDF2-HMAC-SHA256 with 600,000 iterations,
// AES-256-CBC), or not encrypted if the passphrase is nil. The caller clears the result after use.
func EncodePEM(private *rsa.PrivateKey, passphrase []byte) ([]byte, error) {
	plain, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, err
	}
	defer clear(plain)
	block := pem.Block{Type: "PRIVATE KEY", Bytes: plain}
	if passphrase != nil {
		block.Type = "ENCRYPTED PRIVATE KEY"
		if block.Bytes, err = encrypt(plain, passphrase); err != nil {
			return nil, err
		}
	}
	return pem.EncodeToMemory(&block), nil
}

// encrypt returns RFC 5208's EncryptedPrivateKeyInfo with PBES2: PBKDF2-HMAC-SHA256 and AES-256-CBC.
func encrypt(plain, passphrase []byte) ([]byte, error) {
	salt := make([]byte, 16)
	_, _ = rand.Read(salt) // never fails (Go 1.24)
	derived, err := pbkdf2.Key(sha256.New, string(passphrase), salt, iterations, 32)
	if err != nil {
		return nil, err
	}
	defer clear(derived)
	mode, algorithm := cbc.NewAES256()
	data, err := mode.Encrypt(derived, plain)
	if err != nil {
		return nil, err
	}
	identifier := func(oid asn1.ObjectIdentifier, params any) (pkix.AlgorithmIdentifier, error) {
		der, err := asn1.Marshal(params)
		return pkix.AlgorithmIdentifier{Algorithm: oid, Parameters: asn1.RawValue{FullBytes: der}}, err
	}
	kdf, errKDF := identifier(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 12}, pbkdf2Params{
		Salt: salt, Iterations: iterations,
		PRF: pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 2, 9}, Parameters: asn1.NullRawValue},
	})
	pbes2, errPBES2 := identifier(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 13}, pbes2Params{KDF: kdf, Cipher: algorithm})
	if err := errors.Join(errKDF, errPBES2); err != nil {
		return nil, err
	}
	return asn1.Marshal(encryptedInfo{Algorithm: pbes2, Data: data})
}
