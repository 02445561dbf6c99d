package fault

import (
	"fmt"
	"strings"
)

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
	CSR     = "csr"     // the customer's certificate signing request
	Chain   = "chain"   // the vendor's certificate, its chain, and whether the key matches
	Request = "request" // the Push Certificate Request file
	Push    = "push"    // the push certificate, and the mail of a signing service
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
	case CSR, Push:
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
