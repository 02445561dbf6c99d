// Package uri reads the path of a PKCS#11 URI (RFC 7512): which token, slot and object it names.
//
// Everything here is safe for concurrent use.
package uri

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"hsmsign/fault"
	"hsmsign/internal/suggest"
	"hsmsign/signer"
)

// Names are the path attributes of RFC 7512 section 2.3.
var Names = []string{
	"token", "manufacturer", "serial", "model", "library-manufacturer", "library-description", "library-version",
	"object", "type", "id", "slot-id", "slot-manufacturer", "slot-description",
}

// QueryNames are the query attributes of a key reference.
var QueryNames = []string{
	"module-path", "module-name", "module-init", "pin-source", "pin-value", "max-sessions", "mechanism", "isolate", "insecure-mode",
}

// synonyms are what other programs call path attributes.
var synonyms = map[string]string{"label": "object", "name": "object", "key": "object", "slot": "slot-id", "token-label": "token"}

// Path is the path of a PKCS#11 URI: its attributes in the order in which they were written.
type Path []Attr

// Attr is one attribute; the value is percent-decoded, so that of "id" is raw bytes. That of "slot-id" has no leading
// zeros, and that of "library-version" has both numbers.
type Attr struct{ Name, Value string }

// Parse reads the path of a PKCS#11 URI: attributes separated by ";", percent-encoded, each at most once. An unknown
// attribute is refused, also a vendor-specific one: by RFC 7512 section 2.5 it would match nothing. A value that contains
// another attribute is refused too: another separator was written for ";". Errors wrap signer.ErrReference.
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
		if !slices.Contains(Names, name) {
			return nil, unknown(name, i+1)
		}
		if _, dup := p.Get(name); dup {
			return nil, fmt.Errorf("%w: path attribute %q is repeated (RFC 7512 section 2.3)", signer.ErrReference, name)
		}
		if other := Second(raw); other != "" {
			return nil, fault.Errorf("%w: path attribute %q contains %q; ';' separates path attributes", signer.ErrReference, name, other+"=").
				Fix("query attributes follow the \"?\"; write %3D for an '=' in a value")
		}
		value, err := signer.Unescape(raw)
		if err != nil {
			return nil, fmt.Errorf("%w: path attribute %q: a %% must be followed by two hexadecimal digits", signer.ErrReference, name)
		}
		if value, err = normalize(name, value); err != nil {
			return nil, err
		}
		p = append(p, Attr{name, value})
	}
	return p, nil
}

// Second returns the name of an attribute that begins inside a value, after a separator of other formats; "" if none does.
func Second(value string) string {
	for i := range len(value) {
		at := strings.LastIndexAny(value[:i], ",&| ")
		if name := value[at+1 : i]; value[i] == '=' && at >= 0 && (slices.Contains(Names, name) || slices.Contains(QueryNames, name)) {
			return name
		}
	}
	return ""
}

// unknown returns the error for the name of the i-th path attribute.
func unknown(name string, i int) error {
	if strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != "" { // it may contain a secret
		return fmt.Errorf("%w: the name of path attribute %d is not a word", signer.ErrReference, i)
	}
	hint := suggest.Name(name, slices.Concat(Names, QueryNames), "")
	if slices.Contains(QueryNames, name) {
		hint = "query attributes follow the \"?\": pkcs11:token=mdm;object=vendor?" + name + "=..."
	} else if right, ok := synonyms[name]; ok {
		hint = fmt.Sprintf("write %s=", right)
	}
	return fault.Errorf("%w: unknown path attribute %q; pkcs11: accepts %s", signer.ErrReference, name, strings.Join(Names, ", ")).Fix(hint)
}

// normalize checks the attributes that are more than text, and returns a value in the form in which it is compared.
func normalize(name, value string) (string, error) {
	switch name {
	case "type":
		if value != "private" {
			return "", fmt.Errorf("%w: path attribute \"type\" is %q; only a private key signs: write type=private or omit it", signer.ErrReference, signer.Redact(value))
		}
	case "slot-id":
		n, err := strconv.ParseUint(value, 10, 64)
		if err != nil {
			return "", fmt.Errorf("%w: path attribute \"slot-id\" is %q, not a decimal number", signer.ErrReference, signer.Redact(value))
		}
		return strconv.FormatUint(n, 10), nil
	case "library-version":
		first, second, dotted := strings.Cut(value, ".")
		if !dotted {
			second = "0" // RFC 7512 section 2.3
		}
		major, err := strconv.ParseUint(first, 10, 8)
		minor, err2 := strconv.ParseUint(second, 10, 8)
		if err != nil || err2 != nil {
			return "", fmt.Errorf("%w: path attribute \"library-version\" is %q, not of the form MAJOR or MAJOR.MINOR", signer.ErrReference, signer.Redact(value))
		}
		return fmt.Sprintf("%d.%d", major, minor), nil
	}
	return value, nil
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

// HexHint returns a hint for an id that was probably meant in hexadecimal: "01" without "%" is two characters. It is ""
// for any other path.
func (p Path) HexHint() string {
	text, _ := p.Get("id")
	digits := strings.TrimPrefix(strings.ToLower(text), "0x")
	id, err := hex.DecodeString(strings.Repeat("0", len(digits)%2) + digits)
	if err != nil || len(id) == 0 {
		return ""
	}
	return fmt.Sprintf("id=%s means the characters %q; write %v for hexadecimal %s", text, text, Path{{"id", string(id)}}, digits)
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

// isPathChar reports whether c is a pk11-pchar of RFC 7512 section 2.3 that needs no percent-encoding. An '=' would need
// none, but Parse refuses a value like "a,object=b".
func isPathChar(c byte) bool {
	return 'a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9' || strings.IndexByte("-._~:[]@!$'()*+,&", c) >= 0
}
