package file

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"hsmsign/internal/wholefile"
	"hsmsign/signer"
)

// iterations of PBKDF2-HMAC-SHA256 for a new key: OWASP's Password Storage Cheat Sheet asks for 600,000.
const iterations = 600_000

// envPassphrase is read where the reference names no passphrase file.
const envPassphrase = "HSMSIGN_PASSPHRASE" // #nosec G101 -- the name of a variable

// generate makes an RSA key and writes it to the file that the reference names, which must not exist yet.
func (o *opening) generate(ctx context.Context, spec signer.KeySpec) (*rsa.PrivateKey, error) {
	if err := o.settings(); err != nil {
		return nil, err
	}
	if !slices.Contains([]int{2048, 3072, 4096}, spec.Bits) {
		return nil, fmt.Errorf("%w: RSA of %d bits; 2048, 3072 or 4096 are generated", signer.ErrUnsupported, spec.Bits)
	}
	// Before anybody is asked for a passphrase; that it is still so is for write to say.
	if _, err := os.Lstat(o.path); err == nil {
		return nil, o.exists()
	}
	if dir := filepath.Dir(o.path); !isFolder(dir) {
		o.fix = "make the folder first"
		return nil, fmt.Errorf("%w: there is no folder %q", signer.ErrReference, dir)
	}
	passphrase, err := o.newPassphrase(ctx)
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
	return private, o.write(text)
}

func isFolder(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

func (o *opening) exists() error {
	o.fix = "name another file; nothing is replaced"
	return fmt.Errorf("%w: file %q", signer.ErrKeyExists, o.path)
}

// write makes the file whole or not at all.
func (o *opening) write(text []byte) error {
	err := wholefile.Write(o.path, text, 0o600, false)
	if errors.Is(err, fs.ErrExist) {
		return o.exists()
	}
	return err
}

// newPassphrase gets the passphrase of a new key; nil where it may be written without one.
func (o *opening) newPassphrase(ctx context.Context) ([]byte, error) {
	_, fromFile := o.ref.Query("passphrase-file")
	if fromFile || o.Secrets.Getenv != nil && o.Secrets.Getenv(envPassphrase) != "" {
		return o.passphrase(ctx)
	}
	if o.unencrypted {
		if o.Warn != nil {
			o.Warn(fmt.Sprintf("unencrypted=allow: who can read %q can sign", o.path))
		}
		return nil, nil
	}
	if o.Secrets.Prompt == nil {
		o.fix = "add ?passphrase-file=PATH to the reference, or set " + envPassphrase + "; for a test key, add ?unencrypted=allow"
	}
	passphrase, err := o.Secrets.ReadNew(ctx, fmt.Sprintf("new passphrase of %q", o.path))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", signer.ErrAuth, err)
	}
	return passphrase, nil
}

// encrypt makes RFC 5208's EncryptedPrivateKeyInfo with PBES2: PBKDF2-HMAC-SHA256 and AES-256-CBC.
func encrypt(plain, passphrase []byte) ([]byte, error) {
	random := make([]byte, 16+aes.BlockSize)
	_, _ = rand.Read(random) // never fails (Go 1.24)
	salt, iv := random[:16], random[16:]
	derived, err := pbkdf2.Key(sha256.New, string(passphrase), salt, iterations, 32)
	if err != nil {
		return nil, err
	}
	defer clear(derived)
	block, err := aes.NewCipher(derived)
	if err != nil {
		return nil, err
	}
	padding := aes.BlockSize - len(plain)%aes.BlockSize
	data := append(bytes.Clone(plain), bytes.Repeat([]byte{byte(padding)}, padding)...)
	cipher.NewCBCEncrypter(block, iv).CryptBlocks(data, data)

	identifier := func(oid asn1.ObjectIdentifier, params any) (pkix.AlgorithmIdentifier, error) {
		der, err := asn1.Marshal(params)
		return pkix.AlgorithmIdentifier{Algorithm: oid, Parameters: asn1.RawValue{FullBytes: der}}, err
	}
	kdf, errKDF := identifier(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 12}, pbkdf2Params{
		Salt: salt, Iterations: iterations,
		PRF: pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 2, 9}, Parameters: asn1.NullRawValue},
	})
	cbc, errCBC := identifier(asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 42}, iv)
	pbes2, errPBES2 := identifier(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 13}, pbes2Params{KDF: kdf, Cipher: cbc})
	if err := errors.Join(errKDF, errCBC, errPBES2); err != nil {
		return nil, err
	}
	return asn1.Marshal(encryptedInfo{Algorithm: pbes2, Data: data})
}
