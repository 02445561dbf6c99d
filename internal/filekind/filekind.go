// Package filekind names the content of a file, for the error about a file that is not what a command needs. It looks at
// the structure only and parses no numbers, so its work grows with the length of the file. Everything here is safe for
// concurrent use.
package filekind

import (
	"bytes"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"
	"unicode/utf8"

	"hsmsign/internal/pemtext"
)

// Kind is the content of a file, with its article.
type Kind string

// The kinds for which there is a command, and those without a known structure.
const (
	CSR          Kind = "a certificate signing request"
	Request      Kind = "a Push Certificate Request"
	Certificate  Kind = "a certificate"
	Bundle       Kind = "a PKCS#7 file"
	Mail         Kind = "an encrypted PKCS#7 file"
	PrivateKey   Kind = "a private key"
	PKCS12       Kind = "a PKCS#12 file"
	PropertyList Kind = "a property list"
	Keystore     Kind = "a Java keystore (JKS or JCEKS)"
	Binary       Kind = "binary data of an unknown kind"
	Text         Kind = "text without a PEM block"
)

// Use returns the command for a file of this kind, or "".
func (k Kind) Use() string {
	switch k {
	case CSR:
		return "sign it with hsmsign sign"
	case Request:
		return "check it with hsmsign verify"
	case Certificate, Bundle:
		return "show it with hsmsign inspect"
	case Mail:
		return "decrypt it with hsmsign mdmcert decrypt"
	case PrivateKey, PKCS12:
		return "show it with hsmsign key list --key file:FILE"
	case Keystore:
		return "convert it: keytool -importkeystore -srckeystore FILE -destkeystore NEW.p12 -deststoretype PKCS12"
	}
	return ""
}

// Of returns the kind of a file in binary, PEM, or the base64 or hexadecimal digits of either.
func Of(data []byte) Kind {
	data = bytes.TrimPrefix(data, []byte("\ufeff")) // a byte order mark
	switch {
	case IsDER(data):
		return ofDER(data)
	case bytes.HasPrefix(bytes.TrimSpace(data), []byte("<")): // a request contains PEM, and a page may
		return ofText(data)
	case bytes.Contains(data, []byte("-----BEGIN ")):
		return ofPEM(string(data))
	}
	text := strings.Join(strings.Fields(string(data)), "")
	inner, err := hex.DecodeString(text)
	if err != nil {
		inner, err = base64.StdEncoding.DecodeString(text)
	}
	if err == nil && len(inner) > 0 {
		if k := Of(inner); k != Binary && k != Text {
			return k
		}
	}
	return ofText(data)
}

// IsDER reports whether data begins as a SEQUENCE of more than 127 bytes, whose length has the long form (X.690 section
// 8.1.3.5). The tag alone is the character "0"; no text begins like this.
func IsDER(data []byte) bool { return len(data) > 1 && data[0] == 0x30 && data[1] >= 0x80 }

// Shape returns the ASN.1 types of the elements of a SEQUENCE in DER, which distinguish the kinds of files. Each is one
// letter: i INTEGER, s SEQUENCE, o OCTET STRING, b BIT STRING, d OBJECT IDENTIFIER, x any other. It is "" for anything else.
func Shape(der []byte) string {
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
		if i := strings.IndexByte("\x02\x10\x04\x03\x06", byte(v.Tag)); i >= 0 && v.Class == asn1.ClassUniversal { // #nosec G115 -- the tags are below 31
			letter = "isobd"[i]
		}
		letters.WriteByte(letter)
	}
	return letters.String()
}

// ofDER distinguishes RFC 2986, 5280, 5208, 8017, 5915, 7292 and 5652 by their first elements.
func ofDER(der []byte) Kind {
	switch shape := Shape(der); {
	case shape == "ssb":
		var signed struct{ Content asn1.RawValue }
		if _, err := asn1.Unmarshal(der, &signed); err == nil && strings.HasPrefix(Shape(signed.Content.FullBytes), "iss") && len(Shape(signed.Content.FullBytes)) <= 4 {
			return CSR
		}
		return Certificate
	case strings.HasPrefix(shape, "iso"), strings.HasPrefix(shape, "iiiiiiiii"), strings.HasPrefix(shape, "io"), shape == "so":
		return PrivateKey
	case shape == "is", shape == "iss":
		return PKCS12
	case shape == "sb", shape == "ii":
		return "a public key"
	case shape == "dx":
		var info struct{ Type asn1.ObjectIdentifier }
		if _, err := asn1.Unmarshal(der, &info); err == nil && !info.Type.Equal(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}) {
			return Mail
		}
		return Bundle
	}
	return Binary
}

// ofPEM returns the kind of the block that matters most: a private key, a CSR, then the first block.
func ofPEM(text string) Kind {
	first := Text
	for b := range pemtext.Scan(text) {
		k := Kind(fmt.Sprintf("PEM of type %.128q", b.Label))
		switch label := b.Label; {
		case strings.HasSuffix(label, "PRIVATE KEY"):
			return PrivateKey
		case strings.HasSuffix(label, "CERTIFICATE REQUEST"):
			k = CSR
		case label == "CERTIFICATE" || label == "X509 CERTIFICATE":
			k = Certificate
		case label == "PUBLIC KEY":
			k = "a public key"
		case label == "PKCS7" || label == "CMS":
			der, _ := b.DER()
			k = ofDER(der)
		}
		if first == Text || k == CSR {
			first = k
		}
	}
	return first
}

func ofText(data []byte) Kind {
	text := bytes.TrimSpace(data)
	if len(text) == 0 {
		return "an empty file"
	}
	if utf8.Valid(text) {
		text = bytes.ToLower(text)
	}
	for _, k := range []struct{ prefix, contains, kind Kind }{
		{"<!doctype html", "", "an HTML page"}, {"<html", "", "an HTML page"},
		{"<", "pushcertrequestcsr", Request}, {"<", "<plist", PropertyList}, {"<?xml", "", "an XML file"}, {"bplist", "", "a binary property list"},
		{"\xfe\xed\xfe\xed", "", Keystore}, {"\xce\xce\xce\xce", "", Keystore}, {"pk\x03\x04", "", "a ZIP archive"}, {"PK\x03\x04", "", "a ZIP archive"},
		{"{", "", "JSON"}, {"ssh-", "", "an SSH public key"},
		{"\xff\xfe", "", "text in UTF-16 (save it as UTF-8)"}, {"\xfe\xff", "", "text in UTF-16 (save it as UTF-8)"},
	} {
		if bytes.HasPrefix(text, []byte(k.prefix)) && bytes.Contains(text, []byte(k.contains)) {
			return k.kind
		}
	}
	if bytes.ContainsFunc(text, func(r rune) bool { return r < ' ' && !strings.ContainsRune("\t\n\v\f\r", r) || r == utf8.RuneError }) {
		return Binary
	}
	return Text
}
