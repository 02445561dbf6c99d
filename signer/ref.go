package signer

import (
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// MaxRef is the maximum length of a key reference, in bytes.
const MaxRef = 4096

// Ref is a parsed key reference: scheme:path?name=value&name=value.
//
// It is not a URL: '+' is a plain character, and only the backend interprets the path (RFC 7512 section 2.3 for pkcs11).
// The zero Ref names nothing. A Ref is a value; copies share nothing that changes.
type Ref struct {
	Scheme string // "file", "pkcs11", "awskms", "gcpkms": lower case
	Path   string // the text between "scheme:" and "?", unchanged, with its percent-encoding
	query  []attr
}

// attr is one query attribute; the value is percent-decoded.
type attr struct{ name, value string }

// ParseRef parses a key reference. An error wraps ErrReference and never quotes the query, which may contain a PIN.
func ParseRef(s string) (Ref, error) {
	if len(s) > MaxRef {
		return Ref{}, fmt.Errorf("%w: %d bytes; the limit is %d", ErrReference, len(s), MaxRef)
	}
	for _, c := range []byte(s) {
		if c < 0x20 || c == 0x7f {
			return Ref{}, fmt.Errorf("%w: it contains a control character; percent-encode it", ErrReference)
		}
	}
	scheme, rest, ok := strings.Cut(s, ":")
	if !ok || !isScheme(scheme) {
		return Ref{}, fmt.Errorf("%w: it has no scheme; write file:PATH, pkcs11:ATTRIBUTES, awskms:///KEY or gcpkms://KEY", ErrReference)
	}
	ref := Ref{Scheme: strings.ToLower(scheme)}
	var query string
	var hasQuery bool
	ref.Path, query, hasQuery = strings.Cut(rest, "?")
	// RFC 7512 section 2.3: the path may be empty, and then matches every object.
	if ref.Path == "" && (ref.Scheme != "pkcs11" || !hasQuery) {
		return Ref{}, fmt.Errorf("%w: nothing follows %q", ErrReference, ref.Scheme+":")
	}
	if !hasQuery {
		return ref, nil
	}
	for i, part := range strings.Split(query, "&") {
		name, raw, ok := strings.Cut(part, "=")
		if !ok || !isAttrName(name) {
			return Ref{}, fmt.Errorf("%w: query attribute %d is not of the form name=value", ErrReference, i+1)
		}
		value, err := Unescape(raw)
		if err != nil {
			return Ref{}, fmt.Errorf("%w: query attribute %q: a %% must be followed by two hexadecimal digits", ErrReference, name)
		}
		if slices.ContainsFunc(ref.query, func(a attr) bool { return a.name == name }) {
			return Ref{}, fmt.Errorf("%w: query attribute %q is repeated", ErrReference, name)
		}
		ref.query = append(ref.query, attr{name, value})
	}
	return ref, nil
}

// Query returns the percent-decoded value of a query attribute, and whether the reference has it.
func (r Ref) Query(name string) (string, bool) {
	for _, a := range r.query {
		if a.name == name {
			return a.value, true
		}
	}
	return "", false
}

// CheckQuery returns an error for an unknown query attribute: a typing error must not weaken a setting. The error wraps
// ErrReference.
func (r Ref) CheckQuery(known ...string) error {
	for _, a := range r.query {
		if !slices.Contains(known, a.name) {
			return fmt.Errorf("%w: unknown query attribute %q; %s: accepts %s", ErrReference, a.name, r.Scheme, strings.Join(known, ", "))
		}
	}
	return nil
}

// Encode returns the exact reference, with its secrets: ParseRef(r.Encode()) equals r. It is never longer than the text
// that was parsed. It is for another process; String is for people.
func (r Ref) Encode() string {
	return r.format(r.Path, func(a attr) string {
		return special.ReplaceAllStringFunc(a.value, func(c string) string { return fmt.Sprintf("%%%02X", c[0]) })
	})
}

// special matches the bytes that have a meaning in a value.
var special = regexp.MustCompile(`[%&\x00-\x1f\x7f]`)

// String returns the reference in the form that ParseRef reads, with the value of every attribute that may be a secret
// replaced by "REDACTED".
func (r Ref) String() string {
	return r.format(redactPIN(r.Path), func(a attr) string {
		if secretAttr(a.name) {
			return "REDACTED"
		}
		return escape(redactUser(a.name, redactPIN(a.value)))
	})
}

func (r Ref) format(path string, value func(attr) string) string {
	var b strings.Builder
	b.WriteString(r.Scheme + ":" + path)
	sep := byte('?')
	for _, a := range r.query {
		b.WriteByte(sep)
		sep = '&'
		b.WriteString(a.name + "=" + value(a))
	}
	return b.String()
}

// redactPIN hides a pin-value in the wrong place, in the path or after a ';' in the query: the error about it prints the
// reference.
func redactPIN(s string) string {
	const name = "pin-value="
	for from := 0; from+len(name) <= len(s); from++ {
		if !strings.EqualFold(s[from:from+len(name)], name) {
			continue
		}
		from += len(name)
		end := len(s)
		if i := strings.IndexAny(s[from:], ";&"); i >= 0 {
			end = from + i
		}
		s = s[:from] + "REDACTED" + s[end:]
	}
	return s
}

// redactUser hides the user and password in the address of a server, "http://user:secret@host". No backend accepts them,
// and the error about them prints the reference.
func redactUser(name, value string) string {
	at := strings.LastIndexByte(value, '@')
	if name != "endpoint" || at < 0 {
		return value
	}
	return "REDACTED" + value[at:]
}

// secretAttr reports whether the value of an attribute may be a secret: pin-value (RFC 7512) and similar names. The
// location of a secret (pin-source, passphrase-file) is not secret.
func secretAttr(name string) bool {
	name = strings.ToLower(name)
	if strings.HasSuffix(name, "-source") || strings.HasSuffix(name, "-file") {
		return false
	}
	return slices.ContainsFunc([]string{"pin", "pass", "secret", "token", "password", "credential", "key"},
		func(word string) bool { return strings.Contains(name, word) })
}

func isScheme(s string) bool {
	for i, c := range []byte(s) {
		if !isLetter(c) && (i == 0 || !isDigit(c) && strings.IndexByte("+-.", c) < 0) {
			return false
		}
	}
	// A single letter is a Windows drive, not a scheme.
	return len(s) > 1
}

func isAttrName(s string) bool {
	for _, c := range []byte(s) {
		if !isLetter(c) && !isDigit(c) && c != '-' && c != '_' {
			return false
		}
	}
	return s != ""
}

func isLetter(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }
func isDigit(c byte) bool  { return '0' <= c && c <= '9' }

// Unescape percent-decodes s (RFC 3986 section 2.1). It does not change '+'.
func Unescape(s string) (string, error) { return url.PathUnescape(s) }

// escape percent-encodes the characters that are not allowed in a query value.
func escape(s string) string {
	const plain = "-._~:[]@!$'()*+,;=/?|" // RFC 7512 pk11-qattr, without '&'
	var b strings.Builder
	for _, c := range []byte(s) {
		if isLetter(c) || isDigit(c) || strings.IndexByte(plain, c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}
