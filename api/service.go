package api

import (
	"crypto/x509"
	"time"

	"hsmsign/chain"
	"hsmsign/fault"
)

// Problem is an error of the service (RFC 9457), application/problem+json.
type Problem struct {
	Type      string `json:"type"`             // a URN; each kind of error has one
	Title     string `json:"title"`            // the last part of the type
	Status    int    `json:"status"`           // of HTTP
	Detail    string `json:"detail,omitempty"` // what is wrong
	Fix       string `json:"fix,omitempty"`    // what to do
	Rule      string `json:"rule,omitempty"`   // that refused it
	Exit      int    `json:"exit"`             // exit code of the command line
	RequestID string `json:"request_id"`       // of the server's log
	// Findings are all that is wrong with the CSR, also what did not refuse it; absent for other errors.
	Findings []fault.Finding `json:"findings,omitempty"`
}

// NewProblem returns the problem of an error, without the id of the request.
func NewProblem(err error) Problem {
	kind := fault.KindOf(err)
	return Problem{
		Type: kind.Problem(), Title: kind.String(), Status: kind.Status(), Detail: err.Error(), Fix: fault.Hint(err), Rule: fault.Rule(err), Exit: kind.Exit(),
	}
}

// SignOrder is what a caller asks the service to sign, as JSON.
type SignOrder struct {
	CSR      string `json:"csr"`                // PEM, or base64 of the DER
	Customer string `json:"customer,omitempty"` // default: that of the caller
	Vendor   string `json:"vendor,omitempty"`   // name of the vendor identity; default: the active one
	Format   string `json:"format,omitempty"`   // of the request: base64 (default) or plist
	Receipt  bool   `json:"receipt,omitempty"`  // add a proof that the request is in the ledger
}

// List is a page of a list.
type List[T any] struct {
	Items []T    `json:"items"`
	Next  string `json:"next,omitempty"` // path of the next page; absent: this is the last one
}

// Request is a request that was asked for.
type Request struct {
	ID        string `json:"id"`
	Customer  string `json:"customer"`
	State     string `json:"state"` // kind of the newest entry about it: intent, issued, failed, unknown, superseded, refused, pending, approved, rejected, expired, unfrozen
	Actor     string `json:"actor,omitempty"`
	Entry     int64  `json:"entry"`                // the newest about it
	Begun     string `json:"begun"`                // RFC 3339, UTC
	Changed   string `json:"changed"`              // time of that entry
	CSRSHA256 string `json:"csr_sha256,omitempty"` // absent: the end of a freeze was asked for
	KeySHA256 string `json:"key_sha256,omitempty"`
	UseBefore string `json:"use_before,omitempty"`
	Request   string `json:"request,omitempty"` // the file, if it was issued; not in lists
	// Of a request that other people must approve, or have.
	Approval *Approval `json:"approval,omitempty"`
	Subject  string    `json:"subject,omitempty"` // of the CSR; not in lists
	CSR      string    `json:"csr,omitempty"`     // PEM; not in lists
	// Previous is the request of the customer that was issued last before this one was asked for.
	Previous *PreviousCSR `json:"previous,omitempty"`
	Problem  *Problem     `json:"problem,omitempty"` // why it was not issued now, although enough people have approved it
}

// PreviousCSR is the CSR of an earlier request of the same customer.
type PreviousCSR struct {
	Request   string `json:"request"` // id
	Begun     string `json:"begun"`   // RFC 3339, UTC
	Subject   string `json:"subject"`
	CSRSHA256 string `json:"csr_sha256"`
	KeySHA256 string `json:"key_sha256"`
	CSR       string `json:"csr"` // PEM
}

// Approval is what other people must approve.
type Approval struct {
	Event     string       `json:"event"`            // new-customer, new-key, same-key or unfreeze
	Vendor    string       `json:"vendor,omitempty"` // name of the vendor identity
	Need      int          `json:"need"`             // people
	Have      int          `json:"have"`             // of them
	Until     string       `json:"until"`            // RFC 3339, UTC
	Requester Requester    `json:"requester"`
	Given     []Approver   `json:"given"`
	Rejected  *Approver    `json:"rejected,omitempty"` // who rejected it, and why
	Freeze    *FreezeOrder `json:"freeze,omitempty"`   // that would end
}

// Requester is who asked, as the configuration said it then.
type Requester struct {
	Caller     string   `json:"caller"`
	Credential string   `json:"credential,omitempty"`
	Person     string   `json:"person,omitempty"`
	Owners     []string `json:"owners,omitempty"`
}

// Approver is one approval, or the rejection, that was recorded.
type Approver struct {
	Caller string `json:"caller"`
	Person string `json:"person"`
	Time   string `json:"time"` // RFC 3339, UTC
	Reason string `json:"reason,omitempty"`
	Entry  int64  `json:"entry"`
}

// Decision approves or rejects what waits. It repeats what the approver was shown: if that is not what was asked, it is refused.
type Decision struct {
	Reason    string `json:"reason,omitempty"` // required to reject
	Customer  string `json:"customer,omitempty"`
	CSRSHA256 string `json:"csr_sha256,omitempty"` // of the DER
	Vendor    string `json:"vendor,omitempty"`     // name of the vendor identity
	Scope     string `json:"scope,omitempty"`      // of a freeze that would end
	Name      string `json:"name,omitempty"`       // likewise
}

// CustomerChange is what is set of a customer; what is absent stays.
type CustomerChange struct {
	Name    *string `json:"name,omitempty"`
	Contact *string `json:"contact,omitempty"`
	Account *string `json:"account,omitempty"`
	Notes   *string `json:"notes,omitempty"`
}

// FreezeOrder asks to stop, or to allow again, signing.
type FreezeOrder struct {
	Scope  string `json:"scope"`          // all, caller, customer or vendor
	Name   string `json:"name,omitempty"` // of the caller, customer or vendor identity
	Reason string `json:"reason"`
}

// Freeze is what is frozen: nothing is signed or released for it.
type Freeze struct {
	Scope  string `json:"scope"`
	Name   string `json:"name,omitempty"`
	Reason string `json:"reason"`
	Since  string `json:"since"`
	Actor  string `json:"actor,omitempty"`
	Entry  int64  `json:"entry"`
}

// Vendor is a vendor identity of the service.
type Vendor struct {
	Vendor       string          `json:"vendor"` // "" for the unnamed one
	Active       bool            `json:"active"`
	Certificates []Certificate   `json:"certificates"`       // the chain
	DaysLeft     int             `json:"days_left"`          // of the certificate that expires first
	Expires      string          `json:"expires"`            // its not_after
	Findings     []fault.Finding `json:"findings,omitempty"` // warnings and notes about the chain
	Next         string          `json:"next"`               // what to do
	// For callers that may read.
	Backend string `json:"backend,omitempty"` // scheme of the key's reference: file, pkcs11, vault, awskms, gcpkms, azurekms
	Signed  string `json:"signed,omitempty"`  // when the key signed last, by this replica; absent: not yet
}

// NewVendor describes a vendor identity.
func NewVendor(name string, active bool, certs []*x509.Certificate, now time.Time) Vendor {
	first := NewCertificate(chain.FirstExpiry(certs), now)
	v := Vendor{Vendor: name, Active: active, Certificates: NewCertificates(certs, now), DaysLeft: first.DaysLeft, Expires: first.NotAfter}
	switch {
	case v.DaysLeft < 0:
		v.Next = "renew the vendor certificate now: Apple refuses every request of this chain"
	case v.DaysLeft < renewDays:
		v.Next = "renew the vendor certificate before it expires: hsmsign vendor csr, Apple's Certificates page, hsmsign vendor import"
	default:
		v.Next = "nothing to do until " + chain.FirstExpiry(certs).NotAfter.AddDate(0, 0, -renewDays).UTC().Format(time.DateOnly)
	}
	return v
}

// renewDays is how many days before its expiry a certificate of a vendor's chain is to be renewed.
const renewDays = 30

// Me is who a caller of the service is, and what it may.
type Me struct {
	Caller      string   `json:"caller"`
	Credential  string   `json:"credential"`
	Channel     string   `json:"channel"`
	Person      string   `json:"person,omitempty"`
	Owners      []string `json:"owners,omitempty"`
	Role        string   `json:"role"`
	May         []string `json:"may"`
	Customers   []string `json:"customers"` // names, or "*"
	Customer    string   `json:"customer,omitempty"`
	PerSecond   int      `json:"per_second,omitempty"`
	PerDay      int      `json:"per_day,omitempty"`
	Left        *int     `json:"left,omitempty"` // requests today (UTC); absent: the role may not sign
	Explanation string   `json:"explanation"`
	Frozen      []Freeze `json:"frozen"`
}

// ServiceStatus is the state of a service.
type ServiceStatus struct {
	Replica  string     `json:"replica"`
	Ready    bool       `json:"ready"`
	NotReady *Error     `json:"not_ready,omitempty"` // why
	Policy   string     `json:"policy"`              // SHA-256 of the effective policy
	Replicas []Replica  `json:"replicas"`            // those that were seen in the last hour
	Ledger   LedgerHead `json:"ledger"`
	Running  int        `json:"running"` // requests that are being signed and recorded
	Waiting  int        `json:"waiting"` // for their turn
	Frozen   []Freeze   `json:"frozen"`
}

// Replica is one process of the service.
type Replica struct {
	Name   string `json:"name"`
	Policy string `json:"policy"`
	Seen   string `json:"seen"`
}

// LedgerHead is the newest state of a ledger.
type LedgerHead struct {
	Origin  string `json:"origin"`
	Entries int64  `json:"entries"`
	Root    string `json:"root"` // in hex
}

// Ready is the answer to GET /readyz.
type Ready struct {
	Ready            bool   `json:"ready"`
	SignedSecondsAgo *int64 `json:"signed_seconds_ago,omitempty"` // when the vendor's key signed last; absent: not yet
}

// NoticePending is the type of a notice that a request waits for approval.
const NoticePending = "request.pending"

// Notice is what a webhook gets. It contains no personal data.
type Notice struct {
	Type      string     `json:"type"`
	Timestamp string     `json:"timestamp"` // when it happened
	Data      NoticeData `json:"data"`
}

// NoticeData is what a notice is about.
type NoticeData struct {
	RequestID string `json:"request_id"`
	URL       string `json:"url,omitempty"` // of the request, if the service has an address for links
}

// NoticeDue is the type of a notice of what is due.
const NoticeDue = "ledger.due"

// DueNotice is what a webhook gets from "ledger due --notify". It names customers and their Apple Accounts.
type DueNotice struct {
	Type      string        `json:"type"`
	Timestamp string        `json:"timestamp"` // when the ledger was read
	Data      DueNoticeData `json:"data"`
}

// DueNoticeData is what is due in one ledger, the soonest first.
type DueNoticeData struct {
	Origin     string      `json:"origin"`      // of the ledger
	WithinDays int         `json:"within_days"` // how far it looks ahead
	Total      int         `json:"total"`       // how much is due
	Due        []LedgerDue `json:"due"`         // the first of it, at most 48 KiB
}

// ConsoleLogin is a link that signs its caller in to the console, once.
type ConsoleLogin struct {
	URL   string `json:"url"`
	Until string `json:"until"` // when it can no longer be used
}
