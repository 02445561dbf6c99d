package file

import (
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"

	"hsmsign/signer"
)

// Export gives the private key of a Signer that this package opened: for a PKCS#12 file, or to decrypt with. Whoever
// calls it takes the key out of the Signer's care. The key of any other backend, which is where it is so that nobody
// exports it, is an error that wraps signer.ErrUnsupported; after Close it wraps signer.ErrClosed.
func Export(s signer.Signer) (*rsa.PrivateKey, error) {
	k, ok := s.(*key)
	if !ok {
		return nil, fmt.Errorf("%w: the key cannot leave its token or service, only a key in a file can be exported", signer.ErrUnsupported)
	}
	private := k.private.Load()
	if private == nil {
		return nil, &signer.Error{Op: "export", Ref: k.ref, Err: signer.ErrClosed}
	}
	return private, nil
}

// EncodePEM writes a key as PKCS#8 in PEM, encrypted with PBES2 (PBKDF2-HMAC-SHA256 with 600,000 iterations,
// AES-256-CBC), or not encrypted where the passphrase is nil. The caller clears the result after use.
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
