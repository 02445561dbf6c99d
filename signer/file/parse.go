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

	"hsmsign/signer"
)

// The sizes of the modulus, in bits: Apple takes no RSA key under 2048, and one over 8192 signs for seconds.
const minBits, maxBits = 2048, 8192

// keyBlock gives the DER of the one key in data, which is PEM or DER.
func (o *opening) keyBlock(data []byte) ([]byte, error) {
	var keys []*pem.Block
	var keyLines, others []string
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
		} else {
			others = append(others, block.Type)
		}
		rest = next
	}
	switch {
	case bytes.Count(data, []byte("-----BEGIN ")) != blocks:
		// Also two blocks without a newline between them, of which a reader would see the first only.
		return nil, fmt.Errorf("%w: damaged PEM", signer.ErrBadKey)
	case blocks == 0:
		return bytes.Clone(data), nil
	case len(keys) == 0:
		return nil, fmt.Errorf("%w: the file holds no private key but: %s", signer.ErrBadKey, strings.Join(others, ", "))
	case len(keys) > 1:
		for _, k := range keys {
			clear(k.Bytes)
		}
		return nil, fmt.Errorf("%w: the file holds %d keys: %s", signer.ErrAmbiguousKey, len(keys), strings.Join(keyLines, ", "))
	}
	if strings.Contains(keys[0].Headers["Proc-Type"], "ENCRYPTED") {
		o.fix = o.convert()
		return nil, fmt.Errorf("%w: it is encrypted in the old PEM way (RFC 1421), whose key derivation is one MD5", signer.ErrBadKey)
	}
	if keys[0].Type == "OPENSSH PRIVATE KEY" {
		o.fix = "convert a copy of it, in place: ssh-keygen -p -m PKCS8 -f COPY"
		return nil, fmt.Errorf("%w: it is in OpenSSH's own format", signer.ErrBadKey)
	}
	return keys[0].Bytes, nil
}

// convert is the command that makes a PKCS#8 file with PBES2 of whatever OpenSSL can read.
func (o *opening) convert() string {
	return fmt.Sprintf("convert it: openssl pkcs8 -topk8 -v2 aes-256-cbc -in %s -out NEW.key", o.path)
}

// What a DER file may be, told apart by the ASN.1 types of its outermost elements. A letter each: i INTEGER,
// s SEQUENCE, o OCTET STRING, b BIT STRING, x any other.
func shape(der []byte) string {
	var outer asn1.RawValue
	rest, err := asn1.Unmarshal(der, &outer)
	if err != nil || len(rest) > 0 || outer.Class != asn1.ClassUniversal || outer.Tag != asn1.TagSequence {
		return ""
	}
	var letters strings.Builder
	for rest := outer.Bytes; len(rest) > 0 && letters.Len() < 9; {
		var v asn1.RawValue
		if rest, err = asn1.Unmarshal(rest, &v); err != nil {
			return ""
		}
		letter := byte('x')
		if v.Class == asn1.ClassUniversal {
			switch v.Tag {
			case asn1.TagInteger:
				letter = 'i'
			case asn1.TagSequence:
				letter = 's'
			case asn1.TagOctetString:
				letter = 'o'
			case asn1.TagBitString:
				letter = 'b'
			}
		}
		letters.WriteByte(letter)
	}
	return letters.String()
}

// parse gives the RSA key in der, decrypted where need be.
func (o *opening) parse(ctx context.Context, der []byte) (*rsa.PrivateKey, error) {
	switch s := shape(der); {
	case strings.HasPrefix(s, "iso"):
		return parsePKCS8(der)
	case strings.HasPrefix(s, "iiiiiiiii"):
		return parsePKCS1(der)
	case s == "so":
		return o.parseEncrypted(ctx, der)
	case s == "is" || s == "iss":
		return o.parsePKCS12(ctx, der)
	case strings.HasPrefix(s, "io"): // RFC 5915
		return nil, notRSA("an EC key")
	case s == "ssb":
		what := "a certificate"
		if _, err := x509.ParseCertificateRequest(der); err == nil {
			what = "a certificate request"
		}
		return nil, fmt.Errorf("%w: the file holds %s, not a private key", signer.ErrBadKey, what)
	case s == "sb" || s == "ii":
		return nil, fmt.Errorf("%w: the file holds a public key, not a private key", signer.ErrBadKey)
	}
	return nil, fmt.Errorf("%w: the file is neither PKCS#8, PKCS#1 nor PKCS#12", signer.ErrBadKey)
}

func notRSA(what string) error {
	return fmt.Errorf("%w: it is %s; Apple takes RSA only", signer.ErrBadKey, what)
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

// checkSizes looks at the lengths of an RSAPrivateKey's numbers before they are computed with: a parser checks
// the key, and the time that takes grows with the cube of the length. What is no RSAPrivateKey passes.
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
		if n.Tag == asn1.TagInteger && len(n.Bytes) > maxBits/8+1 { // one more for the sign
			return fmt.Errorf("%w: RSA of more than %d bits", signer.ErrBadKey, maxBits)
		}
	}
	return nil
}

// asRSA takes RSA keys of the right size.
func asRSA(private any) (*rsa.PrivateKey, error) {
	switch k := private.(type) {
	case *rsa.PrivateKey:
		if bits := k.N.BitLen(); bits < minBits || bits > maxBits {
			return nil, fmt.Errorf("%w: RSA of %d bits; from %d to %d are taken", signer.ErrBadKey, bits, minBits, maxBits)
		}
		return k, nil
	case *ecdsa.PrivateKey:
		return nil, notRSA("an EC key (" + k.Curve.Params().Name + ")")
	case ed25519.PrivateKey:
		return nil, notRSA("an Ed25519 key")
	}
	return nil, notRSA(fmt.Sprintf("a %T", private))
}
