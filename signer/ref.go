package signer

import (
	"fmt"
	"net/url"
	"slices"
	"strings"

	"hsmsign/fault"
	"hsmsign/internal/suggest"
)

// MaxRef is the maximum length of a key reference, in bytes.
const MaxRef = 4096

// Ref is a parsed key reference: scheme:path?name=value&name=value.
//
// It is not a URL: '+' is a plain character, and only the backend interprets the path (RFC 7512 section 2.3 for pkcs11).
// The zero Ref names nothing. A Ref is a value; copies share nothing that changes.
type Ref struct {
	Scheme string // "file", "pkcs11", "vault", "awskms", "gcpkms", "azurekms": lower case
	Path   string // the text between "scheme:" and "?", unchanged, with its percent-encoding
	query  []attr
}

// attr is one query attribute; the value is percent-decoded.
type attr struct{ name, value string }

// ParseRef parses a key reference. An error wraps ErrReference and quotes only names of attributes, because a value may be
// a PIN. A secret in the wrong place is refused, so no part of a Ref but the values of its query attributes is secret.
func ParseRef(s string) (Ref, error) {
	if len(s) > MaxRef {
		return Ref{}, fmt.Errorf("%w: %d bytes; the limit is %d", ErrReference, len(s), MaxRef)
	}
	if strings.ContainsFunc(s, func(c rune) bool { return c < 0x20 || c == 0x7f }) {
		return Ref{}, fmt.Errorf("%w: it contains a control character; percent-encode it", ErrReference)
	}
	scheme, rest, ok := strings.Cut(s, ":")
	if !ok || !isScheme(scheme) {
		return Ref{}, fmt.Errorf("%w: it has no scheme; write file:PATH, pkcs11:ATTRIBUTES, vault://HOST/KEY, awskms:///KEY, gcpkms://KEY or azurekms://KEY", ErrReference)
	}
	path, query, hasQuery := strings.Cut(rest, "?")
	ref := Ref{Scheme: strings.ToLower(scheme), Path: path}
	// RFC 7512 section 2.3: the path may be empty, and then matches every object.
	if ref.Path == "" && (ref.Scheme != "pkcs11" || !hasQuery) {
		return Ref{}, fmt.Errorf("%w: nothing follows %q", ErrReference, ref.Scheme+":")
	}
	if Redact(path) != path {
		return Ref{}, fault.Errorf("%w: the part before \"?\" contains an attribute that may be a secret", ErrReference).
			Fix("write it after the \"?\": pin-source=file:PATH, or passphrase-file=PATH")
	}
	if rest, ok := strings.CutPrefix(path, "//"); ok && strings.Contains(authority(rest), "@") {
		return Ref{}, fault.Errorf("%w: a user or a password before the host", ErrReference).Fix("leave it out: credentials are not part of a reference")
	}
	if !hasQuery {
		return ref, nil
	}
	for i, part := range strings.Split(query, "&") {
		name, raw, ok := strings.Cut(part, "=")
		if !ok || name == "" || strings.Trim(name, alphanumeric+"-_") != "" {
			return Ref{}, fmt.Errorf("%w: query attribute %d is not of the form name=value", ErrReference, i+1)
		}
		if strings.Contains(raw, ";") { // RFC 7512 section 2.3: no pk11-qchar
			return Ref{}, fault.Errorf("%w: query attribute %q: ';' separates path attributes; use '&' between query attributes", ErrReference, name).
				Fix("quote the reference in the shell; write %3B for a ';' in a value")
		}
		value, err := Unescape(raw)
		if err != nil {
			return Ref{}, fmt.Errorf("%w: query attribute %q: a %% must be followed by two hexadecimal digits", ErrReference, name)
		}
		if checked := withoutArguments(value); Redact(checked) != checked {
			return Ref{}, fmt.Errorf("%w: query attribute %q contains another one, which may be a secret; use '&' between query attributes", ErrReference, name)
		}
		if _, repeated := ref.Query(name); repeated {
			return Ref{}, fmt.Errorf("%w: query attribute %q is repeated", ErrReference, name)
		}
		ref.query = append(ref.query, attr{name, value})
	}
	return ref, nil
}

// authority returns the part of a path before its first slash.
func authority(path string) string {
	host, _, _ := strings.Cut(path, "/")
	return host
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
			return fault.Errorf("%w: unknown query attribute %q; %s: accepts %s", ErrReference, a.name, r.Scheme, strings.Join(known, ", ")).
				Fix(suggest.Name(a.name, known, ""))
		}
	}
	return nil
}

// With returns the reference with one more query attribute, which becomes the first one.
func (r Ref) With(name, value string) Ref {
	r.query = append([]attr{{name, value}}, r.query...)
	return r
}

// Without returns the reference without the query attributes of these names.
func (r Ref) Without(names ...string) Ref {
	r.query = slices.DeleteFunc(slices.Clone(r.query), func(a attr) bool { return slices.Contains(names, a.name) })
	return r
}

// Encode returns the exact reference, with its secrets: ParseRef(r.Encode()) equals r. It is never longer than the text
// that was parsed. It is for another process; String is for people.
func (r Ref) Encode() string {
	return r.format(r.Path, func(a attr) string {
		return Escape(a.value, func(c byte) bool { return c < 0x20 || c == 0x7f || c == '%' || c == '&' || c == ';' })
	})
}

// String returns the reference in the form that ParseRef reads, with the value of every attribute that may be a secret
// replaced by "REDACTED".
func (r Ref) String() string {
	return r.format(r.Path, func(a attr) string {
		if secretAttr(a.name) {
			return redacted
		}
		return Escape(redactUser(a.name, Redact(a.value)), func(c byte) bool { return strings.IndexByte(alphanumeric+plain, c) < 0 })
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

const redacted = "REDACTED"

// Redact returns text from a reference with the value of each attribute that may be a secret, in whatever place, replaced
// by "REDACTED". A value ends at the next ';' or '&'.
func Redact(text string) string {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] != '=' || !misplaced(text[:i]) {
			continue
		}
		b.WriteString(text[:i+1] + redacted)
		end := strings.IndexAny(text[i:], ";&")
		if end < 0 {
			return b.String()
		}
		text, i = text[i+end:], 0
	}
	return b.String() + text
}

// misplaced reports whether text ends with the name of an attribute whose value may be a secret: "pin", "api-key". "token"
// and "keyPrefix" are not; a name that cannot be decoded may be one.
func misplaced(text string) bool {
	text = strings.TrimRight(text, " ")
	name, err := Unescape(text[len(strings.TrimRight(text, alphanumeric+"-_%")):])
	name = strings.ReplaceAll(strings.ToLower(name), "_", "-")
	return err != nil || secretAttr(name) && (hasAny(name, "pin", "pass", "secret", "credential") || hasAny(name+"=", "-key=", "-token=", "apikey="))
}

// withoutArguments returns the value without the arguments of a program (pin-source=exec:/PROGRAM ARG...), which may be
// like "--secret=NAME".
func withoutArguments(value string) string {
	if strings.HasPrefix(value, "exec:/") || strings.HasPrefix(value, "|/") {
		value, _, _ = strings.Cut(value, " ")
	}
	return value
}

// redactUser hides the user and password in the address of a server, "http://user:secret@host". No backend accepts them,
// and the error about them prints the reference.
func redactUser(name, value string) string {
	at := strings.LastIndexByte(value, '@')
	if name != "endpoint" || at < 0 {
		return value
	}
	return redacted + value[at:]
}

// secretAttr reports whether the value of an attribute may be a secret: pin-value (RFC 7512) and similar names. The
// location of a secret (pin-source, passphrase-file) is not secret.
func secretAttr(name string) bool {
	name = strings.ToLower(name)
	if strings.HasSuffix(name, "-source") || strings.HasSuffix(name, "-file") {
		return false
	}
	return hasAny(name, "pin", "pass", "secret", "credential", "token", "key")
}

func hasAny(name string, words ...string) bool {
	return slices.ContainsFunc(words, func(word string) bool { return strings.Contains(name, word) })
}

// isScheme refuses a single letter: it is a Windows drive, not a scheme.
func isScheme(s string) bool {
	return len(s) > 1 && strings.IndexByte(letters, s[0]) >= 0 && strings.Trim(s, alphanumeric+"+-.") == ""
}

const (
	letters      = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	alphanumeric = letters + "0123456789"
	plain        = "-._~:[]@!$'()*+,=/?|" // in a query value: RFC 7512 pk11-qattr, without '&'
)

// Unescape percent-decodes s (RFC 3986 section 2.1). It does not change '+'.
func Unescape(s string) (string, error) { return url.PathUnescape(s) }

// Escape percent-encodes the bytes of s that are special.
func Escape(s string, special func(c byte) bool) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if special(c) {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}
