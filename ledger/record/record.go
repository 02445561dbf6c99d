// Package record defines what a vendor tells a ledger about each use of its key. It imports no database, so that programs
// without a ledger link none.
package record

import (
	"context"
	"encoding/json"
	"time"
)

// Use is one signature that is asked for.
type Use struct {
	Customer string // name of the customer; required
	Actor    string // who asks: "uid 1000 (ada)"
	Channel  string // how: "local"
	CSR      []byte // DER
	SPKI     []byte // DER of the CSR's SubjectPublicKeyInfo
	Vendor   []byte // DER of the vendor certificate
	Chain    []byte // DER certificates of the vendor's chain, concatenated
	Digest   string // of the signature: "SHA-256"

	Credential string // name of the credential of the actor: "token abcd2345"; "" if there is none
	Identity   string // name of the vendor identity; "" for the unnamed one
	// Entitlement is the JSON answer of the program that the actor's role asks; nil: none.
	Entitlement []byte

	Policy    Hash // of the policy that allows it; zero: there is none
	MustExist bool // the customer is not added
	PerDay    int  // how many requests the actor may have authorized on one day (UTC); 0: any number
	// Ask is who else must approve the use; nil: nobody.
	Ask *Ask
}

// Permit allows one signature. What Authorize returned is given to Conclude and Release without changes.
type Permit struct {
	Request string // id of the request: 32 hex digits
	// Whose request it is, who asked, and with which vendor identity: a freeze of one of them stops the release.
	Customer        ID
	Actor, Identity string
	Entry           int64 // of a profile: the number of the entry that authorized it
	// Stored is the request file that was issued for the same use before; nil: sign. The caller verifies it.
	Stored []byte
}

// Outcome is what became of a permit: the request file, or why there is none.
type Outcome struct {
	File      []byte
	Operation string    // the key store's id of the signature, if it has one
	Attempts  []Attempt // requests to the key store that failed, or whose signature was not used
	Err       error
}

// Attempt is one request to a key store that did not lead to a released signature.
type Attempt struct {
	Time      time.Time `json:"time"`                // when it began, UTC
	Operation string    `json:"operation,omitempty"` // the key store's id, if it answered and has one
	Error     string    `json:"error"`
}

// Recorder records each use of a key. It fails closed: without a nil error nothing may be signed or released. Safe for
// concurrent use.
type Recorder interface {
	// Authorize applies the ledger's rules and records that a signature is about to be made. A refusal is recorded too; its
	// error wraps fault.Refused, fault.Denied or fault.Conflict. If other people must approve the use first, that is recorded, and
	// the error is a *Waiting.
	Authorize(ctx context.Context, use Use) (Permit, error)
	// Release waits until a request that was issued, or is stored, may be released. Without a nil error it must not be. It may
	// be tried again. The error is of kind forbidden if the use is frozen.
	Release(ctx context.Context, permit Permit) error
	// Refuse records that a rule of the caller's policy refused a use; nothing is signed. The error says only whether that
	// was recorded.
	Refuse(ctx context.Context, use Use, rule string) error
	// Conclude records the outcome of a permit. Without a nil error the file must not be released. If another process has
	// issued the same request meanwhile, the permit gets the id of that one. If the use was frozen meanwhile, that is recorded, and
	// the error is of kind forbidden.
	Conclude(ctx context.Context, permit *Permit, outcome Outcome) error
}

// Checker is a Recorder that applies its rules without recording anything. Safe for concurrent use.
type Checker interface {
	// Check returns the error that Authorize would return. stored says that the same request was issued before.
	Check(ctx context.Context, use Use) (stored bool, err error)
}

// Record is one entry with the names of its customers and actor, which may have been erased.
type Record struct {
	Index    int64
	Entry    *Entry
	Customer string
	From     string
	Actor    string
	// Attempts are the failed requests to the key store. Only Ledger.Record reads them.
	Attempts []Attempt
	// UseBefore is when the first certificate of the vendor's chain expires, UTC: an issued request is useless from then on.
	// Zero for other kinds.
	UseBefore time.Time

	// The data of openings, where one entry is shown.
	Original *Original // of an entry that repeats one of a previous ledger
	Previous *Previous // of the first entry, if the ledger continues another one
	Keys     []string  // of kind rotated: the verifier keys from then on
	Probed   *Probed   // of kind probe, if there was more than one request to the key store, or one without an id
	Freeze   *Freeze   // of kind frozen and unfrozen, and of kind pending that is about a freeze
	Asked    *Asked    // of kind pending
	Decided  *Decided  // of kind approved and rejected
	Profile  *Profile  // of the kinds about a profile
	Replica  string    // of kind policy: the name of the program that started
	Moved    *Moved    // of kind moved
	// Entitlement is the answer of the program that the actor's role asked: JSON.
	Entitlement json.RawMessage
}

// Freeze is what an entry of kind frozen or unfrozen is about.
type Freeze struct {
	Scope  string `json:"scope"`          // "all", "caller", "customer", "vendor"
	Name   string `json:"name,omitempty"` // of the caller, customer or vendor identity at that time
	Reason string `json:"reason"`
}

// Decided is who decided about what was asked, and why.
type Decided struct {
	Person     string `json:"person"`
	Credential string `json:"credential"` // name
	Reason     string `json:"reason,omitempty"`
}

// Original is the entry of the previous ledger that an entry repeats.
type Original struct {
	Entry int64     `json:"entry"` // its number there
	Time  time.Time `json:"time"`  // UTC; if it was continued itself, that of the first one
	Kind  string    `json:"kind"`  // likewise
}

// Previous is the ledger that a ledger continues under a new origin.
type Previous struct {
	Checkpoint  string `json:"checkpoint"`   // the last one that is known and trusted, a signed note
	VerifierKey string `json:"verifier_key"` // of the previous ledger, one a line
	Copied      int64  `json:"copied"`       // so many entries of it were read
}

// Moved is the store that a ledger was moved to.
type Moved struct {
	Store string `json:"store"` // random id that the store has: 32 hex digits
	Name  string `json:"name"`  // its reference without secrets
}

// Defect is one thing that is wrong.
type Defect struct {
	Entry int64  `json:"entry"` // its index; -1: it is about the whole ledger
	Text  string `json:"text"`
}
