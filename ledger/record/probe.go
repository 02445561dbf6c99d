package record

import (
	"context"
	"time"
)

// Probe is one run of a program that had a vendor key sign the probe message, once or several times. The message is fixed
// and no request; see package signer.
type Probe struct {
	Actor      string // who asked; "": nobody, as for the probes of a service
	Channel    string // how: "local"
	Credential string // name of the credential of the actor: "token abcd2345"; "" if none
	Vendor     []byte // DER of the vendor certificate; nil: it is not known
	SPKI       []byte // DER of the key's SubjectPublicKeyInfo; nil: that of the vendor certificate, if there is one
	// Began is when the first signature began; zero: within the last 15 minutes.
	Began time.Time
	// Operations are the requests to the key store: the names under which its log has them, "" for one without a name. Key
	// stores without a log have none.
	Operations []string
	Err        error // why there is no signature, or not all of them; nil: all were made and verified
}

// Probed is the opening of a probe.
type Probed struct {
	Began      time.Time `json:"began"` // UTC
	Operations []string  `json:"operations"`
}

// Prober is implemented by Recorders that record probes. Safe for concurrent use.
type Prober interface {
	// Probe records a probe after its signatures. The error says only whether it was recorded.
	Probe(ctx context.Context, probe Probe) error
}
