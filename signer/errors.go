package signer

import "errors"

// The error families. Every error of a backend wraps one of them; find it with errors.Is.
var (
	// ErrReference: the key reference itself is malformed or names an unknown attribute.
	ErrReference = errors.New("malformed key reference")
	// ErrKeyNotFound: nothing matches the reference (no such file, token or object).
	ErrKeyNotFound = errors.New("key not found")
	// ErrKeyExists: a key of this name is there already, and none is generated in its place.
	ErrKeyExists = errors.New("key exists")
	// ErrAmbiguousKey: more than one key matches; the error lists them.
	ErrAmbiguousKey = errors.New("key reference is ambiguous")
	// ErrBadKey: there is a key and it must not or cannot be used: damaged, not RSA, open to others.
	ErrBadKey = errors.New("unusable key")
	// ErrAuth: the PIN, passphrase or credentials are missing or wrong. Never retried: PINs lock.
	ErrAuth = errors.New("authentication failed")
	// ErrUnsupported: the backend cannot do what is asked (hash, mechanism, this build).
	ErrUnsupported = errors.New("unsupported")
	// ErrUnavailable: the backend does not answer now. May be retried.
	ErrUnavailable = errors.New("backend unavailable")
	// ErrBadSignature: the backend returned a signature that does not verify.
	ErrBadSignature = errors.New("bad signature")
	// ErrClosed: the Signer was used after Close.
	ErrClosed = errors.New("signer is closed")
)

// Error says which operation on which key failed, as fs.PathError does for files.
type Error struct {
	Op  string // "open", "sign", "log in", ...
	Ref Ref    // printed without its secrets
	Err error  // wraps one of the families
	Fix string // what to do, one line; may be empty
}

func (e *Error) Error() string { return e.Op + " " + e.Ref.String() + ": " + e.Err.Error() }

func (e *Error) Unwrap() error { return e.Err }

// Hint is what to do about it.
func (e *Error) Hint() string { return e.Fix }
