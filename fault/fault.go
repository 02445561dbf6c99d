// Package fault describes what went wrong and what to do about it: findings about an input, failures of an
// operation, and the one table that maps both to exit code, HTTP status and problem type.
//
// An error family is a value that callers match with errors.Is, and has a Kind:
//
//	var ErrKeyNotFound = fault.Vendor.New("key not found")
//
// A failure wraps a family, or has a kind of its own, and may carry a hint:
//
//	return fault.Errorf("%w: no file %q", ErrKeyNotFound, path).Fix("check the path")
//	return fault.Usage.Errorf("no CSR given").Fix("name the customer's CSR file")
//
// KindOf, Hint and the methods of Kind are the only way to an exit code, an HTTP status, a problem type or a hint.
// Everything here is safe for concurrent use.
package fault

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"unicode"
)

// Kind classifies a failure by what the caller can do about it. The zero Kind means that nothing failed.
type Kind int

// The kinds. If an error joins failures of several kinds, the first kind of this list counts.
const (
	None            Kind = iota
	Interrupted          // the caller gave up: SIGINT, SIGTERM, a canceled context
	Usage                // command line, configuration, or an output or key that exists
	Unauthenticated      // the caller is not known
	Auth                 // the key store refused the PIN, passphrase or credentials
	Forbidden            // the policy refused the caller
	Refused              // the input was refused
	NotFound             // it does not exist, or belongs to another customer
	Conflict             // it contradicts what is recorded
	TooLarge             // the input exceeds a limit
	WrongType            // the input has a type that is not accepted
	Due                  // something has to be done soon
	Vendor               // vendor identity: no such key, key and certificate do not match, chain incomplete or expired
	Defects              // verification found defects
	Limited              // a rate limit or a full queue
	Unavailable          // key store, ledger or server do not answer, or answer wrongly
	Pending              // accepted, waiting for approval
	Internal             // a fault of hsmsign or of the machine: disk full, ...
)

// table is the one place that knows exit codes, HTTP statuses and problem types. docs/cli.md explains the exit codes.
var table = [...]struct {
	name   string
	exit   int
	status int
}{
	None:            {"none", 0, http.StatusOK},
	Interrupted:     {"interrupted", 130, http.StatusServiceUnavailable},
	Usage:           {"usage", 2, http.StatusBadRequest},
	Unauthenticated: {"unauthenticated", 5, http.StatusUnauthorized},
	Auth:            {"key-store-authentication", 5, http.StatusServiceUnavailable},
	Forbidden:       {"forbidden", 3, http.StatusForbidden},
	Refused:         {"refused", 3, http.StatusUnprocessableEntity},
	NotFound:        {"not-found", 3, http.StatusNotFound},
	Conflict:        {"conflict", 3, http.StatusConflict},
	TooLarge:        {"too-large", 3, http.StatusRequestEntityTooLarge},
	WrongType:       {"wrong-type", 3, http.StatusUnsupportedMediaType},
	Due:             {"due", 3, http.StatusOK},
	Vendor:          {"vendor-identity", 4, http.StatusServiceUnavailable},
	Defects:         {"defects", 7, http.StatusOK},
	Limited:         {"limited", 6, http.StatusTooManyRequests},
	Unavailable:     {"unavailable", 6, http.StatusServiceUnavailable},
	Pending:         {"pending", 8, http.StatusAccepted},
	Internal:        {"internal", 1, http.StatusInternalServerError},
}

// Exit returns the exit code of the program: 0 to 8, or 130 after SIGINT (the program turns it into 143 after SIGTERM).
func (k Kind) Exit() int { return table[k].exit }

// Status returns the HTTP status code (RFC 9110).
func (k Kind) Status() int { return table[k].status }

// Problem returns the type of a problem details object (RFC 9457), a URI.
func (k Kind) Problem() string { return problemPrefix + table[k].name }

const problemPrefix = "urn:hsmsign:problem:"

// ParseProblem returns the kind of a problem type: the reverse of Kind.Problem.
func ParseProblem(urn string) (Kind, bool) {
	name, ok := strings.CutPrefix(urn, problemPrefix)
	for k := range table {
		if ok && table[k].name == name {
			return Kind(k), true
		}
	}
	return None, false
}

// String returns the last part of the problem type.
func (k Kind) String() string { return table[k].name }

// New returns an error family of this kind. It is matched by identity, with errors.Is.
func (k Kind) New(text string) error { return &Failure{kind: k, err: errors.New(text)} }

// Errorf returns a failure of this kind, with the text of fmt.Errorf. The kind hides the kinds of what it wraps.
func (k Kind) Errorf(format string, args ...any) *Failure {
	return &Failure{kind: k, err: fmt.Errorf(format, args...)}
}

// Failure is an error with a kind, a hint, or both. It never holds a secret.
type Failure struct {
	kind Kind // None: the kind of what err wraps
	err  error
	hint string
	rule string
}

// Errorf returns a failure with the text of fmt.Errorf and the kind of what it wraps.
func Errorf(format string, args ...any) *Failure { return &Failure{err: fmt.Errorf(format, args...)} }

// WithHint returns err with a hint, which hides the hints of what err wraps. A nil err stays nil, and an empty hint
// changes nothing.
func WithHint(err error, hint string) error {
	if err == nil || hint == "" {
		return err
	}
	return &Failure{err: err, hint: hint}
}

// Fix sets the hint, one line that says what to do, and returns the failure.
func (f *Failure) Fix(hint string) *Failure {
	f.hint = hint
	return f
}

// Rule sets the id of the rule that refused, subject.rule, which the message gets at its end, and returns the failure.
func (f *Failure) Rule(id string) *Failure {
	f.rule = id
	return f
}

func (f *Failure) Error() string {
	if f.rule != "" {
		return f.err.Error() + " [" + f.rule + "]"
	}
	return f.err.Error()
}

func (f *Failure) Unwrap() error { return f.err }

// Hint returns what to do; it may be empty.
func (f *Failure) Hint() string { return f.hint }

// Kind returns the failure's own kind; None means that of what it wraps.
func (f *Failure) Kind() Kind { return f.kind }

// KindOf returns the kind of an error: None for nil, Interrupted if it wraps context.Canceled, otherwise that of the
// outermost error that has one. Of errors that are joined side by side, the first in the list of kinds counts.
// An error that has no kind is Unavailable if it wraps context.DeadlineExceeded, and otherwise Internal.
func KindOf(err error) Kind {
	switch {
	case err == nil:
		return None
	case errors.Is(err, context.Canceled):
		return Interrupted
	}
	if k := kindOf(err); k != None {
		return k
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return Unavailable
	}
	return Internal
}

func kindOf(err error) Kind {
	if e, ok := err.(interface{ Kind() Kind }); ok && e.Kind() != None {
		return e.Kind()
	}
	first := None
	for _, child := range unwrap(err) {
		if k := kindOf(child); k != None && (first == None || k < first) {
			first = k
		}
	}
	return first
}

// Hint returns what to do about an error: the outermost hint, or "".
func Hint(err error) string {
	if e, ok := err.(interface{ Hint() string }); ok && e.Hint() != "" {
		return e.Hint()
	}
	for _, child := range unwrap(err) {
		if hint := Hint(child); hint != "" {
			return hint
		}
	}
	return ""
}

// Rule returns the id of the rule that refused, of the outermost error or finding that has one, or "".
func Rule(err error) string {
	switch e := err.(type) { //nolint:errorlint // one step of the walk through what err wraps
	case *Finding:
		return e.ID
	case *Failure:
		if e.rule != "" {
			return e.rule
		}
	}
	for _, child := range unwrap(err) {
		if rule := Rule(child); rule != "" {
			return rule
		}
	}
	return ""
}

// unwrap returns the errors that err wraps directly.
func unwrap(err error) []error {
	switch e := err.(type) { //nolint:errorlint // one step of the walk through what err wraps
	case interface{ Unwrap() error }:
		if child := e.Unwrap(); child != nil {
			return []error{child}
		}
	case interface{ Unwrap() []error }:
		return e.Unwrap()
	}
	return nil
}

// Clip makes text from outside fit for an error: one line without control characters, of at most limit bytes.
func Clip(text string, limit int) string {
	text = strings.Join(strings.FieldsFunc(text, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }), " ")
	const mark = "..."
	if len(text) <= limit {
		return text
	}
	return strings.ToValidUTF8(text[:limit-len(mark)], "") + mark
}

// Severity is how serious a finding is.
type Severity string

// The severities. SeverityError: the input is refused, or Apple's portal would refuse it. SeverityWarning: it works
// today and will stop working, or has a surprising effect. SeverityNote: worth knowing, no action needed.
const (
	SeverityError   Severity = "error"
	SeverityWarning Severity = "warning"
	SeverityNote    Severity = "note"
)

// The subjects: the part of a finding's ID before its first dot. The subject decides the Kind of a refusal.
const (
	CSR      = "csr"      // the customer's certificate signing request
	Chain    = "chain"    // the vendor's certificate, its chain, and whether the key matches
	Request  = "request"  // the Push Certificate Request file
	Push     = "push"     // the push certificate, and the mail of a signing service
	Profile  = "profile"  // a configuration profile
	ABM      = "abm"      // the server token of Apple Business Manager
	CMS      = "cms"      // a signed message (RFC 5652)
	MDM      = "mdm"      // the Mdm-Signature of a device's message
	Identity = "identity" // what a profile, DEP profile or PKCS#12 file brings to a device
)

// The errors of Apple's Push Certificates Portal (https://identity.apple.com/pushcert), word for word.
const (
	PortalSignature    = "Certificate Signature Verification failed because the signature is invalid (-80018)"
	PortalExpired      = "Certificate Signature Verification failed because the signing certificate is expired"
	PortalInvalidCSR   = "Invalid Certificate Signing Request"
	PortalChainMissing = "Signing Certificate Chain Missing"
)

// Finding is one fact about an input that a check reports. It is also an error: the check that refuses an input and
// the check that reports on it are the same code. ID, Severity and Message are always set.
type Finding struct {
	// ID names the rule, as subject.rule ("csr.key-size"). It is stable: scripts may match on it.
	ID       string   `json:"id"`
	Severity Severity `json:"severity"`
	// Message is one line, lower case. It says what is wrong and includes the values.
	Message string `json:"message"`
	// Fix says in one line what to do; empty if no action is needed.
	Fix string `json:"fix,omitempty"`
	// Portal is the error that Apple's portal would show for such a request, one of the Portal constants; empty if it
	// would show none, or none is known.
	Portal string `json:"portal,omitempty"`
}

// Refuse returns a finding of severity error with the message of fmt.Sprintf.
func Refuse(id, format string, args ...any) *Finding {
	return &Finding{ID: id, Severity: SeverityError, Message: fmt.Sprintf(format, args...)}
}

// Warn is Refuse for severity warning.
func Warn(id, format string, args ...any) *Finding {
	return &Finding{ID: id, Severity: SeverityWarning, Message: fmt.Sprintf(format, args...)}
}

// Note is Refuse for severity note.
func Note(id, format string, args ...any) *Finding {
	return &Finding{ID: id, Severity: SeverityNote, Message: fmt.Sprintf(format, args...)}
}

// WithFix sets what to do, one line, and returns the finding.
func (f *Finding) WithFix(fix string) *Finding {
	f.Fix = fix
	return f
}

// WithPortal sets the error that Apple's portal would show, one of the Portal constants, and returns the finding.
func (f *Finding) WithPortal(portal string) *Finding {
	f.Portal = portal
	return f
}

// Error returns the message. The fix is separate (Hint) because the command line, logs and JSON show it differently.
func (f *Finding) Error() string { return f.Message }

// Hint returns what to do.
func (f *Finding) Hint() string { return f.Fix }

// Kind returns the kind of a refusal by this finding; its subject decides.
func (f *Finding) Kind() Kind {
	switch f.Subject() {
	case CSR, Push, Profile, ABM, Identity:
		return Refused
	case Chain:
		return Vendor
	}
	return Defects
}

// Subject returns the part of the ID before its first dot.
func (f *Finding) Subject() string {
	s, _, _ := strings.Cut(f.ID, ".")
	return s
}

// First returns the first finding of severity error as an error, or nil.
func First(findings []Finding) error {
	for i := range findings {
		if findings[i].Severity == SeverityError {
			return &findings[i]
		}
	}
	return nil
}
