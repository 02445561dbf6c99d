package api

import (
	"encoding/json"
	"time"

	"hsmsign/ledger/record"
)

// LedgerInit is the result of ledger init. Both keys are pinned outside the store.
type LedgerInit struct {
	Store       string `json:"store"`
	Origin      string `json:"origin"`
	VerifierKey string `json:"verifier_key"`
	KeyFile     string `json:"key_file"` // with the checkpoint key
}

// LedgerStatus is the state of a ledger.
type LedgerStatus struct {
	Store   string `json:"store"`
	Origin  string `json:"origin"`
	Entries int64  `json:"entries"`
	Root    string `json:"root"` // in hex
	Newest  string `json:"newest,omitempty"`

	Required  int             `json:"required,omitempty"` // how many operators of witnesses must have cosigned a request
	Cosigned  *LedgerCosigned `json:"cosigned,omitempty"` // the newest checkpoint that as many have cosigned, at least one
	Witnesses []LedgerWitness `json:"witnesses,omitempty"`
	Copies    []LedgerCopy    `json:"copies,omitempty"`

	Pending        int             `json:"pending,omitempty"`         // how much waits for approval
	Frozen         []LedgerFreeze  `json:"frozen,omitempty"`          // what is frozen
	Replicas       []LedgerReplica `json:"replicas,omitempty"`        // the services of the last hour
	PoliciesDiffer bool            `json:"policies_differ,omitempty"` // the replicas apply different policies

	// Moved is the store that the ledger is in now: this one is only read. Absent: it is here.
	Moved *record.Moved `json:"moved,omitempty"`
}

// LedgerFreeze is a freeze in force.
type LedgerFreeze struct {
	Scope  string `json:"scope"`          // "all", "caller", "customer", "vendor"
	Name   string `json:"name,omitempty"` // of the caller, customer or vendor identity
	Reason string `json:"reason"`
	Since  string `json:"since"` // RFC 3339, UTC
	Actor  string `json:"actor"`
	Entry  int64  `json:"entry"` // that says it
}

// LedgerReplica is a service that uses the ledger.
type LedgerReplica struct {
	Name         string `json:"name"`
	PolicySHA256 string `json:"policy_sha256"` // of the policy that it applies
	Entry        int64  `json:"entry"`         // that says it
	Seen         string `json:"seen"`          // RFC 3339, UTC
}

// LedgerCosigned is a cosigned checkpoint.
type LedgerCosigned struct {
	Entries      int64               `json:"entries"`
	AgeSeconds   int64               `json:"age_seconds"` // of the newest cosignature
	Operators    int                 `json:"operators"`
	Cosignatures []LedgerCosignature `json:"cosignatures"`
}

// LedgerCosignature is a valid cosignature of a witness.
type LedgerCosignature struct {
	Witness  string `json:"witness"`
	Operator string `json:"operator"`
	Time     string `json:"time"` // RFC 3339, UTC: when the witness made it
}

// LedgerWitness is the state of one witness.
type LedgerWitness struct {
	Name     string `json:"name"`
	Operator string `json:"operator"`
	URL      string `json:"url,omitempty"`
	Entries  int64  `json:"entries"`         // of the newest checkpoint that it has cosigned; 0: none
	Time     string `json:"time,omitempty"`  // of that cosignature
	Error    string `json:"error,omitempty"` // why it did not cosign when it was asked last
	Failed   string `json:"failed,omitempty"`
	Alarm    bool   `json:"alarm,omitempty"` // the error stops the ledger
}

// LedgerCopy is a file with checkpoints.
type LedgerCopy struct {
	File    string `json:"file"`
	Entries int64  `json:"entries"` // of its newest checkpoint
	Error   string `json:"error,omitempty"`
}

// LedgerMove is the result of ledger copy --to.
type LedgerMove struct {
	Store   string `json:"store"`   // that the ledger was in
	To      string `json:"to"`      // that it is in now, without secrets
	ToID    string `json:"to_id"`   // by which the last entry names it
	Origin  string `json:"origin"`  // as before
	Entries int64  `json:"entries"` // with the last one
	Copied  int64  `json:"copied"`  // by this run
	Root    string `json:"root"`    // in hex
	Again   bool   `json:"again"`   // it had been moved there before
}

// LedgerEntry describes an entry.
type LedgerEntry struct {
	Index        int64            `json:"index"`
	Time         string           `json:"time"` // RFC 3339, UTC, milliseconds
	Kind         string           `json:"kind"`
	Request      string           `json:"request,omitempty"` // id
	Customer     string           `json:"customer,omitempty"`
	CustomerID   string           `json:"customer_id,omitempty"`
	From         string           `json:"from,omitempty"` // the customer that a reassigned key belonged to
	FromID       string           `json:"from_id,omitempty"`
	Actor        string           `json:"actor,omitempty"`
	ActorID      string           `json:"actor_id,omitempty"`
	CredentialID string           `json:"credential_id,omitempty"` // derived from the name of the credential
	Channel      string           `json:"channel,omitempty"`
	Rule         string           `json:"rule,omitempty"`
	PolicySHA256 string           `json:"policy_sha256,omitempty"` // of the policy in force
	Digest       string           `json:"digest,omitempty"`
	Operation    string           `json:"operation,omitempty"` // the key store's id of the signature
	Attempts     []record.Attempt `json:"attempts,omitempty"`  // requests to the key store that failed; ledger show only
	CSRSHA256    string           `json:"csr_sha256,omitempty"`
	KeySHA256    string           `json:"key_sha256,omitempty"` // of the CSR's SubjectPublicKeyInfo; of a probe: of the vendor key's
	VendorSHA256 string           `json:"vendor_sha256,omitempty"`
	ChainSHA256  string           `json:"chain_sha256,omitempty"`
	FileSHA256   string           `json:"file_sha256,omitempty"`
	UseBefore    string           `json:"use_before,omitempty"`  // of an issued request: when the first certificate of the vendor's chain expires
	Commitments  []string         `json:"commitments,omitempty"` // their names

	// What ledger show adds.
	Original *record.Original `json:"original,omitempty"`      // the entry of the previous ledger that this one repeats
	Previous *record.Previous `json:"previous,omitempty"`      // the ledger that this one continues
	Keys     []string         `json:"verifier_keys,omitempty"` // the keys that sign checkpoints from this entry on
	Profile  *record.Profile  `json:"profile,omitempty"`       // the profile that the entry is about
	Probed   *record.Probed   `json:"probed,omitempty"`        // the requests of a probe to the key store, if there was more than one
	Freeze   *record.Freeze   `json:"freeze,omitempty"`        // what was frozen or unfrozen, or would be
	Asked    *record.Asked    `json:"asked,omitempty"`         // what others had to approve
	Decided  *record.Decided  `json:"decided,omitempty"`       // who approved or rejected it, and why
	Replica  string           `json:"replica,omitempty"`       // the service that started with the policy
	Moved    *record.Moved    `json:"moved,omitempty"`         // the store that the ledger was moved to
	// Entitlement is the answer of the program that the actor's role asked.
	Entitlement json.RawMessage `json:"entitlement,omitempty"`
}

// Time returns a time in UTC, RFC 3339; "" for the zero time.
func Time(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

// NewLedgerEntry describes an entry.
func NewLedgerEntry(r record.Record) LedgerEntry {
	e := r.Entry
	entry := LedgerEntry{
		Index: r.Index, Time: e.Time.Format("2006-01-02T15:04:05.000Z"), Kind: e.Kind, Request: e.Request.String(),
		Customer: r.Customer, CustomerID: e.Customer.String(), From: r.From, FromID: e.From.String(), Actor: r.Actor, ActorID: e.Actor.String(), CredentialID: e.Credential.String(), Channel: e.Channel, Rule: e.Rule, PolicySHA256: e.Policy.String(),
		Digest: e.Digest, Operation: e.Operation, Attempts: r.Attempts, CSRSHA256: e.CSR.String(), KeySHA256: e.SPKI.String(), VendorSHA256: e.Vendor.String(),
		ChainSHA256: e.Chain.String(), FileSHA256: e.File.String(), UseBefore: Time(r.UseBefore), Original: r.Original, Previous: r.Previous, Keys: r.Keys, Probed: r.Probed, Profile: r.Profile,
		Freeze: r.Freeze, Asked: r.Asked, Decided: r.Decided, Replica: r.Replica, Moved: r.Moved, Entitlement: r.Entitlement,
	}
	for _, c := range e.Commitments {
		entry.Commitments = append(entry.Commitments, c.Name)
	}
	return entry
}

// EntryProof is a proof that an entry is in a ledger, and what it shows.
type EntryProof struct {
	Index        int64               `json:"index"`
	Origin       string              `json:"origin"`
	Entries      int64               `json:"entries"` // of the checkpoint
	Root         string              `json:"root"`    // of the checkpoint, in hex
	Hashes       int                 `json:"hashes"`  // of the path from the entry to the root
	Cosignatures []LedgerCosignature `json:"cosignatures"`
	Proof        string              `json:"proof"` // C2SP tlog-proof
}

// LedgerVerify is the result of ledger verify.
type LedgerVerify struct {
	OK      bool            `json:"ok"`
	Entries int64           `json:"entries"`
	Root    string          `json:"root,omitempty"` // in hex
	Defects []record.Defect `json:"defects"`
	Entry   *LedgerEntry    `json:"entry,omitempty"` // of a proof

	Compared int             `json:"compared,omitempty"` // with how many checkpoints of --against
	Required int             `json:"required,omitempty"` // how many operators of witnesses must have cosigned
	Cosigned *LedgerCosigned `json:"cosigned,omitempty"` // the checkpoint whose cosignatures were counted
}

// LedgerRestore is the result of ledger restore. The fields from Origin on are about a new ledger that continues the old one.
type LedgerRestore struct {
	Store            string `json:"store"`
	Entries          int64  `json:"entries"`
	Erased           int    `json:"erased,omitempty"` // customers that were erased again
	Origin           string `json:"origin,omitempty"`
	VerifierKey      string `json:"verifier_key,omitempty"`
	KeyFile          string `json:"key_file,omitempty"` // with the new checkpoint key
	Missing          int64  `json:"missing,omitempty"`  // entries of the old ledger that the copy lacks
	Customers        int    `json:"customers,omitempty"`
	Requests         int    `json:"requests,omitempty"`
	PushCertificates int    `json:"push_certificates,omitempty"`
}

// LedgerRotate is the result of ledger rotate.
type LedgerRotate struct {
	State       string `json:"state"` // "prepared", "begun", "ended"
	Origin      string `json:"origin"`
	VerifierKey string `json:"verifier_key"` // the new one
	KeyFile     string `json:"key_file"`
}

// Customer describes a customer of the ledger.
type Customer struct {
	Name    string `json:"name"`
	Contact string `json:"contact,omitempty"`
	Account string `json:"account,omitempty"` // the Apple Account that must renew the push certificate
	Notes   string `json:"notes,omitempty"`
	ID      string `json:"id"`
	Entry   int64  `json:"entry"`   // the newest that says it
	Changed string `json:"changed"` // RFC 3339, UTC
	// Push is the newest push certificate; absent if none was attached, and where all customers are listed at once.
	Push *CustomerPush `json:"push,omitempty"`
}

// CustomerPush is a push certificate of a customer.
type CustomerPush struct {
	Topic     string `json:"topic"`
	NotAfter  string `json:"not_after"` // RFC 3339, UTC
	SHA256    string `json:"sha256"`    // of the DER
	KeySHA256 string `json:"key_sha256"`
}

// LedgerWatch is a file or an endpoint whose certificates are reported with what is due.
type LedgerWatch struct {
	Target string `json:"target"`
	Origin string `json:"origin"`          // "ledger", or the configuration file
	Entry  *int64 `json:"entry,omitempty"` // that says it
	Since  string `json:"since,omitempty"` // RFC 3339, UTC
}

// LedgerDue is something that has to be done.
type LedgerDue struct {
	What     string `json:"what"` // "push certificate", "request", "vendor certificate", "issuer certificate" of its chain, "profile certificate", "watched certificate", "server token"
	Customer string `json:"customer,omitempty"`
	Contact  string `json:"contact,omitempty"`
	Account  string `json:"account,omitempty"`
	// At is when the certificate expires, when the request was issued, or when a watched target could not be read; UTC.
	At          string `json:"at"`
	Request     string `json:"request,omitempty"`     // id of a request that was not redeemed
	UseBefore   string `json:"use_before,omitempty"`  // of a request: when the first certificate of its chain expires
	Certificate string `json:"certificate,omitempty"` // subject
	SHA256      string `json:"sha256,omitempty"`      // of the certificate's DER
	Source      string `json:"source,omitempty"`      // where the certificate is: a vendor identity, a watched file or endpoint
	Error       *Error `json:"error,omitempty"`       // why a watched target could not be read
}
