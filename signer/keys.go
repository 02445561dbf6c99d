package signer

import (
	"context"
	"crypto"
	"crypto/x509"
)

// KeySpec says what key to generate. Where it goes and what it is called stands in the reference.
type KeySpec struct {
	Bits int // size of the RSA modulus: 2048, 3072 or 4096
}

// KeyInfo describes one private key without opening it. Fields that the backend does not know are zero.
type KeyInfo struct {
	Ref       string            // a reference that names exactly this key, without secrets
	Store     string            // where it lies: the file, the token's label and serial number, the key ring
	Label     string            // CKA_LABEL, alias, ...
	ID        string            // CKA_ID in hex, KMS key id
	Algorithm string            // "RSA", "EC", ...
	Bits      int               // size of the modulus
	Public    crypto.PublicKey  // nil where the store does not give it
	Cert      *x509.Certificate // a certificate of this key that lies beside it
	// Properties are what the store says of the key's protection, by its own names ("CKA_SENSITIVE"), in a
	// fixed order.
	Properties []Property
}

// Property is one fact about a key's protection.
type Property struct {
	Name  string `json:"name"`
	Value string `json:"value"` // "yes", "no", or a word of the store's own
}

// Status is how a step of a diagnosis went.
type Status string

// The statuses. After a failure the steps that need what failed are skipped.
const (
	StatusOK      Status = "ok"
	StatusWarn    Status = "warn"
	StatusFail    Status = "fail"
	StatusSkipped Status = "skipped"
)

// Step is one step of a diagnosis.
type Step struct {
	Name   string // "module file", "login", ...: stable
	Status Status
	Detail string // what was seen, one line, no secret
	Fix    string // what to do, where it is not ok
	Err    error  // why it failed; wraps a family
}

// Diagnose walks from the reference to a signature and reports each step as it ends, in order. It gives the
// opened key, or nil when a step failed.
type Diagnose func(ctx context.Context, ref Ref, report func(Step)) Signer

// CertificateStore is for backends that can hold a certificate beside the key.
type CertificateStore struct {
	// Load gives the certificates that the reference names; ErrKeyNotFound when there is none.
	Load func(ctx context.Context, ref Ref) ([]*x509.Certificate, error)
	// Import stores the certificate beside the key that the reference names, which must be the certificate's
	// own; one that is there already is not stored twice.
	Import func(ctx context.Context, ref Ref, cert *x509.Certificate) error
}
