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
	StatusAllowed   = "allowed" // it was only checked
	StatusPending   = "pending" // other people must approve it first; nothing was signed
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
	Approval  *Approval       `json:"approval,omitempty"`   // of status pending: what other people must approve
	Error     *Error          `json:"error,omitempty"`
	Request   string          `json:"request,omitempty"` // the request itself, if no output file was named
	Receipt   string          `json:"receipt,omitempty"` // the proof that it is in the ledger, if it was asked of a service
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
	File         string                 `json:"file"`
	Kind         string                 `json:"kind"` // csr, certificates, request, pkcs12, profile, dep-profile
	CSR          *CSR                   `json:"csr,omitempty"`
	Certificates []InspectedCertificate `json:"certificates,omitempty"`
	Profile      *InspectedProfile      `json:"profile,omitempty"`
	DEP          *InspectedDEP          `json:"dep,omitempty"`
	Findings     []fault.Finding        `json:"findings,omitempty"` // about a CSR or a profile
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
	// Credentials are those of the caller; with --claims only the one that the claims are.
	Credentials []string `json:"credentials"`
	// Approvals is how many other people must approve what the role asks for, by event; absent: nobody.
	Approvals map[string]int `json:"approvals,omitempty"`
	// Entitlement is what the program of the role answered; absent if it has none, or was not asked.
	Entitlement *Entitlement `json:"entitlement,omitempty"`
}

// EntitlementRequest is what the program of a role gets on standard input.
type EntitlementRequest struct {
	Caller    string              `json:"caller"`
	Role      string              `json:"role"`
	Person    string              `json:"person,omitempty"` // absent for a machine
	Owners    []string            `json:"owners,omitempty"` // of a machine
	Channel   string              `json:"channel"`          // "local" for the command line
	Customer  string              `json:"customer,omitempty"`
	Vendor    string              `json:"vendor,omitempty"` // name of the vendor identity; absent if there is only one
	Digest    string              `json:"digest"`           // of the signature: "SHA-256"
	Subject   map[string][]string `json:"subject"`          // of the CSR: CN, O, OU, C, L, ST; the customer's own claim
	CSRSHA256 string              `json:"csr_sha256"`       // of the DER
	KeySHA256 string              `json:"key_sha256"`       // of the CSR's SubjectPublicKeyInfo
	CSR       string              `json:"csr"`              // PEM
}

// Entitlement is what the program of a role answered.
type Entitlement struct {
	ProgramSHA256 string `json:"program_sha256"`
	Exit          int    `json:"exit"`           // 0: allowed, 1: denied
	Line          string `json:"line,omitempty"` // first line of its output
}

// CallerToken is a new token, which is a secret, and its entry for the configuration, which is not.
type CallerToken struct {
	Token string `json:"token"`
	Entry string `json:"entry"`
}

// Caller is a caller of the configuration.
type Caller struct {
	Name        string       `json:"name"`
	Role        string       `json:"role"`
	Person      string       `json:"person,omitempty"` // absent for a machine
	Owners      []string     `json:"owners,omitempty"` // of a machine
	Customer    string       `json:"customer,omitempty"`
	From        []string     `json:"from,omitempty"` // networks; absent: any
	Credentials []Credential `json:"credentials"`
}

// Credential is one credential of a caller.
type Credential struct {
	Name    string `json:"name"`              // "token abcd2345", "certificate 0a1b...", "san dns:...", "oidc github 0a1b...", "uid 1001"
	State   string `json:"state,omitempty"`   // of a token: "valid", "expired", or "too long", which is not accepted
	Expires string `json:"expires,omitempty"` // of a token
	LastUse string `json:"last_use,omitempty"`
	// Claims are those that an OIDC token must have.
	Claims map[string]string `json:"claims,omitempty"`
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
