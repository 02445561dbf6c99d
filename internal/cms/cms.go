// Package cms writes and reads the two kinds of CMS (RFC 5652) that device management uses: SignedData around a
// configuration profile or detached from a message, and EnvelopedData around a secret.
//
// Sign makes a SignedData with its content inside, SHA-256 and the chain. Verify reads one of any origin and reports
// findings. Encrypt and Decrypt make and read EnvelopedData: the content key with RSAES-PKCS1-v1_5, the content with a
// block cipher in CBC mode.
//
// Other programs write BER (Apple's security command and Java libraries do). It is converted to DER first, with a bounded
// nesting, so nothing here recurses deeper than the input may. Inputs larger than MaxSize are refused.
//
// The functions depend only on their arguments and are safe for concurrent use.
package cms

import (
	"encoding/asn1"
	"errors"
	"fmt"
)

// MaxSize is the size limit of a message that is read, in bytes.
const MaxSize = 4 << 20

// maxDepth is how deep the elements of a message may be nested. Messages with certificates have about 16 levels.
const maxDepth = 32

var (
	oidData          = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	oidSignedData    = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	oidEnvelopedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 3}
	// oidAuthEnvelopedData is RFC 5083's, for modes that detect changes.
	oidAuthEnvelopedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 1, 23}
	oidRSAEncryption     = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
	oidRSAESOAEP         = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 7}
	oidSHA256            = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
	oidContentType       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 3}
	oidMessageDigest     = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 4}
	oidSigningTime       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 5}
)

// contentInfo is the outer type of every message (RFC 5652 section 3).
type contentInfo struct {
	Type    asn1.ObjectIdentifier
	Content asn1.RawValue `asn1:"explicit,tag:0"`
}

// wrap returns a message with content, which is DER.
func wrap(kind asn1.ObjectIdentifier, content any) ([]byte, error) {
	inner, err := asn1.Marshal(content)
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(contentInfo{kind, asn1.RawValue{Class: asn1.ClassContextSpecific, IsCompound: true, Bytes: inner}})
}

// IsSigned returns whether data begins as a SignedData does, in DER or BER. The rest is not read.
func IsSigned(data []byte) bool {
	_, _, content, _ := readHeader(data) // a message that was cut short is one, too
	var oid asn1.ObjectIdentifier
	_, err := asn1.Unmarshal(content, &oid)
	return err == nil && oid.Equal(oidSignedData)
}

// errBER means bytes that are not BER.
var errBER = errors.New("it is damaged, or cut short")

// readHeader reads the identifier and the length of an element. length is -1 for the indefinite form. Tags above 30, which
// CMS does not use, are an error.
func readHeader(data []byte) (identifier byte, length int, content []byte, err error) {
	if len(data) < 2 || data[0]&0x1f == 0x1f {
		return 0, 0, nil, errBER
	}
	identifier, first, rest := data[0], data[1], data[2:]
	switch {
	case first < 0x80:
		return identifier, int(first), rest, within(int(first), rest)
	case first == 0x80:
		if identifier&constructed == 0 {
			return 0, 0, nil, errBER
		}
		return identifier, -1, rest, nil
	}
	n := int(first & 0x7f)
	if n > 4 || n > len(rest) {
		return 0, 0, nil, errBER
	}
	for _, b := range rest[:n] {
		if length > MaxSize {
			return 0, 0, nil, errBER
		}
		length = length<<8 | int(b)
	}
	return identifier, length, rest[n:], within(length, rest[n:])
}

func within(length int, content []byte) error {
	if length > len(content) {
		return errBER
	}
	return nil
}

const (
	constructed       = 0x20
	octetString       = 0x04
	octetStringPieces = octetString | constructed
)

// toDER converts one message of BER to DER as far as CMS needs it: definite lengths, and OCTET STRINGs of one piece.
func toDER(ber []byte) ([]byte, error) {
	if len(ber) > MaxSize {
		return nil, fmt.Errorf("it is larger than %d bytes", MaxSize)
	}
	der, rest, err := convert(ber, maxDepth)
	if err == nil && len(rest) > 0 {
		err = fmt.Errorf("%d bytes follow it", len(rest))
	}
	return der, err
}

// convert converts the first element, and returns what follows it.
func convert(ber []byte, depth int) (der, rest []byte, err error) {
	identifier, length, content, err := readHeader(ber)
	if err != nil {
		return nil, nil, err
	}
	if depth == 0 {
		return nil, nil, fmt.Errorf("its elements are nested deeper than %d", maxDepth)
	}
	if identifier&constructed == 0 {
		return element(identifier, content[:length]), content[length:], nil
	}
	if length >= 0 {
		content, rest = content[:length], content[length:]
	}
	var inner []byte
	for length < 0 || len(content) > 0 {
		if length < 0 && len(content) >= 2 && content[0] == 0 && content[1] == 0 {
			rest = content[2:]
			break
		}
		var child []byte
		if child, content, err = convert(content, depth-1); err != nil {
			return nil, nil, err
		}
		if identifier == octetStringPieces {
			if child, err = piece(child); err != nil {
				return nil, nil, err
			}
		}
		inner = append(inner, child...)
	}
	if identifier == octetStringPieces {
		identifier = octetString
	}
	return element(identifier, inner), rest, nil
}

// piece returns the content of an OCTET STRING in DER.
func piece(der []byte) ([]byte, error) {
	if der[0] != octetString {
		return nil, errBER
	}
	_, _, content, err := readHeader(der)
	return content, err
}

// joinPieces returns the content of an OCTET STRING with an implicit tag, in one piece or several.
func joinPieces(v asn1.RawValue) (joined []byte, err error) {
	if !v.IsCompound {
		return v.Bytes, nil
	}
	for rest := v.Bytes; len(rest) > 0; {
		var next asn1.RawValue
		if rest, err = asn1.Unmarshal(rest, &next); err != nil || next.FullBytes[0] != octetString {
			return nil, errBER
		}
		joined = append(joined, next.Bytes...)
	}
	return joined, nil
}

// element returns an element with a definite length in the shortest form.
func element(identifier byte, content []byte) []byte {
	der := make([]byte, 0, len(content)+6)
	der = append(der, identifier)
	n := len(content)
	switch {
	case n < 1<<7:
		der = append(der, byte(n))
	case n < 1<<8:
		der = append(der, 0x81, byte(n))
	case n < 1<<16:
		der = append(der, 0x82, byte(n>>8), byte(n)) // #nosec G115 -- the lengths are bounded
	default:
		der = append(der, 0x83, byte(n>>16), byte(n>>8), byte(n)) // #nosec G115 -- MaxSize has 23 bits
	}
	return append(der, content...)
}
