// Package uri reads the path of a PKCS#11 URI (RFC 7512): which token, slot and object it names.
//
// Everything here is safe for concurrent use.
package uri

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"hsmsign/signer"
)

// names are the path attributes of RFC 7512 section 2.3.
const names = "token, manufacturer, serial, model, library-manufacturer, library-description, library-version, " +
	"object, type, id, slot-id, slot-manufacturer, slot-description"

// Path is the path of a PKCS#11 URI: its attributes in the order in which they were written.
type Path []Attr

// Attr is one attribute; the value is percent-decoded, so that of "id" is raw bytes.
type Attr struct{ Name, Value string }

// Parse reads the path of a PKCS#11 URI: attributes separated by ";", percent-encoded, each at most once. An unknown
// attribute is refused, also a vendor-specific one: by RFC 7512 section 2.5 it would match nothing. Errors wrap
// signer.ErrReference.
func Parse(text string) (Path, error) {
	var p Path
	if text == "" { // matches every object
		return p, nil
	}
	for i, part := range strings.Split(text, ";") {
		name, raw, ok := strings.Cut(part, "=")
		if !ok {
			return nil, fmt.Errorf("%w: path attribute %d is not of the form name=value", signer.ErrReference, i+1)
		}
		if !slices.Contains(strings.Split(names, ", "), name) {
			return nil, fmt.Errorf("%w: unknown path attribute %q; pkcs11: accepts %s", signer.ErrReference, name, names)
		}
		if _, dup := p.Get(name); dup {
			return nil, fmt.Errorf("%w: path attribute %q is repeated (RFC 7512 section 2.3)", signer.ErrReference, name)
		}
		value, err := signer.Unescape(raw)
		if err != nil {
			return nil, fmt.Errorf("%w: path attribute %q: a %% must be followed by two hexadecimal digits", signer.ErrReference, name)
		}
		if err := check(name, value); err != nil {
			return nil, err
		}
		p = append(p, Attr{name, value})
	}
	return p, nil
}

// check checks the attributes that are more than text.
func check(name, value string) error {
	switch name {
	case "type":
		if value != "private" {
			return fmt.Errorf("%w: path attribute \"type\" is %q; only a private key signs: write type=private or omit it", signer.ErrReference, value)
		}
	case "slot-id":
		if _, err := strconv.ParseUint(value, 10, 64); err != nil {
			return fmt.Errorf("%w: path attribute \"slot-id\" is %q, not a decimal number", signer.ErrReference, value)
		}
	case "library-version":
		if _, _, err := parseVersion(value); err != nil {
			return fmt.Errorf("%w: path attribute \"library-version\" is %q, not of the form MAJOR or MAJOR.MINOR", signer.ErrReference, value)
		}
	}
	return nil
}

// parseVersion reads "MAJOR.MINOR"; a missing minor number is 0 (RFC 7512 section 2.3).
func parseVersion(s string) (major, minor byte, err error) {
	first, second, dotted := strings.Cut(s, ".")
	if !dotted {
		second = "0"
	}
	a, err := strconv.ParseUint(first, 10, 8)
	if err != nil {
		return 0, 0, err
	}
	b, err := strconv.ParseUint(second, 10, 8)
	return byte(a), byte(b), err
}

// Get returns the value of an attribute, and whether the path has it.
func (p Path) Get(name string) (string, bool) {
	for _, a := range p {
		if a.Name == name {
			return a.Value, true
		}
	}
	return "", false
}

// Matches reports whether an attribute allows the value. An absent attribute matches every value, an empty one only the
// empty value (RFC 7512 section 2.5).
func (p Path) Matches(name, value string) bool {
	want, ok := p.Get(name)
	return !ok || want == value
}

// MatchesSlot is Matches for slot-id, in which leading zeros mean nothing.
func (p Path) MatchesSlot(slot uint64) bool {
	want, ok := p.Get("slot-id")
	if !ok {
		return true
	}
	n, err := strconv.ParseUint(want, 10, 64)
	return err == nil && n == slot
}

// MatchesVersion is Matches for library-version.
func (p Path) MatchesVersion(major, minor byte) bool {
	want, ok := p.Get("library-version")
	if !ok {
		return true
	}
	a, b, err := parseVersion(want)
	return err == nil && a == major && b == minor
}

// String returns the path in the form that Parse reads. All of an id is percent-encoded, because it is binary (RFC 7512
// section 2.3).
func (p Path) String() string {
	var b strings.Builder
	for i, a := range p {
		if i > 0 {
			b.WriteByte(';')
		}
		b.WriteString(a.Name + "=")
		for _, c := range []byte(a.Value) {
			if isPathChar(c) && a.Name != "id" {
				b.WriteByte(c)
			} else {
				fmt.Fprintf(&b, "%%%02X", c)
			}
		}
	}
	return b.String()
}

// isPathChar reports whether c is a pk11-pchar of RFC 7512 section 2.3 that needs no percent-encoding.
func isPathChar(c byte) bool {
	return 'a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9' || strings.IndexByte("-._~:[]@!$'()*+,=&", c) >= 0
}
