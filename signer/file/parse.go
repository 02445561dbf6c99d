package file

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"strings"

	"hsmsign/fault"
	"hsmsign/internal/filekind"
	"hsmsign/signer"
)

// The sizes of the modulus, in bits: Apple accepts 2048 or more, and a signature with more than 8192 takes seconds.
const minBits, maxBits = 2048, 8192

// keyBlock returns the one key in data, which is PEM or DER, or all of data if it has no PEM block of a key.
func (s *session) keyBlock(data []byte) (*pem.Block, error) {
	var keys []*pem.Block
	var keyLines []string
	blocks := 0
	for rest := data; ; blocks++ {
		block, next := pem.Decode(rest)
		if block == nil {
			break
		}
		if strings.HasSuffix(block.Type, "PRIVATE KEY") {
			end := len(data) - len(next)
			begin := bytes.LastIndex(data[:end], []byte("-----BEGIN "))
			line := 1 + bytes.Count(data[:begin], []byte("\n"))
			keys = append(keys, block)
			keyLines = append(keyLines, fmt.Sprintf("%q in line %d", block.Type, line))
		}
		rest = next
	}
	switch {
	case bytes.Count(data, []byte("-----BEGIN ")) != blocks:
		// This includes two blocks without a newline between them, of which pem.Decode finds the first only.
		return nil, fmt.Errorf("%w: damaged PEM", signer.ErrBadKey)
	case len(keys) == 0:
		return &pem.Block{Bytes: bytes.Clone(data)}, nil // parse says what it is
	case len(keys) > 1:
		for _, k := range keys {
			clear(k.Bytes)
		}
		return nil, fmt.Errorf("%w: the file contains %d keys: %s", signer.ErrAmbiguousKey, len(keys), strings.Join(keyLines, ", "))
	}
	if keys[0].Type == "OPENSSH PRIVATE KEY" {
		return nil, fault.Errorf("%w: it is in the format of OpenSSH", signer.ErrBadKey).Fix("convert a copy of it in place: ssh-keygen -p -m PKCS8 -f COPY")
	}
	return keys[0], nil
}

// parse returns the RSA key in a block, decrypted if necessary.
func (s *session) parse(ctx context.Context, block *pem.Block) (*rsa.PrivateKey, error) {
	if formOf(block) == formOldPEM {
		return s.parseOldPEM(ctx, block)
	}
	der := block.Bytes
	switch form := filekind.Shape(der); {
	case strings.HasPrefix(form, "iso"):
		return parsePKCS8(der)
	case strings.HasPrefix(form, "iiiiiiiii"):
		return parsePKCS1(der)
	case form == "so":
		return s.parseEncrypted(ctx, der)
	case form == "is" || form == "iss":
		return s.parsePKCS12(ctx, der)
	case strings.HasPrefix(form, "io"): // RFC 5915
		return nil, notRSA("an EC key")
	}
	kind := filekind.Of(der)
	return nil, fault.Errorf("%w: this is %s, not a private key in PKCS#8, PKCS#1 or PKCS#12", signer.ErrBadKey, kind).
		Fix(strings.ReplaceAll(kind.Use(), "FILE", s.path))
}

func notRSA(what string) error {
	return fmt.Errorf("%w: it is %s; Apple accepts RSA only", signer.ErrBadKey, what)
}

// parsePKCS8 reads RFC 5208's PrivateKeyInfo.
func parsePKCS8(der []byte) (*rsa.PrivateKey, error) {
	var info struct {
		Version    int
		Algorithm  asn1.RawValue
		PrivateKey []byte
	}
	if _, err := asn1.Unmarshal(der, &info); err != nil {
		return nil, fmt.Errorf("%w: damaged PKCS#8: %w", signer.ErrBadKey, err)
	}
	defer clear(info.PrivateKey)
	if err := checkSizes(info.PrivateKey); err != nil {
		return nil, err
	}
	private, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", signer.ErrBadKey, err)
	}
	return asRSA(private)
}

// parsePKCS1 reads RFC 8017's RSAPrivateKey.
func parsePKCS1(der []byte) (*rsa.PrivateKey, error) {
	if err := checkSizes(der); err != nil {
		return nil, err
	}
	private, err := x509.ParsePKCS1PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", signer.ErrBadKey, err)
	}
	return asRSA(private)
}

// checkSizes checks the lengths of the numbers in an RSAPrivateKey: the time in which a parser checks the key grows with
// the cube of the length. Anything else than an RSAPrivateKey passes.
func checkSizes(der []byte) error {
	var numbers asn1.RawValue
	if _, err := asn1.Unmarshal(der, &numbers); err != nil {
		return nil
	}
	for rest := numbers.Bytes; len(rest) > 0; {
		var n asn1.RawValue
		var err error
		if rest, err = asn1.Unmarshal(rest, &n); err != nil {
			return nil
		}
		if n.Tag == asn1.TagInteger && len(n.Bytes) > maxBits/8+1 { // one more byte for the sign
			return fmt.Errorf("%w: RSA of more than %d bits", signer.ErrBadKey, maxBits)
		}
	}
	return nil
}

// asRSA returns the key if it is an RSA key of an accepted size.
func asRSA(private any) (*rsa.PrivateKey, error) {
	switch k := private.(type) {
	case *rsa.PrivateKey:
		if bits := k.N.BitLen(); bits < minBits || bits > maxBits {
			return nil, fmt.Errorf("%w: RSA of %d bits; %d to %d bits are accepted", signer.ErrBadKey, bits, minBits, maxBits)
		}
		return k, nil
	case *ecdsa.PrivateKey:
		return nil, notRSA("an EC key (" + k.Curve.Params().Name + ")")
	case ed25519.PrivateKey:
		return nil, notRSA("an Ed25519 key")
	}
	return nil, notRSA(fmt.Sprintf("a %T", private))
}
