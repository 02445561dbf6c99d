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
	"slices"

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
	// Before anybody is asked for a passphrase; that it is still so is for O_EXCL to say.
	if _, err := os.Lstat(o.path); err == nil {
		return nil, o.exists()
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

func (o *opening) exists() error {
	o.fix = "name another file; nothing is replaced"
	return fmt.Errorf("%w: file %q", signer.ErrKeyExists, o.path)
}

// write makes the file, and takes it away again when it cannot be written whole.
func (o *opening) write(text []byte) error {
	f, err := os.OpenFile(o.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	switch {
	case errors.Is(err, fs.ErrExist):
		return o.exists()
	case err != nil:
		return fmt.Errorf("%w: %w", signer.ErrUnavailable, err)
	}
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("%w: %w", signer.ErrUnavailable, errors.Join(err, os.Remove(o.path)))
	}
	return nil
}

// newPassphrase gets the passphrase of a new key; nil where it may be written without one. A person is asked twice:
// nobody can read a key again whose passphrase has a typing error in it.
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
	o.fix = "add ?passphrase-file=PATH to the reference, or set " + envPassphrase + "; for a test key, add ?unencrypted=allow"
	first, err := o.Secrets.Read(ctx, signer.Source{Label: fmt.Sprintf("new passphrase of %q", o.path), From: "prompt"})
	if err != nil {
		return nil, err
	}
	again, err := o.Secrets.Read(ctx, signer.Source{Label: "the same passphrase again", From: "prompt"})
	if err != nil {
		clear(first)
		return nil, err
	}
	defer clear(again)
	if !bytes.Equal(first, again) {
		clear(first)
		o.fix = "start again"
		return nil, fmt.Errorf("%w: the two passphrases differ", signer.ErrAuth)
	}
	o.fix = ""
	return first, nil
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
