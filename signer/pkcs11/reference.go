package pkcs11

import (
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"hsmsign/fault"
	"hsmsign/secret"
	"hsmsign/signer"
	"hsmsign/signer/pkcs11/internal/uri"
)

// maxSessions is the largest max-sessions attribute.
const maxSessions = 64

// The values of the mechanism attribute. Without it CKM_RSA_PKCS is used if the token has it.
const (
	mechanismRaw    = "rsa-pkcs"
	mechanismSHA256 = "sha256-rsa-pkcs"
)

// reference is a parsed key reference.
type reference struct {
	ref        signer.Ref
	path       uri.Path
	module     string // absolute path of the module's file
	moduleInit string // passed to C_Initialize; empty: nothing
	moduleName string // the module's name in p11-kit's configuration, if the reference has no path
	pinSource  string // empty: not given
	pinValue   string // empty: not given
	sessions   int    // 1 to maxSessions
	mechanism  string // mechanismRaw, mechanismSHA256, or empty: what the token has
	isolate    string // "yes", "no", or empty: as the options say
	insecure   string // "allow": read a PIN file that others can read
}

// parseReference reads both halves of a PKCS#11 URI. Errors wrap signer.ErrReference and never contain the value of a
// query attribute.
func parseReference(ref signer.Ref) (reference, error) {
	r := reference{ref: ref, sessions: min(runtime.NumCPU(), 4)}
	if ref.Scheme != "pkcs11" {
		return r, fmt.Errorf("%w: scheme %q, want \"pkcs11\"", signer.ErrReference, ref.Scheme)
	}
	var err error
	if r.path, err = uri.Parse(ref.Path); err != nil {
		return r, err
	}
	if err = ref.CheckQuery(uri.QueryNames...); err != nil {
		for _, name := range uri.Names {
			if _, given := ref.Query(name); given {
				return r, fault.WithHint(err, fmt.Sprintf("%s= is a path attribute; write it before the \"?\"", name))
			}
		}
		return r, err
	}
	if s, ok := ref.Query("max-sessions"); ok {
		if r.sessions, err = strconv.Atoi(s); err != nil || r.sessions < 1 || r.sessions > maxSessions {
			return r, fmt.Errorf("%w: query attribute \"max-sessions\" must be a number from 1 to %d", signer.ErrReference, maxSessions)
		}
	}
	for _, attr := range []struct {
		name  string
		value *string
		words []string
	}{
		{"mechanism", &r.mechanism, []string{mechanismRaw, mechanismSHA256}},
		{"isolate", &r.isolate, []string{"yes", "no"}},
		{"insecure-mode", &r.insecure, []string{"allow"}},
	} {
		s, ok := ref.Query(attr.name)
		if ok && !slices.Contains(attr.words, s) {
			return r, fmt.Errorf("%w: query attribute %q must be one of %q", signer.ErrReference, attr.name, attr.words)
		}
		*attr.value = s
	}
	if err := r.readModule(); err != nil {
		return r, err
	}
	return r, r.readPINSource()
}

// readModule reads which module the reference names: by path, or by name.
func (r *reference) readModule() error {
	var hasPath, hasName bool
	r.module, hasPath = r.ref.Query("module-path")
	r.moduleName, hasName = r.ref.Query("module-name")
	init, hasInit := r.ref.Query("module-init")
	r.moduleInit = init
	switch other := uri.Second(r.module + r.moduleName); {
	case other != "":
		return fmt.Errorf("%w: the name of the module contains %q; '&' separates query attributes", signer.ErrReference, other+"=")
	case hasPath && hasName:
		return fmt.Errorf("%w: query attributes \"module-path\" and \"module-name\" exclude each other", signer.ErrReference)
	case hasName && (r.moduleName == "" || strings.ContainsAny(r.moduleName, `/\`)):
		return fmt.Errorf("%w: query attribute \"module-name\" must be a name, not a path (RFC 7512 section 2.3)", signer.ErrReference)
	case hasInit && (init == "" || strings.ContainsRune(init, 0)):
		return fmt.Errorf("%w: query attribute \"module-init\" is empty or contains a zero byte", signer.ErrReference)
	case !hasName && !filepath.IsAbs(r.module):
		return fmt.Errorf("%w: query attribute \"module-path\" is required and must be absolute", signer.ErrReference)
	}
	return nil
}

// readPINSource reads where the PIN is.
func (r *reference) readPINSource() error {
	var hasSource, hasValue bool
	r.pinSource, hasSource = r.ref.Query("pin-source")
	r.pinValue, hasValue = r.ref.Query("pin-value")
	switch {
	case hasSource && hasValue:
		return fmt.Errorf("%w: query attributes \"pin-source\" and \"pin-value\" exclude each other (RFC 7512 section 2.4)", signer.ErrReference)
	case hasSource && r.pinSource == "":
		return fmt.Errorf("%w: query attribute \"pin-source\" is empty", signer.ErrReference)
	case hasValue && (r.pinValue == "" || len(r.pinValue) > secret.Max):
		return fmt.Errorf("%w: query attribute \"pin-value\" must have 1 to %d bytes", signer.ErrReference, secret.Max)
	}
	return nil
}

// wrap returns the error of one operation on this key. Nil, and an error that is a *signer.Error already, are returned as
// they are.
func (r reference) wrap(op string, err error) error {
	if _, told := err.(*signer.Error); told || err == nil { //nolint:errorlint // the outermost error decides
		return err
	}
	return &signer.Error{Op: op, Ref: r.ref, Err: err}
}

// exact returns the reference with another path and without its PIN, for people.
func (r reference) exact(path uri.Path) string {
	ref := r.ref.Without("pin-value")
	ref.Path = path.String()
	return ref.String()
}

// forWorker returns the reference that a worker process opens: the resolved module replaces its path or name, and the
// parent answers for the PIN. It is exact, with no value redacted.
func (r reference) forWorker(module string) signer.Ref {
	ref := r.ref.Without("module-path", "module-name", "pin-value")
	if r.pinValue != "" {
		ref = ref.With("pin-source", "parent") // a token with a PIN pad is sent a PIN only if the reference has one
	}
	return ref.With("module-path", module)
}
