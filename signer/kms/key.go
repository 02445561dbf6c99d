package kms

import (
	"context"
	"crypto"
	"crypto/rsa"
	"fmt"
	"io"
	"strings"
	"sync/atomic"

	"github.com/sony/gobreaker/v2"

	"hsmsign/fault"
	"hsmsign/signer"
)

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

// Store makes the requests of a Key. Its functions are safe for concurrent use.
type Store interface {
	// Sign signs a SHA-256 digest (32 bytes) with RSASSA-PKCS1-v1_5, or a SHA-1 digest (20 bytes) if the Key is WithSHA1.
	// Its ctx also ends with the Key's Close. Errors wrap a family.
	Sign(ctx context.Context, digest []byte) ([]byte, error)
	// Close closes the connections. It may be called several times.
	Close() error
}

// Key is an open key of a network store, a signer.Signer. It signs with SHA-256 only, unless it is WithSHA1. Close ends the signatures that
// are in flight and waits for nothing.
type Key struct {
	ref      signer.Ref
	public   *rsa.PublicKey
	store    Store
	callers  []*Caller
	hashes   []crypto.Hash   // that it signs with
	unproven atomic.Bool     // no signature has verified with public yet
	life     context.Context // ends with Close
	end      context.CancelFunc
}

// NewKey returns the Signer of a key. proven means that the store itself reported the public key. Otherwise it comes
// from the vendor's certificate: the Key then verifies its signatures until one has proved that the two belong
// together. A signature that does not verify wraps signer.ErrBadKey and is not returned. callers are those of the store, one
// of each region; Stats reports them.
func NewKey(ref signer.Ref, public *rsa.PublicKey, proven bool, store Store, callers ...*Caller) *Key {
	k := &Key{ref: ref, public: public, store: store, callers: callers, hashes: []crypto.Hash{crypto.SHA256}}
	k.unproven.Store(!proven)
	k.life, k.end = context.WithCancel(context.Background())
	return k
}

// WithSHA1 makes a new Key sign SHA-1 digests too, and returns it.
func (k *Key) WithSHA1() *Key {
	k.hashes = append(k.hashes, crypto.SHA1)
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
	hash, err := signer.CheckDigest(digest, opts, k.hashes...)
	if err != nil {
		return nil, fault.Errorf("%w; the key store signs %s digests only", err, words(k.hashes)).Fix("sign with SHA-256")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(k.life, cancel)()
	sig, err := k.store.Sign(ctx, digest)
	if k.life.Err() != nil {
		_ = k.store.Close() // the connection was in use when the key was closed
		if err != nil {
			return nil, signer.ErrClosed
		}
	}
	if err != nil || !k.unproven.Load() {
		return sig, err
	}
	// Once one signature has verified, signer.Sign alone verifies.
	if err := rsa.VerifyPKCS1v15(k.public, hash, digest, sig); err != nil {
		return nil, fault.Errorf("%w: its signature does not verify with the certificate's public key: they do not belong together", signer.ErrBadKey).
			Fix("use the certificate that was issued for this key, or the key that the certificate was issued for")
	}
	k.unproven.Store(false)
	return sig, nil
}

// words returns the names of hashes: "SHA-256 and SHA-1".
func words(hashes []crypto.Hash) string {
	var names []string
	for _, h := range hashes {
		names = append(names, h.String())
	}
	return strings.Join(names, " and ")
}

// Stats returns the attempts in flight and the state of the breaker.
func (k *Key) Stats() signer.Stats {
	var stats signer.Stats
	var best gobreaker.State
	for i, c := range k.callers {
		stats.InUse += len(c.slots)
		if state := c.breaker.State(); i == 0 || nearer(state, best) {
			best = state
			stats.Breaker = state.String()
		}
	}
	return stats
}

// nearer returns whether the state a is nearer to closed than b.
func nearer(a, b gobreaker.State) bool {
	return a != b && (a == gobreaker.StateClosed || b == gobreaker.StateOpen)
}

// Close ends the signatures in flight and releases the connections.
func (k *Key) Close() error {
	k.end()
	return k.store.Close()
}
