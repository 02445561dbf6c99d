package pkcs11

import (
	"crypto"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"hsmsign/fault"
	"hsmsign/secret"
	"hsmsign/signer"
)

// maxSessions bounds the max-sessions attribute.
const maxSessions = 64

// The values of the mechanism attribute. Without it CKM_RSA_PKCS is used where the token has it.
const (
	mechanismRaw    = "rsa-pkcs"
	mechanismSHA256 = "sha256-rsa-pkcs"
)

// pathAttrs are the path attributes of RFC 7512 section 2.3.
const pathAttrs = "token, manufacturer, serial, model, library-manufacturer, library-description, library-version, " +
	"object, type, id, slot-id, slot-manufacturer, slot-description"

// uri is the path of a PKCS#11 URI: the attributes in the order in which they were written.
type uri []pathAttr

// pathAttr is one attribute; the value is percent-decoded, so that of "id" is raw bytes.
type pathAttr struct{ name, value string }

// parseURI reads the path of a PKCS#11 URI by RFC 7512: attributes divided by ";", percent-encoded, each at
// most once. An attribute that is not known is refused, vendor-specific ones included: by section 2.5 it
// would match nothing. Errors wrap signer.ErrReference.
func parseURI(path string) (uri, error) {
	var u uri
	if path == "" { // matches every object
		return u, nil
	}
	for i, part := range strings.Split(path, ";") {
		name, raw, ok := strings.Cut(part, "=")
		if !ok {
			return nil, fmt.Errorf("%w: path attribute %d is not of the form name=value", signer.ErrReference, i+1)
		}
		if !slices.Contains(strings.Split(pathAttrs, ", "), name) {
			return nil, fmt.Errorf("%w: unknown path attribute %q; pkcs11: takes %s", signer.ErrReference, name, pathAttrs)
		}
		if _, dup := u.get(name); dup {
			return nil, fmt.Errorf("%w: path attribute %q stands twice (RFC 7512 section 2.3)", signer.ErrReference, name)
		}
		value, err := signer.Unescape(raw)
		if err != nil {
			return nil, fmt.Errorf("%w: path attribute %q: a %% must be followed by two hexadecimal digits", signer.ErrReference, name)
		}
		if err := checkPathAttr(name, value); err != nil {
			return nil, err
		}
		u = append(u, pathAttr{name, value})
	}
	return u, nil
}

// checkPathAttr holds the attributes that are more than text to their form.
func checkPathAttr(name, value string) error {
	switch name {
	case "type":
		if value != "private" {
			return fmt.Errorf("%w: path attribute \"type\" is %q; only a private key signs: write type=private or leave it out", signer.ErrReference, value)
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

// get is the value of an attribute, and whether it is there.
func (u uri) get(name string) (string, bool) {
	for _, a := range u {
		if a.name == name {
			return a.value, true
		}
	}
	return "", false
}

// matches: an attribute that is absent matches everything, one that is there and empty only the empty value
// (RFC 7512 section 2.5).
func (u uri) matches(name, value string) bool {
	want, ok := u.get(name)
	return !ok || want == value
}

// matchesNumber is matches for slot-id, where leading zeros mean nothing.
func (u uri) matchesNumber(name string, value uint64) bool {
	want, ok := u.get(name)
	if !ok {
		return true
	}
	n, err := strconv.ParseUint(want, 10, 64)
	return err == nil && n == value
}

// matchesVersion is matches for library-version.
func (u uri) matchesVersion(major, minor byte) bool {
	want, ok := u.get("library-version")
	if !ok {
		return true
	}
	a, b, err := parseVersion(want)
	return err == nil && a == major && b == minor
}

// String is the path in the form parseURI reads.
func (u uri) String() string {
	var b strings.Builder
	for i, a := range u {
		if i > 0 {
			b.WriteByte(';')
		}
		b.WriteString(a.name + "=")
		for _, c := range []byte(a.value) {
			if isPathChar(c) && a.name != "id" {
				b.WriteByte(c)
			} else {
				// All of "id" is encoded: section 2.3 asks for it, as it is binary.
				fmt.Fprintf(&b, "%%%02X", c)
			}
		}
	}
	return b.String()
}

// isPathChar: pk11-pchar of RFC 7512 section 2.3, without its percent-encoding.
func isPathChar(c byte) bool {
	return 'a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9' || strings.IndexByte("-._~:[]@!$'()*+,=&", c) >= 0
}

// reference is a key reference that was read in full.
type reference struct {
	ref        signer.Ref
	path       uri
	module     string           // absolute path of the module's file
	moduleName string           // the module's name in p11-kit's configuration, where the reference gives no path
	pinSource  string           // empty: none given
	pinValue   string           // empty: none given
	sessions   int              // 1 to maxSessions
	mechanism  string           // mechanismRaw, mechanismSHA256, or empty: what the token has
	isolate    string           // "yes", "no", or empty: as the options say
	anyPINMode bool             // read a PIN file that others can read
	public     crypto.PublicKey // of the key that is looked for; nil: not known
}

// parseReference reads both halves of a PKCS#11 URI. Errors wrap signer.ErrReference and never repeat the
// value of a query attribute.
func parseReference(ref signer.Ref) (reference, error) {
	r := reference{ref: ref, sessions: min(runtime.NumCPU(), 4)}
	if ref.Scheme != "pkcs11" {
		return r, fmt.Errorf("%w: scheme %q where \"pkcs11\" is due", signer.ErrReference, ref.Scheme)
	}
	var err error
	if r.path, err = parseURI(ref.Path); err != nil {
		return r, err
	}
	if err := ref.CheckQuery("module-path", "module-name", "pin-source", "pin-value", "max-sessions", "mechanism", "isolate", "insecure-mode"); err != nil {
		return r, err
	}
	if err := r.readModule(); err != nil {
		return r, err
	}
	var hasSource, hasValue bool
	r.pinSource, hasSource = ref.Query("pin-source")
	r.pinValue, hasValue = ref.Query("pin-value")
	switch {
	case hasSource && hasValue:
		return r, fmt.Errorf("%w: query attributes \"pin-source\" and \"pin-value\" exclude each other (RFC 7512 section 2.4)", signer.ErrReference)
	case hasSource && r.pinSource == "":
		return r, fmt.Errorf("%w: query attribute \"pin-source\" is empty", signer.ErrReference)
	case hasValue && (r.pinValue == "" || len(r.pinValue) > secret.Max):
		return r, fmt.Errorf("%w: query attribute \"pin-value\" must have 1 to %d bytes", signer.ErrReference, secret.Max)
	}
	if s, ok := ref.Query("max-sessions"); ok {
		if r.sessions, err = strconv.Atoi(s); err != nil || r.sessions < 1 || r.sessions > maxSessions {
			return r, fmt.Errorf("%w: query attribute \"max-sessions\" must be a number from 1 to %d", signer.ErrReference, maxSessions)
		}
	}
	if s, ok := ref.Query("mechanism"); ok {
		if s != mechanismRaw && s != mechanismSHA256 {
			return r, fmt.Errorf("%w: query attribute \"mechanism\" takes %q or %q", signer.ErrReference, mechanismRaw, mechanismSHA256)
		}
		r.mechanism = s
	}
	if s, ok := ref.Query("isolate"); ok {
		if s != "yes" && s != "no" {
			return r, fmt.Errorf("%w: query attribute \"isolate\" takes \"yes\" or \"no\"", signer.ErrReference)
		}
		r.isolate = s
	}
	if s, ok := ref.Query("insecure-mode"); ok {
		if s != "allow" {
			return r, fmt.Errorf("%w: query attribute \"insecure-mode\" takes \"allow\" only", signer.ErrReference)
		}
		r.anyPINMode = true
	}
	return r, nil
}

// readModule reads which module the reference names: by path, or by name.
func (r *reference) readModule() error {
	var hasPath, hasName bool
	r.module, hasPath = r.ref.Query("module-path")
	r.moduleName, hasName = r.ref.Query("module-name")
	switch {
	case hasPath && hasName:
		return fmt.Errorf("%w: query attributes \"module-path\" and \"module-name\" exclude each other here", signer.ErrReference)
	case hasName && (r.moduleName == "" || strings.ContainsAny(r.moduleName, `/\`)):
		return fmt.Errorf("%w: query attribute \"module-name\" is a name and no path (RFC 7512 section 2.3)", signer.ErrReference)
	case !hasName && !filepath.IsAbs(r.module):
		return fmt.Errorf("%w: query attribute \"module-path\" must be there and hold an absolute path", signer.ErrReference)
	}
	return nil
}

// fail is the error of one operation on this key.
func (r reference) fail(op string, err error, fix string) error {
	return &signer.Error{Op: op, Ref: r.ref, Err: fault.WithHint(err, fix)}
}
