package signer

import "hsmsign/fault"

// The error families. Every error of a backend wraps one of them; match it with errors.Is.
var (
	// ErrReference: the key reference is malformed or has an unknown attribute.
	ErrReference = fault.Usage.New("malformed key reference")
	// ErrKeyNotFound: nothing matches the reference (no such file, token or object).
	ErrKeyNotFound = fault.Vendor.New("key not found")
	// ErrKeyExists: a key of this name exists, and Generate does not replace it.
	ErrKeyExists = fault.Usage.New("key exists")
	// ErrAmbiguousKey: more than one key matches; the error lists them.
	ErrAmbiguousKey = fault.Vendor.New("key reference is ambiguous")
	// ErrBadKey: the key exists but cannot or must not be used: damaged, not RSA, readable by others.
	ErrBadKey = fault.Vendor.New("unusable key")
	// ErrAuth: the PIN, passphrase or credentials are missing or wrong. Never retried: tokens lock.
	ErrAuth = fault.Auth.New("authentication failed")
	// ErrUnsupported: the backend does not support the request (hash, mechanism, this build).
	ErrUnsupported = fault.Usage.New("unsupported")
	// ErrUnavailable: the backend does not answer now. It may be retried.
	ErrUnavailable = fault.Unavailable.New("backend unavailable")
	// ErrBadSignature: the backend returned a signature that does not verify.
	ErrBadSignature = fault.Unavailable.New("bad signature")
	// ErrClosed: the Signer was used after Close.
	ErrClosed = fault.Internal.New("signer is closed")
)

// Error names the operation that failed and its key, as fs.PathError does for files. fault.Hint returns what to do.
type Error struct {
	Op  string // "open", "sign", "log in", ...
	Ref Ref    // printed without secrets
	Err error  // wraps one of the families
}

func (e *Error) Error() string { return e.Op + " " + e.Ref.String() + ": " + e.Err.Error() }

func (e *Error) Unwrap() error { return e.Err }
