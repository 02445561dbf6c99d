package file

import (
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"

	"hsmsign/signer"
)

// Export returns the private key of a Signer of this package, for a PKCS#12 file or to decrypt. The Signer does not clear
// it on Close. A Signer of any other backend wraps signer.ErrUnsupported; after Close the error wraps signer.ErrClosed.
func Export(s signer.Signer) (*rsa.PrivateKey, error) {
	k, ok := s.(*key)
	if !ok {
		return nil, fmt.Errorf("%w: only a key in a file can be exported", signer.ErrUnsupported)
	}
	private := k.private.Load()
	if private == nil {
		return nil, &signer.Error{Op: "export", Ref: k.ref, Err: signer.ErrClosed}
	}
	return private, nil
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
