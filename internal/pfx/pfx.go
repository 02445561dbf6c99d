// Package pfx reads PKCS#12 files (RFC 7292), old and new: one private key, and its certificate with others.
//
// A file says how much work its key derivations are. Check refuses a file that asks for too much before a passphrase is asked
// for; Decode checks it too, and has a time limit for what only the decrypted parts show.
//
// Everything here is safe for concurrent use.
package pfx

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"time"

	"software.sslmate.com/src/go-pkcs12"
)

// MaxSize is the size limit of a file, in bytes: more than an RSA-8192 key and its chain need.
const MaxSize = 64 << 10

// MaxIterations is the limit of one key derivation: eight times the recommendation of OWASP.
const MaxIterations = 5_000_000

// maxWait is the time limit of Decode.
const maxWait = 30 * time.Second

// maxCertificates is how many certificates a file may contain.
const maxCertificates = 16

// ErrPassphrase means a wrong passphrase, or a damaged file: the two cannot be told apart.
var ErrPassphrase = errors.New("the passphrase is wrong, or the file is damaged")

// File is the content of a PKCS#12 file.
type File struct {
	Key crypto.Signer
	// Certificate is that of the key; nil if the file does not contain it.
	Certificate *x509.Certificate
	Others      []*x509.Certificate // in the order of the file
}

// Check returns why the key derivations of a file exceed the limits, or nil. Anything else than PKCS#12 passes.
func Check(der []byte) error {
	if len(der) > MaxSize {
		return fmt.Errorf("it is larger than %d bytes", MaxSize)
	}
	return checkIterations(der, 0)
}

// Decode reads a file in DER. The error is ErrPassphrase or says what is wrong with the file; it is that of ctx if ctx ends.
func Decode(ctx context.Context, der, passphrase []byte) (*File, error) {
	if err := Check(der); err != nil {
		return nil, err
	}
	type result struct {
		file *File
		err  error
	}
	done := make(chan result, 1)
	go func() {
		file, err := decode(der, string(passphrase))
		done <- result{file, err}
	}()
	select {
	case r := <-done:
		return r.file, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(maxWait): // the derivation ends with the process
		return nil, fmt.Errorf("its key derivation takes longer than %v", maxWait)
	}
}

// decode reads a file. The library is not made for damaged input; a panic of it is reported as damage.
func decode(der []byte, passphrase string) (f *File, err error) {
	defer func() {
		if recover() != nil {
			f, err = nil, ErrPassphrase
		}
	}()
	private, first, others, err := pkcs12.DecodeChain(der, passphrase)
	switch {
	case errors.Is(err, pkcs12.ErrIncorrectPassword):
		return nil, ErrPassphrase
	case err != nil:
		return nil, err
	case len(others) >= maxCertificates:
		return nil, fmt.Errorf("it contains %d certificates; at most %d are accepted", len(others)+1, maxCertificates)
	}
	key, ok := private.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("its key is a %T", private)
	}
	f = &File{Key: key}
	// The certificate of the key need not be the first one: Keychain Access writes the chain in any order.
	for _, cert := range append([]*x509.Certificate{first}, others...) {
		if pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); ok && f.Certificate == nil && pub.Equal(cert.PublicKey) {
			f.Certificate = cert
			continue
		}
		f.Others = append(f.Others, cert)
	}
	return f, nil
}

// checkIterations checks the iterations of all key derivations in a PKCS#12 file: SEQUENCE { OID, SEQUENCE { salt,
// INTEGER, ... } } with an OID of PKCS#5 or PKCS#12, and MacData's SEQUENCE { SEQUENCE, OCTET STRING, INTEGER }. It does
// not check encrypted parts.
func checkIterations(der []byte, depth int) error {
	const maxDepth = 32 // PFX, authSafe, SafeContents, SafeBag, PBES2, PBKDF2: about half of it
	for depth < maxDepth && len(der) > 0 {
		var v asn1.RawValue
		rest, err := asn1.Unmarshal(der, &v)
		if err != nil {
			return nil // not DER: a ciphertext, or a file that the decoder refuses
		}
		var alg struct {
			OID    asn1.ObjectIdentifier
			Params struct {
				Salt       asn1.RawValue
				Iterations int
			}
		}
		var mac struct {
			Digest     asn1.RawValue
			Salt       []byte
			Iterations int
		}
		n := 0
		if _, err := asn1.Unmarshal(v.FullBytes, &alg); err == nil {
			n = alg.Params.Iterations
		}
		if _, err := asn1.Unmarshal(v.FullBytes, &mac); err == nil {
			n = max(n, mac.Iterations)
		}
		if n > MaxIterations {
			return fmt.Errorf("%d iterations; at most %d are accepted", n, MaxIterations)
		}
		if v.IsCompound || v.Tag == asn1.TagOctetString {
			if err := checkIterations(v.Bytes, depth+1); err != nil {
				return err
			}
		}
		der = rest
	}
	return nil
}

// Certificates returns all certificates, that of the key first.
func (f *File) Certificates() []*x509.Certificate {
	if f.Certificate == nil {
		return f.Others
	}
	return append([]*x509.Certificate{f.Certificate}, f.Others...)
}
