// Package strictder parses certificates (RFC 5280) and certificate signing requests (RFC 2986) in which no byte is
// unaccounted for. encoding/asn1 and crypto/x509 ignore bytes after the last field of a SEQUENCE. A signature over the
// whole object would cover such bytes, although nobody checked them, and other programs refuse the object.
//
// Everything here is safe for concurrent use.
package strictder

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	"golang.org/x/crypto/cryptobyte"
	tags "golang.org/x/crypto/cryptobyte/asn1"
)

// Check returns an error unless der is SEQUENCE { SEQUENCE, AlgorithmIdentifier, BIT STRING } and nothing else, with the
// parameters that the signature algorithm demands. It is for a certificate that was parsed elsewhere.
func Check(der []byte) error {
	_, err := split(der)
	return err
}

// ParseCertificate is x509.ParseCertificate for data that is exactly one certificate.
func ParseCertificate(der []byte) (*x509.Certificate, error) {
	if err := Check(der); err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// ParseCertificateRequest is x509.ParseCertificateRequest for data that is exactly one certificate signing request. It
// also accepts two things that crypto/x509 refuses and other programs accept: characters in the subject that the type of
// the string does not allow (see MistypedNames), and elliptic curves that Go does not support, for which PublicKey is
// nil (see KeyType). The Raw fields are parts of der.
func ParseCertificateRequest(der []byte) (*x509.CertificateRequest, error) {
	outer, err := split(der)
	if err != nil {
		return nil, err
	}
	info, err := readInfo(outer.tbs)
	if err != nil {
		return nil, err
	}
	readable := bytes.Clone(der)
	otherCurve := makeReadable(readable)
	csr, err := x509.ParseCertificateRequest(readable)
	if err != nil {
		return nil, err
	}
	csr.Raw, csr.RawTBSCertificateRequest = der, outer.tbs
	csr.RawSubject, csr.RawSubjectPublicKeyInfo = info.subject, info.key
	if otherCurve {
		csr.PublicKeyAlgorithm = x509.ECDSA
	}
	return csr, nil
}

// signed is the content of SIGNED{} (X.509 section 6.2.1): a certificate or a certificate signing request.
type signed struct {
	tbs       cryptobyte.String // with tag and length
	algorithm asn1.ObjectIdentifier
}

// split checks that der is SEQUENCE { SEQUENCE, AlgorithmIdentifier, BIT STRING } and nothing else.
func split(der []byte) (signed, error) {
	var s signed
	var content, algorithm cryptobyte.String
	var signature []byte
	data := cryptobyte.String(der)
	switch {
	case !data.ReadASN1(&content, tags.SEQUENCE):
		return s, errors.New("not a SEQUENCE in DER")
	case !data.Empty():
		return s, fmt.Errorf("%d bytes follow it", len(data))
	case !content.ReadASN1Element(&s.tbs, tags.SEQUENCE):
		return s, errors.New("the signed part is not a SEQUENCE")
	case !content.ReadASN1(&algorithm, tags.SEQUENCE):
		return s, errors.New("the signature algorithm is not a SEQUENCE")
	case !content.ReadASN1BitStringAsBytes(&signature):
		return s, errors.New("the signature is not a BIT STRING of whole bytes")
	case !content.Empty():
		return s, fmt.Errorf("%d bytes follow the signature", len(content))
	}
	var err error
	s.algorithm, err = readSignatureAlgorithm(algorithm)
	return s, err
}

// The algorithms whose parameters are checked (RFC 8017 appendix A.2, RFC 5758 section 3.2, RFC 8410 section 3).
var (
	oidPKCS1   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1}
	oidPSS     = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 10}
	oidRSASHA1 = asn1.ObjectIdentifier{1, 3, 14, 3, 2, 29} // the older name of sha1WithRSAEncryption
	oidECDSA   = asn1.ObjectIdentifier{1, 2, 840, 10045, 4}
	oidEd25519 = asn1.ObjectIdentifier{1, 3, 101, 112}
	oidEd448   = asn1.ObjectIdentifier{1, 3, 101, 113}
)

func below(oid, parent asn1.ObjectIdentifier) bool {
	return len(oid) > len(parent) && oid[:len(parent)].Equal(parent)
}

// readSignatureAlgorithm checks the content of an AlgorithmIdentifier and returns its object identifier.
func readSignatureAlgorithm(data cryptobyte.String) (asn1.ObjectIdentifier, error) {
	oid, parameters, ok := readAlgorithm(data)
	if !ok {
		return nil, errors.New("the signature algorithm is malformed or contains other bytes")
	}
	switch {
	case oid.Equal(oidPSS):
		ok = len(parameters) == 0 || isPSS(parameters)
	case below(oid, oidPKCS1) || oid.Equal(oidRSASHA1):
		ok = nullOrAbsent(parameters)
	case below(oid, oidECDSA) || oid.Equal(oidEd25519) || oid.Equal(oidEd448):
		ok = len(parameters) == 0
	}
	if !ok {
		return nil, fmt.Errorf("the parameters of the signature algorithm %v are malformed", oid)
	}
	return oid, nil
}

// readAlgorithm returns the fields of an AlgorithmIdentifier. parameters has tag and length; it is empty if absent.
func readAlgorithm(data cryptobyte.String) (oid asn1.ObjectIdentifier, parameters cryptobyte.String, ok bool) {
	if !data.ReadASN1ObjectIdentifier(&oid) {
		return nil, nil, false
	}
	parameters = data
	return oid, parameters, data.Empty() || skipAny(&data) && data.Empty()
}

func nullOrAbsent(parameters cryptobyte.String) bool {
	return len(parameters) == 0 || bytes.Equal(parameters, asn1.NullBytes)
}

// isPSS reports whether data is RSASSA-PSS-params in DER (RFC 4055 section 3.1), of any hash and salt length.
func isPSS(data cryptobyte.String) bool {
	var fields cryptobyte.String
	if !data.ReadASN1(&fields, tags.SEQUENCE) || !data.Empty() {
		return false
	}
	valid := func(tag uint8, validField func(cryptobyte.String) bool) bool {
		var field cryptobyte.String
		var present bool
		return fields.ReadOptionalASN1(&field, &present, tags.Tag(tag).ContextSpecific().Constructed()) && (!present || validField(field))
	}
	number := func(field cryptobyte.String) bool {
		var n uint32
		return field.ReadASN1Integer(&n) && field.Empty()
	}
	// hashAlgorithm, maskGenAlgorithm, saltLength, trailerField
	return valid(0, isHash) && valid(1, isMask) && valid(2, number) && valid(3, number) && fields.Empty()
}

// isMask reports whether data is the AlgorithmIdentifier of a mask function, whose parameters are the hash of MGF1.
func isMask(data cryptobyte.String) bool {
	var mask cryptobyte.String
	if !data.ReadASN1(&mask, tags.SEQUENCE) || !data.Empty() {
		return false
	}
	_, hash, ok := readAlgorithm(mask)
	return ok && isHash(hash)
}

// isHash reports whether data is the AlgorithmIdentifier of a hash.
func isHash(data cryptobyte.String) bool {
	var hash cryptobyte.String
	if !data.ReadASN1(&hash, tags.SEQUENCE) || !data.Empty() {
		return false
	}
	_, parameters, ok := readAlgorithm(hash)
	return ok && nullOrAbsent(parameters)
}

// skipAny skips one element of any type. It checks the content of primitive types whose content has a form.
func skipAny(data *cryptobyte.String) bool {
	var element cryptobyte.String
	var tag tags.Tag
	if !data.ReadAnyASN1Element(&element, &tag) {
		return false
	}
	switch tag {
	case tags.BOOLEAN:
		var b bool
		return element.ReadASN1Boolean(&b)
	case tags.INTEGER:
		return element.ReadASN1Integer(new(big.Int))
	case tags.BIT_STRING:
		var bits asn1.BitString
		return element.ReadASN1BitString(&bits)
	case tags.OBJECT_IDENTIFIER:
		var oid asn1.ObjectIdentifier
		return element.ReadASN1ObjectIdentifier(&oid)
	case tags.NULL:
		return len(element) == 2
	}
	return true
}

var (
	oidRSAKey = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
	oidECKey  = asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}
)

// splitKey returns the fields of a SubjectPublicKeyInfo (RFC 5280 section 4.1). oid is nil if it is malformed.
func splitKey(spki cryptobyte.String) (oid asn1.ObjectIdentifier, parameters cryptobyte.String, key []byte) {
	var content, algorithm cryptobyte.String
	if !spki.ReadASN1(&content, tags.SEQUENCE) || !spki.Empty() || !content.ReadASN1(&algorithm, tags.SEQUENCE) ||
		!content.ReadASN1BitStringAsBytes(&key) || !content.Empty() {
		return nil, nil, nil
	}
	oid, parameters, ok := readAlgorithm(algorithm)
	if !ok {
		return nil, nil, nil
	}
	return oid, parameters, key
}

// validKey checks the structure of a SubjectPublicKeyInfo, and that of an RSA key in it (RFC 8017 appendix A.1.1).
func validKey(spki cryptobyte.String) bool {
	oid, _, key := splitKey(spki)
	if !oid.Equal(oidRSAKey) {
		return oid != nil
	}
	var numbers cryptobyte.String
	data := cryptobyte.String(key)
	return data.ReadASN1(&numbers, tags.SEQUENCE) && data.Empty() &&
		numbers.SkipASN1(tags.INTEGER) && numbers.SkipASN1(tags.INTEGER) && numbers.Empty()
}

// curves are the curves that have a name here; those of crypto/x509 are supported.
var curves = map[string]struct {
	name      string
	supported bool
}{
	"1.2.840.10045.3.1.7": {"P-256", true}, "1.3.132.0.33": {"P-224", true}, "1.3.132.0.34": {"P-384", true}, "1.3.132.0.35": {"P-521", true},
	"1.3.132.0.10": {"secp256k1", false}, "1.2.156.10197.1.301": {"SM2", false},
}

// curve returns the name of the curve that the parameters of a key name (RFC 5480 section 2.1.1, RFC 5639 section 4.1),
// and whether crypto/x509 supports it.
func curve(parameters cryptobyte.String) (name string, supported bool) {
	var oid asn1.ObjectIdentifier
	if !parameters.ReadASN1ObjectIdentifier(&oid) {
		return "a curve with explicit parameters", false
	}
	if brainpool := (asn1.ObjectIdentifier{1, 3, 36, 3, 3, 2, 8, 1, 1}); below(oid, brainpool) && oid[9] >= 1 && oid[9] <= 14 {
		bits := [7]int{160, 192, 224, 256, 320, 384, 512}[(oid[9]-1)/2]
		return fmt.Sprintf("brainpoolP%d%c1", bits, "tr"[oid[9]%2]), false
	}
	if known, ok := curves[oid.String()]; ok {
		return known.name, known.supported
	}
	return "the curve " + oid.String(), false
}

// keyTypes are the types of keys that have a name here, but EC.
var keyTypes = map[string]string{
	oidRSAKey.String(): "RSA", oidPSS.String(): "RSA-PSS", "1.2.840.113549.1.1.7": "RSA-OAEP", "1.2.840.10040.4.1": "DSA",
	"1.2.840.113549.1.3.1": "Diffie-Hellman", "1.2.840.10046.2.1": "Diffie-Hellman",
	"1.3.101.110": "X25519", "1.3.101.111": "X448", oidEd25519.String(): "Ed25519", oidEd448.String(): "Ed448",
	"2.16.840.1.101.3.4.3.17": "ML-DSA", "2.16.840.1.101.3.4.3.18": "ML-DSA", "2.16.840.1.101.3.4.3.19": "ML-DSA",
	"": "malformed",
}

// KeyType returns the type of the key in a SubjectPublicKeyInfo (DER): "EC on secp256k1", "Ed448". It names the types
// that crypto/x509 does not know.
func KeyType(spki []byte) string {
	oid, parameters, _ := splitKey(spki)
	if oid.Equal(oidECKey) {
		name, _ := curve(parameters)
		return "EC on " + name
	}
	if name, ok := keyTypes[oid.String()]; ok {
		return name
	}
	return "unknown (" + oid.String() + ")"
}

// SignatureAlgorithm returns the object identifier of the signature algorithm of a certificate or certificate signing
// request (DER), and whether it is RSASSA-PSS. oid is nil if der is malformed.
func SignatureAlgorithm(der []byte) (oid asn1.ObjectIdentifier, pss bool) {
	s, err := split(der)
	if err != nil {
		return nil, false
	}
	return s.algorithm, s.algorithm.Equal(oidPSS)
}
