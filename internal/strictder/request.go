package strictder

import (
	"bytes"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
	tags "golang.org/x/crypto/cryptobyte/asn1"
)

// requestInfo are the parts of a CertificationRequestInfo (RFC 2986 section 4.1), with tag and length.
type requestInfo struct{ subject, key cryptobyte.String }

// readInfo checks the structure of a CertificationRequestInfo.
func readInfo(tbs cryptobyte.String) (requestInfo, error) {
	var info requestInfo
	var content, attributes cryptobyte.String
	var version int
	var present bool
	switch {
	case !tbs.ReadASN1(&content, tags.SEQUENCE) || !content.ReadASN1Integer(&version) || version != 0:
		return info, errors.New("the version is not v1")
	case !content.ReadASN1Element(&info.subject, tags.SEQUENCE):
		return info, errors.New("the subject is not a SEQUENCE")
	case !content.ReadASN1Element(&info.key, tags.SEQUENCE):
		return info, errors.New("the public key is not a SEQUENCE")
	case !content.ReadOptionalASN1(&attributes, &present, tags.Tag(0).ContextSpecific().Constructed()):
		return info, errors.New("the attributes are malformed")
	case !content.Empty():
		return info, fmt.Errorf("%d bytes follow the attributes", len(content))
	case !validName(info.subject):
		return info, errors.New("the subject is malformed")
	case !validKey(info.key):
		return info, errors.New("the public key is malformed or contains other bytes")
	}
	for !attributes.Empty() {
		if !validAttribute(&attributes) {
			return info, errors.New("an attribute is malformed or contains other bytes")
		}
	}
	return info, nil
}

// validAttribute reads SEQUENCE { OBJECT IDENTIFIER, SET OF ANY }.
func validAttribute(data *cryptobyte.String) bool {
	var attribute, values cryptobyte.String
	var oid asn1.ObjectIdentifier
	if !data.ReadASN1(&attribute, tags.SEQUENCE) || !attribute.ReadASN1ObjectIdentifier(&oid) ||
		!attribute.ReadASN1(&values, tags.SET) || !attribute.Empty() {
		return false
	}
	for !values.Empty() {
		if !skipAny(&values) {
			return false
		}
	}
	return true
}

// The string types that cryptobyte has no name for.
const (
	numericString   = tags.Tag(18)
	universalString = tags.Tag(28)
	bmpString       = tags.Tag(30)
)

// nameAttribute is one AttributeTypeAndValue.
type nameAttribute struct {
	oid   asn1.ObjectIdentifier
	tag   tags.Tag
	value cryptobyte.String // with tag and length
	text  cryptobyte.String // the content of value
}

// nameAttributes returns the attributes of a Name (RFC 5280 section 4.1.2.4) in their order.
func nameAttributes(name cryptobyte.String) (attributes []nameAttribute, ok bool) {
	var rdns, rdn cryptobyte.String
	if !name.ReadASN1(&rdns, tags.SEQUENCE) || !name.Empty() {
		return nil, false
	}
	for !rdns.Empty() {
		if !rdns.ReadASN1(&rdn, tags.SET) {
			return nil, false
		}
		for !rdn.Empty() {
			var a nameAttribute
			if !rdn.ReadASN1(&a.value, tags.SEQUENCE) || !a.value.ReadASN1ObjectIdentifier(&a.oid) {
				return nil, false
			}
			rest := a.value
			if !rest.ReadAnyASN1(&a.text, &a.tag) || !rest.Empty() {
				return nil, false
			}
			attributes = append(attributes, a)
		}
	}
	return attributes, true
}

// validName checks the types of the attributes (DirectoryString, IA5String, and the BIT STRING of a unique identifier),
// and the encodings that do not depend on the characters of a type. It is what OpenSSL checks.
func validName(name cryptobyte.String) bool {
	attributes, ok := nameAttributes(name)
	return ok && !slices.ContainsFunc(attributes, func(a nameAttribute) bool {
		switch a.tag {
		case numericString, tags.PrintableString, tags.T61String, tags.IA5String:
			return false
		case tags.UTF8String:
			return !utf8.Valid(a.text)
		case bmpString:
			return len(a.text)%2 != 0
		case universalString:
			return len(a.text)%4 != 0 || !validUniversal(a.text)
		case tags.BIT_STRING:
			value := a.value
			return !skipAny(&value)
		}
		return true
	})
}

func validUniversal(text []byte) bool {
	for c := range slices.Chunk(text, 4) {
		if r := rune(c[0])<<24 | rune(c[1])<<16 | rune(c[2])<<8 | rune(c[3]); !utf8.ValidRune(r) {
			return false
		}
	}
	return true
}

// mistyped reports whether crypto/x509 refuses the characters of a string.
func (a nameAttribute) mistyped() bool {
	if a.tag != numericString && a.tag != tags.PrintableString && a.tag != tags.IA5String {
		return false
	}
	var s string
	_, err := asn1.Unmarshal(a.value, &s)
	return err != nil
}

// MistypedNames returns which attributes of a subject (a Name in DER) have a type that does not allow their characters:
// "emailAddress (PrintableString)". Some programs do not choose the type by the characters.
func MistypedNames(subject []byte) []string {
	var found []string
	attributes, _ := nameAttributes(subject)
	for _, a := range attributes {
		if a.mistyped() {
			found = append(found, fmt.Sprintf("%s (%s)", nameOf(a.oid), typeNames[a.tag]))
		}
	}
	return found
}

var typeNames = map[tags.Tag]string{
	numericString: "NumericString", tags.PrintableString: "PrintableString", tags.IA5String: "IA5String",
}

// nameOf returns the name of a subject attribute, as OpenSSL prints it.
func nameOf(oid asn1.ObjectIdentifier) string {
	names := map[string]string{
		"2.5.4.3": "commonName", "2.5.4.6": "countryName", "2.5.4.7": "localityName", "2.5.4.8": "stateOrProvinceName",
		"2.5.4.10": "organizationName", "2.5.4.11": "organizationalUnitName", "2.5.4.5": "serialNumber",
		"1.2.840.113549.1.9.1": "emailAddress", "1.2.840.113549.1.9.2": "unstructuredName",
		"0.9.2342.19200300.100.1.1": "userId", "0.9.2342.19200300.100.1.25": "domainComponent",
	}
	if name, ok := names[oid.String()]; ok {
		return name
	}
	return oid.String()
}

// makeReadable changes a certificate signing request, in place, so that crypto/x509 reads its other fields: mistyped
// strings become UTF8String or T61String (which Go reads as Latin-1), and the type of a key on a curve that Go does not
// support becomes an unknown one. It reports the latter. The lengths do not change.
func makeReadable(der []byte) (otherCurve bool) {
	outer, _ := split(der)
	info, _ := readInfo(outer.tbs)
	attributes, _ := nameAttributes(info.subject)
	for _, a := range attributes {
		switch {
		case !a.mistyped():
		case utf8.Valid(a.text):
			a.value[0] = byte(tags.UTF8String)
		default:
			a.value[0] = byte(tags.T61String)
		}
	}
	oid, parameters, point := splitKey(info.key)
	if !oid.Equal(oidECKey) {
		return false
	}
	if _, supported := curve(parameters); supported && len(point) > 0 && point[0] == 4 {
		return false
	}
	encoded, _ := asn1.Marshal(oidECKey)
	i := bytes.Index(info.key, encoded)
	info.key[i+len(encoded)-1] = 0x7f // 1.2.840.10045.2.127 does not exist
	return true
}
