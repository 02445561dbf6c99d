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

// curveInfo is the name of an elliptic curve, and whether crypto/x509 supports it.
type curveInfo struct {
	name      string
	supported bool
}

// curve returns the curve that the parameters of a key name (RFC 5480 section 2.1.1, RFC 5639 section 4.1).
func curve(parameters cryptobyte.String) curveInfo {
	var oid asn1.ObjectIdentifier
	if !parameters.ReadASN1ObjectIdentifier(&oid) {
		return curveInfo{"a curve with explicit parameters", false}
	}
	if brainpool := (asn1.ObjectIdentifier{1, 3, 36, 3, 3, 2, 8, 1, 1}); below(oid, brainpool) && oid[9] >= 1 && oid[9] <= 14 {
		bits := [7]int{160, 192, 224, 256, 320, 384, 512}[(oid[9]-1)/2]
		return curveInfo{fmt.Sprintf("brainpoolP%d%c1", bits, "tr"[oid[9]%2]), false}
	}
	switch oid.String() {
	case "1.2.840.10045.3.1.7":
		return curveInfo{"P-256", true}
	case "1.3.132.0.33":
		return curveInfo{"P-224", true}
	case "1.3.132.0.34":
		return curveInfo{"P-384", true}
	case "1.3.132.0.35":
		return curveInfo{"P-521", true}
	case "1.3.132.0.10":
		return curveInfo{"secp256k1", false}
	case "1.2.156.10197.1.301":
		return curveInfo{"SM2", false}
	}
	return curveInfo{"the curve " + oid.String(), false}
}

// KeyType returns the type of the key in a SubjectPublicKeyInfo (DER): "EC on secp256k1", "Ed448". It names the types
// that crypto/x509 does not know.
func KeyType(spki []byte) string {
	oid, parameters, _ := splitKey(spki)
	switch oid.String() {
	case "":
		return "malformed"
	case oidRSAKey.String():
		return "RSA"
	case oidECKey.String():
		return "EC on " + curve(parameters).name
	case oidPSS.String():
		return "RSA-PSS"
	case "1.2.840.113549.1.1.7":
		return "RSA-OAEP"
	case "1.2.840.10040.4.1":
		return "DSA"
	case "1.2.840.113549.1.3.1", "1.2.840.10046.2.1":
		return "Diffie-Hellman"
	case "1.3.101.110":
		return "X25519"
	case "1.3.101.111":
		return "X448"
	case oidEd25519.String():
		return "Ed25519"
	case oidEd448.String():
		return "Ed448"
	case "2.16.840.1.101.3.4.3.17", "2.16.840.1.101.3.4.3.18", "2.16.840.1.101.3.4.3.19":
		return "ML-DSA"
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
