package kms

import (
	"context"
	"crypto"
	"crypto/rsa"
	"fmt"
	"io"
	"sync/atomic"

	"hsmsign/fault"
	"hsmsign/signer"
)

// Run is one operation of a backend ("open", "list"): it connects, does the work, and closes the session if the work
// fails. Errors are *signer.Error.
func Run[S io.Closer, T any](ctx context.Context, op string, ref signer.Ref, connect func() (S, error), work func(S) (T, error)) (T, error) {
	var zero T
	wrap := func(err error) (T, error) { return zero, &signer.Error{Op: op, Ref: ref, Err: err} }
	if err := ctx.Err(); err != nil {
		return wrap(err)
	}
	session, err := connect()
	if err != nil {
		return wrap(err)
	}
	value, err := work(session)
	if err != nil {
		_ = session.Close() // the first error counts
		return wrap(err)
	}
	return value, nil
}

// PublicKey returns the public key of the vendor's certificate, or nil if the options have none. A key that is not RSA
// wraps signer.ErrUnsupported.
func PublicKey(opts signer.OpenOptions) (*rsa.PublicKey, error) {
	if opts.PublicKey == nil {
		return nil, nil
	}
	public, ok := opts.PublicKey.(*rsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("%w: the certificate has a key of type %T; Apple accepts RSA only", signer.ErrUnsupported, opts.PublicKey)
	}
	return public, nil
}

// Store makes the requests of a Key. Both functions are safe for concurrent use.
type Store struct {
	// Sign signs a SHA-256 digest with RSASSA-PKCS1-v1_5. Its ctx also ends with Close. Errors wrap a family.
	Sign func(ctx context.Context, digest []byte) ([]byte, error)
	// Release closes the connections. It may be called several times.
	Release func()
}

// Key is an open key of a network store, a signer.Signer. It signs with SHA-256 only. Close ends the signatures that
// are in flight and waits for nothing.
type Key struct {
	ref      signer.Ref
	public   *rsa.PublicKey
	store    Store
	unproven atomic.Bool     // no signature has verified with public yet
	life     context.Context // ends with Close
	end      context.CancelFunc
}

// NewKey returns the Signer of a key. proven means that the store itself reported the public key. Otherwise it comes
// from the vendor's certificate: the Key then verifies its signatures until one has proved that the two belong
// together. A signature that does not verify wraps signer.ErrBadKey and is not returned.
func NewKey(ref signer.Ref, public *rsa.PublicKey, proven bool, store Store) *Key {
	k := &Key{ref: ref, public: public, store: store}
	k.unproven.Store(!proven)
	k.life, k.end = context.WithCancel(context.Background())
	return k
}

// Public returns an *rsa.PublicKey.
func (k *Key) Public() crypto.PublicKey { return k.public }

// Sign is SignContext without a deadline.
func (k *Key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.SignContext(context.Background(), digest, opts)
}

// SignContext signs a digest; see signer.Signer.
func (k *Key) SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	sig, err := k.sign(ctx, digest, opts)
	if err != nil {
		return nil, &signer.Error{Op: "sign", Ref: k.ref, Err: err}
	}
	return sig, nil
}

func (k *Key) sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if k.life.Err() != nil {
		return nil, signer.ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if _, err := signer.CheckDigest(digest, opts, crypto.SHA256); err != nil {
		return nil, fault.Errorf("%w; the key store signs SHA-256 digests only", err).Fix("sign with SHA-256")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(k.life, cancel)()
	sig, err := k.store.Sign(ctx, digest)
	if k.life.Err() != nil {
		k.store.Release() // the connection was in use when the key was closed
		if err != nil {
			return nil, signer.ErrClosed
		}
	}
	if err != nil {
		return nil, err
	}
	return sig, k.prove(digest, sig)
}

// prove verifies a signature until one has shown that the certificate's public key is that of this key. From then on
// signer.Sign alone verifies.
func (k *Key) prove(digest, sig []byte) error {
	if !k.unproven.Load() {
		return nil
	}
	if err := rsa.VerifyPKCS1v15(k.public, crypto.SHA256, digest, sig); err != nil {
		return fault.Errorf("%w: its signature does not verify with the certificate's public key: they do not belong together", signer.ErrBadKey).
			Fix("use the certificate that was issued for this key, or the key that the certificate was issued for")
	}
	k.unproven.Store(false)
	return nil
}

// Close ends the signatures in flight and releases the connections.
func (k *Key) Close() error {
	k.end()
	k.store.Release()
	return nil
}
