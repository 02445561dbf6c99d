// Package api is the JSON shapes of results. The command line prints them with --json; every other front end uses the
// same. The fields are a contract: one is added, never renamed or removed. Times are RFC 3339 in UTC, hashes and serial
// numbers are lower-case hex, and a field that does not apply is absent where it says omitempty.
//
// The shapes are data, without locks; the functions are safe for concurrent use.
package api

import (
	"errors"

	"hsmsign/fault"
	"hsmsign/signer"
)

// Error is an error.
type Error struct {
	ID      string `json:"id,omitempty"` // the rule that refused the input
	Message string `json:"message"`
	Fix     string `json:"fix,omitempty"`
	Exit    int    `json:"exit"` // exit code of the command line
}

// Failure is the last object that a command prints with --json if it failed as a whole. The results before it, if any,
// are complete.
type Failure struct {
	Error *Error `json:"error"`
}

// NewError returns the shape of an error.
func NewError(err error) *Error {
	e := &Error{Message: err.Error(), Fix: fault.Hint(err), Exit: fault.KindOf(err).Exit()}
	if found, ok := errors.AsType[*fault.Finding](err); ok {
		e.ID = found.ID
	}
	return e
}

// The statuses of a SignResult and of an ImportResult.
const (
	StatusSigned    = "signed"
	StatusStored    = "stored"
	StatusUnchanged = "unchanged" // the output existed, and is right
	StatusRefused   = "refused"
	StatusFailed    = "failed"
)

// SignResult is the outcome of signing one CSR.
type SignResult struct {
	File      string          `json:"file"`
	Status    string          `json:"status"`
	Customer  string          `json:"customer,omitempty"`
	Output    string          `json:"output,omitempty"`
	Subject   string          `json:"subject,omitempty"`
	CSRSHA256 string          `json:"csr_sha256,omitempty"` // of the DER
	KeySHA256 string          `json:"key_sha256,omitempty"` // of the CSR's SubjectPublicKeyInfo
	Findings  []fault.Finding `json:"findings,omitempty"`   // warnings and notes about the CSR
	RequestID string          `json:"request_id,omitempty"` // of the ledger
	UseBefore string          `json:"use_before,omitempty"` // when the first certificate of the vendor's chain expires
	Error     *Error          `json:"error,omitempty"`
	Request   string          `json:"request,omitempty"` // the request itself, if no output file was named
}

// VerifyResult is the verdict on one Push Certificate Request.
type VerifyResult struct {
	File   string        `json:"file"`
	OK     bool          `json:"ok"`
	Digest string        `json:"digest,omitempty"` // of the signature; absent if it does not verify
	CSR    *CSR          `json:"csr,omitempty"`
	Chain  []Certificate `json:"chain,omitempty"`
	// UseBefore is when the first certificate of the chain expires. After that Apple refuses the request.
	UseBefore string          `json:"use_before,omitempty"`
	Root      string          `json:"root,omitempty"` // RootApple, or RootGiven for a root that was given as trusted
	Findings  []fault.Finding `json:"findings"`
}

// The roots of a VerifyResult that is OK.
const (
	RootApple = "apple"
	RootGiven = "given"
)

// InspectResult is what a file contains.
type InspectResult struct {
	File         string          `json:"file"`
	Kind         string          `json:"kind"` // csr, certificates, request
	CSR          *CSR            `json:"csr,omitempty"`
	Certificates []Certificate   `json:"certificates,omitempty"`
	Findings     []fault.Finding `json:"findings,omitempty"` // about a CSR
}

// ChainResult is the verdict on a vendor chain.
type ChainResult struct {
	OK       bool            `json:"ok"`
	Chain    []Certificate   `json:"chain"` // in order if the chain is complete, else as given
	Findings []fault.Finding `json:"findings"`
}

// FetchResult is one downloaded certificate.
type FetchResult struct {
	Name   string `json:"name"`
	File   string `json:"file"`
	SHA256 string `json:"sha256"`
	Output string `json:"output,omitempty"`
}

// PushResult is the verdict on a push certificate.
type PushResult struct {
	File        string          `json:"file"`
	Certificate Certificate     `json:"certificate"`
	KeyMatches  *bool           `json:"key_matches,omitempty"` // absent if no key was named
	Findings    []fault.Finding `json:"findings"`
}

// TestPKIResult is a chain under a test root.
type TestPKIResult struct {
	Output string        `json:"output"`
	Root   string        `json:"root"`
	Chain  []Certificate `json:"chain"`
}

// Step is one step of a diagnosis.
type Step struct {
	Name   string        `json:"name"`
	Status signer.Status `json:"status"`
	Detail string        `json:"detail,omitempty"`
	Fix    string        `json:"fix,omitempty"`
	Exit   int           `json:"exit,omitempty"` // of a failure
}

// NewStep returns the shape of a step.
func NewStep(step signer.Step) Step {
	return Step{Name: step.Name, Status: step.Status, Detail: step.Detail, Fix: step.Fix, Exit: fault.KindOf(step.Err).Exit()}
}

// TestResult is the speed of a key.
type TestResult struct {
	Ref         string  `json:"ref"`
	Count       int     `json:"count"`
	Rate        float64 `json:"rate"` // signatures a second, one after the other
	MedianMS    float64 `json:"median_ms"`
	SlowestMS   float64 `json:"slowest_ms"`
	KeySHA256   string  `json:"key_sha256"`            // of the SubjectPublicKeyInfo
	Certificate string  `json:"certificate,omitempty"` // subject of the certificate that matches, if one was given
}

// ImportResult is a certificate that is stored with its key.
type ImportResult struct {
	Ref         string      `json:"ref"` // names the key and, as --cert, the certificate
	Status      string      `json:"status"`
	Certificate Certificate `json:"certificate"`
}

// Setting is one setting and its origin.
type Setting struct {
	Name   string   `json:"name"`
	Values []string `json:"values"`
	Origin string   `json:"origin"` // "--key", "$HSMSIGN_KEY", a configuration file, "default" or "not set"
}

// PolicyTest is whether a caller may have a CSR signed.
type PolicyTest struct {
	Caller      string `json:"caller"`
	Role        string `json:"role"`
	Customer    string `json:"customer,omitempty"`
	Allowed     bool   `json:"allowed"`
	Rule        string `json:"rule,omitempty"` // that refuses it
	Explanation string `json:"explanation"`    // of the role
}

// Version is how the program was built.
type Version struct {
	Version  string   `json:"version"`
	Revision string   `json:"revision,omitempty"`
	Go       string   `json:"go"`
	Platform string   `json:"platform"`
	Backends []string `json:"backends"` // the schemes of key references
}

// The states of a vendor identity.
const (
	StateOK       = "ok"
	StateWarning  = "warning"  // it signs, and something has to be done
	StateCritical = "critical" // it cannot sign requests that Apple accepts
)

// VendorStatus is the state of one vendor identity.
type VendorStatus struct {
	Vendor       string          `json:"vendor"` // "" for the unnamed one
	Active       bool            `json:"active"` // its state decides the exit code
	State        string          `json:"state"`
	Key          string          `json:"key"`
	Signs        bool            `json:"signs"` // the key was opened and made a signature
	Certificates []Certificate   `json:"certificates"`
	DaysLeft     int             `json:"days_left"`         // of the certificate that expires first
	Expires      string          `json:"expires,omitempty"` // its not_after
	Findings     []fault.Finding `json:"findings"`
	Next         string          `json:"next"` // what to do
	Error        *Error          `json:"error,omitempty"`
}
