package signer

import (
	"context"
	"crypto"
	"crypto/x509"
)

// Backend is one kind of key store. Its functions are safe for concurrent use.
type Backend struct {
	// Open finds the one key that ref names. No match wraps ErrKeyNotFound, several wrap ErrAmbiguousKey and are listed.
	Open func(ctx context.Context, ref Ref, opts OpenOptions) (Signer, error)
	// Generate creates the key that ref names and opens it. If a key of that name exists, the error wraps ErrKeyExists;
	// nothing is ever replaced.
	Generate func(ctx context.Context, ref Ref, spec KeySpec) (Signer, error)
	// List returns every key that ref matches; an attribute that ref omits matches any value. It may be empty.
	List func(ctx context.Context, ref Ref) ([]KeyInfo, error)
	// Tokens returns every slot of the module that ref names, whatever else ref says. Nil if the backend has no tokens.
	Tokens func(ctx context.Context, ref Ref) ([]TokenInfo, error)
	// Diagnose checks everything from the reference to a signature and reports each step as it ends (RunSteps). It
	// returns the opened key, or nil if a step failed.
	Diagnose func(ctx context.Context, ref Ref, opts OpenOptions, report func(Step)) Signer
	// Certificates is nil if the backend cannot store a certificate with the key.
	Certificates *CertificateStore
	// InFlight returns how many signatures a batch should have in flight with the key that ref names. Nil: as many as
	// keep the cores of this machine busy.
	InFlight func(ref Ref) int
}

// OpenOptions are the options of Open. With the zero value the reference alone selects the key.
type OpenOptions struct {
	// PublicKey is the key of the vendor's certificate, an *rsa.PublicKey; nil if it is not known. It selects among
	// several keys that match the reference, and saves a KMS the call that asks for the public key.
	PublicKey crypto.PublicKey
}

// Decrypter is implemented by Signers that can decrypt, if their key may (KeySpec.Decrypt). Safe for concurrent use.
type Decrypter interface {
	// DecryptContext decrypts one block with RSAES-PKCS1-v1_5. The error wraps rsa.ErrDecryption if the block was not encrypted
	// to the key, whatever exactly is wrong with it: more would tell somebody who can ask often (Bleichenbacher, 1998). Other
	// errors wrap one of the families of this package.
	DecryptContext(ctx context.Context, ciphertext []byte) ([]byte, error)
}

// CertificateStore is the part of a backend that stores certificates with its keys.
type CertificateStore struct {
	// Load returns the certificates that the reference names; ErrKeyNotFound if there is none.
	Load func(ctx context.Context, ref Ref) ([]*x509.Certificate, error)
	// Import stores the certificate with the key that the reference names, whose public key it must contain. A
	// certificate that is already stored is not stored twice.
	Import func(ctx context.Context, ref Ref, cert *x509.Certificate) error
}

// KeySpec describes the key to generate. The reference names it.
type KeySpec struct {
	Bits int // size of the RSA modulus: 2048, 3072 or 4096
	// Decrypt says that the key decrypts, too: see Decrypter. Keys in files always do; a KMS refuses it with ErrUnsupported.
	Decrypt bool
}

// KeyInfo describes one private key without opening it, or what the store shows of a key pair whose private key it does
// not show. A field that the backend does not know is zero.
type KeyInfo struct {
	Ref       string            // a reference that names exactly this key, without secrets
	Type      string            // "" for a private key, TypePublic, TypeCertificate
	Store     string            // where it is: the file, the token's label and serial number, the key ring
	Label     string            // CKA_LABEL, alias, ...
	ID        string            // CKA_ID in hex, KMS key id
	Algorithm string            // "RSA", "EC", ...
	Bits      int               // size of the modulus
	Public    crypto.PublicKey  // nil if the store does not reveal it
	Cert      *x509.Certificate // a certificate of this key, stored with it
	// Properties describe the key's protection, with the names of the store ("CKA_SENSITIVE"), in a fixed order.
	Properties []Property
}

// The types of KeyInfo besides a private key, as RFC 7512 names them.
const (
	TypePublic      = "public"
	TypeCertificate = "cert"
)

// TokenInfo describes one slot of a PKCS#11 module and the token in it.
type TokenInfo struct {
	Ref          string // a reference that names this token, without secrets; "" if it is not initialized
	Slot         uint
	Label        string
	Serial       string
	Manufacturer string
	Model        string
	Flags        []string // the state of the token: "initialized", "PIN locked", "no token"; not nil
	Error        string   // why the module does not describe the token
}

// Property is one fact about a key's protection.
type Property struct {
	Name  string `json:"name"`
	Value string `json:"value"` // "yes", "no", or a term of the store
	Want  string `json:"-"`     // the value of each key that Generate made; empty: any
}

// Unprotected returns the properties, as "NAME is VALUE", in which the key is not as Generate would have made it.
func (i KeyInfo) Unprotected() []string {
	var wrong []string
	for _, p := range i.Properties {
		if p.Want != "" && p.Value != p.Want {
			wrong = append(wrong, p.Name+" is "+p.Value)
		}
	}
	return wrong
}

// Stats are the figures of an open key. A figure that the backend does not know is zero. Reinitialized counts for the
// whole PKCS#11 module, Reconnects for the whole token.
type Stats struct {
	Open  int // sessions that are open for this key, besides the token's own
	Idle  int // of these, those that are not in use
	InUse int // signatures in flight

	Evicted       uint64 // sessions that were closed because a call failed on them
	Reconnects    uint64 // logins after the first one, because the token was logged out
	Reinitialized uint64 // how often C_Finalize and C_Initialize reset the module
	Restarts      uint64 // worker processes that replaced one that died or was killed

	// Breaker is the state of the circuit breaker of a network store: closed, half-open or open; of several regions, that of the
	// one that is nearest to closed. Empty: there is none.
	Breaker string

	ReadWrite  bool // the token accepts read-write sessions only
	Serialized bool // the module accepts no concurrent calls (CKR_CANT_LOCK), so there is one session at a time
	Messages   bool // the token refuses CKM_RSA_PKCS and hashes messages itself
}

// Statistics is implemented by Signers that have Stats. Safe for concurrent use.
type Statistics interface {
	Stats() Stats
}

// Session is one operation of a backend. A Signer that it returns owns it.
type Session interface {
	Open(ctx context.Context, opts OpenOptions) (Signer, error)
	Generate(ctx context.Context, spec KeySpec) (Signer, error)
	List(ctx context.Context) ([]KeyInfo, error)
	// Close releases what the session uses. It may be called several times, and never fails.
	Close() error
}

// NewBackend returns the Open, Generate and List of a Backend. Each connects, does its work in the session, and closes it
// if the work fails. Errors are *Error.
func NewBackend[S Session](connect func(context.Context, Ref) (S, error)) Backend {
	return Backend{
		Open: func(ctx context.Context, ref Ref, opts OpenOptions) (Signer, error) {
			return run(ctx, "open", ref, connect, func(s S) (Signer, error) { return s.Open(ctx, opts) })
		},
		Generate: func(ctx context.Context, ref Ref, spec KeySpec) (Signer, error) {
			return run(ctx, "generate", ref, connect, func(s S) (Signer, error) { return s.Generate(ctx, spec) })
		},
		List: func(ctx context.Context, ref Ref) ([]KeyInfo, error) {
			return run(ctx, "list", ref, connect, func(s S) ([]KeyInfo, error) {
				defer s.Close() //nolint:errcheck // never fails
				return s.List(ctx)
			})
		},
	}
}

func run[S Session, T any](ctx context.Context, op string, ref Ref, connect func(context.Context, Ref) (S, error), work func(S) (T, error)) (T, error) {
	var session S
	var value T
	err := ctx.Err()
	if err == nil {
		session, err = connect(ctx, ref)
	}
	if err == nil {
		if value, err = work(session); err == nil {
			return value, nil
		}
		_ = session.Close() // the first error counts
	}
	var zero T
	return zero, &Error{Op: op, Ref: ref, Err: err}
}
