// Package finding is the one shape of everything hsmsign has to say about somebody's input: a certificate
// request it refuses, a chain it warns about, a defect that verification found.
//
// A Finding is also an error, so that the check which refuses an input and the check which only reports it
// are the same code: a refusal is the first Finding of severity Error.
package finding

import "strings"

// Severity says how much a finding weighs.
type Severity string

// The severities. Error: the input is refused, or Apple's portal would refuse it. Warning: it works today,
// and will stop or surprises. Note: worth knowing, nothing to do.
const (
	Error   Severity = "error"
	Warning Severity = "warning"
	Note    Severity = "note"
)

// The subjects: the part of an ID before its first dot. They decide the exit code of a refusal.
const (
	CSR     = "csr"     // the customer's certificate signing request
	Chain   = "chain"   // the vendor's certificate, key match and chain
	Request = "request" // the Push Certificate Request file
	Push    = "push"    // the push certificate, and what the signing service mails
)

// What Apple's Push Certificates Portal (https://identity.apple.com/pushcert) says when it refuses a request.
const (
	PortalSignature    = "Certificate Signature Verification failed because the signature is invalid (-80018)"
	PortalExpired      = "Certificate Signature Verification failed because the signing certificate is expired"
	PortalInvalidCSR   = "Invalid Certificate Signing Request"
	PortalChainMissing = "Signing Certificate Chain Missing"
)

// Finding is one thing found in an input. The zero value means nothing; ID, Severity and Message are always set.
type Finding struct {
	// ID names the rule, as subject.rule ("csr.key-size"). It is stable: scripts may match on it.
	ID       string   `json:"id"`
	Severity Severity `json:"severity"`
	// Message is one line, lower case, that says what is wrong with which values.
	Message string `json:"message"`
	// Fix says in one line what to do about it; empty where nothing is to be done.
	Fix string `json:"fix,omitempty"`
	// Portal is the error that such a request would meet at Apple's portal, one of the Portal constants; empty where
	// it would meet none, or none is known.
	Portal string `json:"portal,omitempty"`
}

// Error is the message; the fix is separate (Hint), since a command line and a log show it differently.
func (f *Finding) Error() string { return f.Message }

// Hint is what to do about it.
func (f *Finding) Hint() string { return f.Fix }

// Subject is the part of the ID before its first dot.
func (f *Finding) Subject() string {
	s, _, _ := strings.Cut(f.ID, ".")
	return s
}

// First returns the first finding of severity Error as an error, or nil when there is none.
func First(findings []Finding) error {
	for i := range findings {
		if findings[i].Severity == Error {
			return &findings[i]
		}
	}
	return nil
}
