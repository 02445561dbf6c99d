package record

import "context"

// ProfileUse is one signature of a configuration profile that is asked for. Its key is not a vendor key.
type ProfileUse struct {
	Customer   string // name of a customer that the ledger knows; "": the profile is nobody's
	Actor      string // who asks: "uid 1000 (ada)"
	Channel    string // how: "local"
	Credential string // name of the credential of the actor; "" if there is none
	Identity   string // name under which a freeze stops it: "profiles/main"

	Profile     Profile
	Content     []byte // the profile that is signed
	Certificate []byte // DER of the signer's certificate

	Policy Hash // of the policy that allows it; zero: there is none
	PerDay int  // how many uses the actor may have authorized on one day (UTC), requests included; 0: any number
}

// Profile is what an entry about a profile says of it, besides its SHA-256.
type Profile struct {
	Identifier string `json:"identifier"` // PayloadIdentifier
	UUID       string `json:"uuid"`       // PayloadUUID
}

// ProfileRecorder records each signature of a profile. It fails closed, as a Recorder does. Safe for concurrent use.
type ProfileRecorder interface {
	// AuthorizeProfile applies the ledger's rules and records that a signature is about to be made. A refusal is recorded too.
	// The error is of kind forbidden, limited or not found.
	AuthorizeProfile(ctx context.Context, use ProfileUse) (Permit, error)
	// ConcludeProfile records the outcome of a permit, once, and waits until it may be released. Without a nil error the signed
	// profile must not be.
	ConcludeProfile(ctx context.Context, permit Permit, outcome Outcome) error
	// RefuseProfile records that a rule of the caller's policy refused a use.
	RefuseProfile(ctx context.Context, use ProfileUse, rule string) error
}
