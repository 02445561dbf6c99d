package api

import "hsmsign/ledger/record"

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

// LedgerEntry describes an entry.
type LedgerEntry struct {
	Index        int64    `json:"index"`
	Time         string   `json:"time"` // RFC 3339, UTC, milliseconds
	Kind         string   `json:"kind"`
	Request      string   `json:"request,omitempty"` // id
	Customer     string   `json:"customer,omitempty"`
	CustomerID   string   `json:"customer_id,omitempty"`
	Actor        string   `json:"actor,omitempty"`
	ActorID      string   `json:"actor_id,omitempty"`
	Channel      string   `json:"channel,omitempty"`
	Rule         string   `json:"rule,omitempty"`
	Digest       string   `json:"digest,omitempty"`
	Operation    string   `json:"operation,omitempty"`
	CSRSHA256    string   `json:"csr_sha256,omitempty"`
	KeySHA256    string   `json:"key_sha256,omitempty"` // of the CSR's SubjectPublicKeyInfo
	VendorSHA256 string   `json:"vendor_sha256,omitempty"`
	ChainSHA256  string   `json:"chain_sha256,omitempty"`
	FileSHA256   string   `json:"file_sha256,omitempty"`
	Commitments  []string `json:"commitments,omitempty"` // their names
}

// NewLedgerEntry describes an entry.
func NewLedgerEntry(r record.Record) LedgerEntry {
	e := r.Entry
	entry := LedgerEntry{
		Index: r.Index, Time: e.Time.Format("2006-01-02T15:04:05.000Z"), Kind: e.Kind, Request: e.Request.String(),
		Customer: r.Customer, CustomerID: e.Customer.String(), Actor: r.Actor, ActorID: e.Actor.String(), Channel: e.Channel, Rule: e.Rule,
		Digest: e.Digest, Operation: e.Operation, CSRSHA256: e.CSR.String(), KeySHA256: e.SPKI.String(), VendorSHA256: e.Vendor.String(),
		ChainSHA256: e.Chain.String(), FileSHA256: e.File.String(),
	}
	for _, c := range e.Commitments {
		entry.Commitments = append(entry.Commitments, c.Name)
	}
	return entry
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

// Customer describes a customer of the ledger.
type Customer struct {
	Name    string `json:"name"`
	Contact string `json:"contact,omitempty"`
	Account string `json:"account,omitempty"` // the Apple Account that must renew the push certificate
	Notes   string `json:"notes,omitempty"`
	ID      string `json:"id"`
	Entry   int64  `json:"entry"`   // the newest that says it
	Changed string `json:"changed"` // RFC 3339, UTC
}

// LedgerDue is something that has to be done.
type LedgerDue struct {
	What     string `json:"what"` // "push certificate", "request", "vendor certificate"
	Customer string `json:"customer,omitempty"`
	Contact  string `json:"contact,omitempty"`
	Account  string `json:"account,omitempty"`
	At       string `json:"at"`                // RFC 3339, UTC: when the certificate expires, or when the request was issued
	Request  string `json:"request,omitempty"` // id of a request that was not redeemed
}
