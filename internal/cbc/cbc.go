// Package cbc decrypts and encrypts with a block cipher in CBC mode and the padding of PKCS#7 (RFC 5652 section 6.3), as
// PBES2 and EnvelopedData use it. CBC does not detect changes: a wrong key or a changed ciphertext may pass as a good
// padding. Everything here is safe for concurrent use.
package cbc

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/des" // #nosec G502 -- existing files use DES and triple DES; hsmsign only reads them
	"crypto/rand"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
)

// The errors of this package, without a hint: the caller knows what the data is.
var (
	// ErrCipher means a cipher that is not supported.
	ErrCipher = errors.New("unsupported cipher")
	// ErrDamaged means an initialization vector or a ciphertext of the wrong length.
	ErrDamaged = errors.New("the initialization vector or the ciphertext does not consist of whole blocks")
	// ErrPadding means a wrong key, or data that was changed.
	ErrPadding = errors.New("wrong padding")
)

// Cipher is a block cipher with its initialization vector.
type Cipher struct {
	KeySize int // bytes
	iv      []byte
	block   func(key []byte) (cipher.Block, error)
}

// oidAES256 names AES-256 in CBC mode (RFC 3565 section 4.1).
var oidAES256 = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 42}

// Parse returns the cipher that an AlgorithmIdentifier names: AES, triple DES or DES (RFC 8018 appendix B.2). The error
// wraps ErrCipher or ErrDamaged.
func Parse(alg pkix.AlgorithmIdentifier) (*Cipher, error) {
	c := &Cipher{block: aes.NewCipher}
	size := aes.BlockSize
	switch oid := alg.Algorithm.String(); oid {
	case "2.16.840.1.101.3.4.1.2":
		c.KeySize = 16
	case "2.16.840.1.101.3.4.1.22":
		c.KeySize = 24
	case oidAES256.String():
		c.KeySize = 32
	case "1.2.840.113549.3.7":
		c.KeySize, c.block, size = 24, des.NewTripleDESCipher, des.BlockSize // #nosec G405 -- see the import
	case "1.3.14.3.2.7":
		c.KeySize, c.block, size = 8, des.NewCipher, des.BlockSize // #nosec G405 -- see the import
	case "2.16.840.1.101.3.4.1.6", "2.16.840.1.101.3.4.1.26", "2.16.840.1.101.3.4.1.46":
		return nil, fmt.Errorf("%w: AES-GCM (%s); AES, triple DES and DES in CBC mode are supported", ErrCipher, oid)
	default:
		return nil, fmt.Errorf("%w: %s; AES, triple DES and DES in CBC mode are supported", ErrCipher, oid)
	}
	if rest, err := asn1.Unmarshal(alg.Parameters.FullBytes, &c.iv); err != nil || len(rest) > 0 || len(c.iv) != size {
		return nil, ErrDamaged
	}
	return c, nil
}

// NewAES256 returns AES-256 with a random initialization vector, and the AlgorithmIdentifier for Parse.
func NewAES256() (*Cipher, pkix.AlgorithmIdentifier) {
	iv := make([]byte, aes.BlockSize)
	_, _ = rand.Read(iv) // never fails (Go 1.24)
	return &Cipher{32, iv, aes.NewCipher}, pkix.AlgorithmIdentifier{
		Algorithm:  oidAES256,
		Parameters: asn1.RawValue{Tag: asn1.TagOctetString, Bytes: iv},
	}
}

// Decrypt returns the data without the padding. The error is ErrDamaged, ErrPadding, or that of a key of the wrong size.
func (c *Cipher) Decrypt(key, data []byte) ([]byte, error) {
	block, err := c.block(key)
	if err != nil {
		return nil, err
	}
	size := block.BlockSize()
	if len(data) == 0 || len(data)%size != 0 {
		return nil, ErrDamaged
	}
	plain := make([]byte, len(data))
	cipher.NewCBCDecrypter(block, c.iv).CryptBlocks(plain, data)
	n := int(plain[len(plain)-1])
	if n < 1 || n > size || !bytes.Equal(plain[len(plain)-n:], bytes.Repeat(plain[len(plain)-1:], n)) {
		clear(plain)
		return nil, ErrPadding
	}
	return plain[:len(plain)-n], nil
}

// Encrypt pads the data and encrypts it. The error is that of a key of the wrong size.
func (c *Cipher) Encrypt(key, plain []byte) ([]byte, error) {
	block, err := c.block(key)
	if err != nil {
		return nil, err
	}
	n := block.BlockSize() - len(plain)%block.BlockSize()
	data := append(bytes.Clone(plain), bytes.Repeat([]byte{byte(n)}, n)...) // #nosec G115 -- a block has 8 or 16 bytes
	cipher.NewCBCEncrypter(block, c.iv).CryptBlocks(data, data)
	return data, nil
}
