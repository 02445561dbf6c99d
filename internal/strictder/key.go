package strictder

import (
	"encoding/asn1"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	tags "golang.org/x/crypto/cryptobyte/asn1"
)

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
