//go:build cgo

package pkcs11

import (
	"context"
	"crypto"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/miekg/pkcs11"

	"hsmsign/signer"
)

// key is a private key in a token.
type key struct {
	ref        reference
	wanted     crypto.PublicKey // that Open looked for; nil: not known
	module     *module
	token      *token
	pub        *rsa.PublicKey
	binding    atomic.Pointer[binding]             // nil while the key is not found
	mechanisms map[crypto.Hash][]*pkcs11.Mechanism // see newMechanisms
	messages   atomic.Bool                         // the token receives messages, not digests
	sessions   *pool
	closeWait  time.Duration

	// The figures when the key was opened.
	reconnects, reinitialized uint64

	end func() error // releases everything, once
}

// Public returns the *rsa.PublicKey, which was read when the key was opened.
func (k *key) Public() crypto.PublicKey { return k.pub }

// Sign is SignContext without a deadline.
func (k *key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.SignContext(context.Background(), digest, opts)
}

// SignContext signs a SHA-256 or SHA-1 digest; see signer.Signer. If ctx ends while the module works, the call goes on in
// the background and its signature is dropped. With a token that hashes messages itself the error wraps
// signer.ErrUnsupported; it needs SignMessageContext.
func (k *key) SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	h, err := signer.CheckDigest(digest, opts, crypto.SHA256, crypto.SHA1)
	if err != nil {
		return nil, k.fail(err)
	}
	return k.run(ctx, newPayload(h, digest))
}

// SignMessageContext is SignContext over a message, which is hashed here, or in the token if it insists.
func (k *key) SignMessageContext(ctx context.Context, message []byte, opts crypto.SignerOpts) ([]byte, error) {
	var digest []byte
	if h, ok := opts.(crypto.Hash); ok && (h == crypto.SHA256 || h == crypto.SHA1) {
		hash := h.New()
		hash.Write(message)
		digest = hash.Sum(nil)
	}
	h, err := signer.CheckDigest(digest, opts, crypto.SHA256, crypto.SHA1)
	if err != nil {
		return nil, k.fail(err)
	}
	p := newPayload(h, digest)
	p.message = append([]byte{}, message...)
	return k.run(ctx, p)
}

// run signs in the background, so that the caller returns when ctx ends.
func (k *key) run(ctx context.Context, p payload) ([]byte, error) {
	if err := k.sessions.acquire(ctx); err != nil {
		return nil, k.fail(err)
	}
	work := func() ([]byte, error) { return k.sign(ctx, p) }
	sig, err := awaitThen(ctx, "C_Sign has not returned", work, k.sessions.release, nil) // the next caller signs meanwhile
	return sig, k.fail(err)
}

// sign makes one signature, and makes it once more if the session or the module has died. The caller has a permit.
func (k *key) sign(ctx context.Context, p payload) ([]byte, error) {
	b, _ := k.bound()
	sig, cause := k.attempt(ctx, b, p)
	if c := classOf(cause); c != classSession && c != classModule {
		return sig, cause
	}
	if err := k.recover(ctx, b, cause); err != nil {
		return nil, err
	}
	b, ok := k.bound()
	if !ok {
		return nil, errLost
	}
	return k.attempt(ctx, b, p)
}

// errLost: the login ended after the key was found and before it was used.
var errLost = fmt.Errorf("%w: the token was logged out in the meantime", signer.ErrUnavailable)

// attempt makes one signature under a binding.
func (k *key) attempt(ctx context.Context, b *binding, p payload) (sig []byte, err error) {
	if k.module.serial.Load() {
		if err := k.module.mu.LockContext(ctx); err != nil {
			return nil, err
		}
		defer k.module.mu.Unlock()
	}
	if err := k.module.signing.enter(ctx); err != nil {
		return nil, err
	}
	defer k.module.signing.leave()
	if now, ok := k.bound(); !ok || now != b {
		return nil, &callError{"C_SignInit", pkcs11.CKR_SESSION_CLOSED} // the login has ended, or a recovery came between
	}
	s, err := k.sessions.take(ctx, b.login)
	if err != nil {
		return nil, err
	}
	defer func() { k.sessions.put(s, err) }()
	return k.signWith(s, b, p)
}

// fail returns the error of a signature, unless it is that of an operation before it.
func (k *key) fail(err error) error { return k.ref.wrap(opSign, advise(err)) }

const opSign = "sign with"

// Stats returns the figures of this key.
func (k *key) Stats() signer.Stats {
	p := k.sessions
	p.mu.Lock()
	defer p.mu.Unlock()
	return signer.Stats{
		Open: p.open, Idle: len(p.idle), InUse: p.open - len(p.idle), Evicted: p.evicted,
		Reconnects: k.token.reconnects.Load() - k.reconnects, Reinitialized: k.module.reinitialized.Load() - k.reinitialized,
		ReadWrite: k.token.readWrite.Load(), Serialized: k.module.serial.Load(), Messages: k.messages.Load(),
	}
}

// Close releases sessions, login and module. It waits a few seconds for signatures in flight. If the module has not
// finished by then, the rest is released later, and the error wraps signer.ErrUnavailable.
func (k *key) Close() error {
	ended := make(chan error, 1)
	go func() { ended <- k.end() }()
	select {
	case err := <-ended:
		return k.ref.wrap("close", err)
	case <-time.After(k.closeWait):
		return k.ref.wrap("close", fmt.Errorf("%w: module %q still works on a call after %v", signer.ErrUnavailable, k.ref.module, k.closeWait))
	}
}

// release releases everything, in the order that the module needs. It is called once.
func (k *key) release() error {
	k.sessions.drain()
	k.module.mu.Lock()
	defer k.module.mu.Unlock()
	return errors.Join(k.sessions.evict(), k.module.releaseToken(k.token), k.module.release())
}
