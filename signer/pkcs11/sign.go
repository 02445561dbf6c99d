//go:build cgo

package pkcs11

import (
	"context"
	"crypto"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/pkcs11"

	"hsmsign/signer"
)

// closeWait is how long Close waits for signatures that the module has not finished.
const closeWait = 5 * time.Second

// Backend opens keys in PKCS#11 tokens. Its Open takes a reference as the package comment describes it, logs
// in to the token, and gives the one RSA key that matches; it signs SHA-256 and SHA-1 digests. Errors are
// *signer.Error. Safe for concurrent use.
func Backend(opts Options) signer.Backend {
	return signer.Backend{
		Open: func(ctx context.Context, ref signer.Ref, open signer.OpenOptions) (signer.Signer, error) {
			opts := opts
			opts.PublicKey = open.PublicKey
			r, err := opts.reference("open", ref)
			if err != nil {
				return nil, err
			}
			if err := ctx.Err(); err != nil {
				return nil, r.fail("open", fmt.Errorf("%w: %w", signer.ErrUnavailable, err), "")
			}
			if r.isolated(opts) {
				return openIsolated(ctx, r, opts)
			}
			return openBounded(ctx, r, opts)
		},
		Generate:     opts.generate,
		List:         opts.list,
		Diagnose:     opts.diagnose,
		Certificates: &signer.CertificateStore{Load: opts.loadCertificates, Import: opts.importCertificate},
	}
}

// openBounded is openKey, bounded by ctx.
func openBounded(ctx context.Context, r reference, opts Options) (signer.Signer, error) {
	work := func() (*key, error) { return openKey(ctx, r, opts) }
	k, err := await(ctx, r, "open", work, func(k *key) { _ = k.Close() }) // nobody is left to be told
	if err != nil {
		return nil, err
	}
	return k, nil
}

// openKey loads the module, logs in to the token and finds the key.
func openKey(ctx context.Context, r reference, opts Options) (*key, error) {
	m, err := findModule(r)
	if err != nil {
		return nil, err
	}
	if err := m.mu.LockContext(ctx); err != nil {
		return nil, r.fail("open", err, "")
	}
	defer m.mu.Unlock()
	if err := m.retain(r); err != nil {
		return nil, err
	}
	k, err := m.openKeyAgain(ctx, r, opts)
	if err != nil {
		_ = m.release() // the first error is the one to tell
	}
	return k, err
}

// openKeyAgain is m.openKey; where other keys are open, a device that went away since has not been noticed yet, so the
// module is initialized anew for all of them and asked once more. The caller holds m.mu.
func (m *module) openKeyAgain(ctx context.Context, r reference, opts Options) (*key, error) {
	k, err := m.openKey(ctx, r, opts)
	if c := classOf(err); m.keys > 1 && (c == classSession || c == classModule) {
		if again := m.signing.close(ctx, m.wait); again == nil {
			if m.reinitialize(err) == nil {
				k, err = m.openKey(ctx, r, opts)
			}
			m.signing.open()
		}
	}
	return k, err
}

// openKey opens a key of a module that is initialized. The caller holds m.mu.
func (m *module) openKey(ctx context.Context, r reference, opts Options) (*key, error) {
	found, err := m.findSettledToken(ctx, r)
	if err != nil {
		return nil, err
	}
	t, err := m.retainToken(ctx, r, &found, opts)
	if err != nil {
		return nil, err
	}
	r.public = opts.PublicKey
	size := poolSize(r.sessions, found.info.MaxSessionCount)
	if m.serial.Load() {
		opts.warn(fmt.Sprintf("module %q takes no concurrent calls (CKR_CANT_LOCK), so one signature is made at a time", m.path))
		size = 1
	}
	k := &key{
		ref: r, module: m, token: t, mechanisms: newMechanisms(),
		sessions: newPool(m.lib, t, size),
		ended:    make(chan struct{}),
	}
	if t.now.Load() == nil {
		err = m.reattach(r, t)
	}
	if err == nil {
		err = k.bind()
	}
	if err != nil {
		_ = m.releaseToken(t) // the first error is the one to tell
		return nil, err
	}
	k.chooseMechanism(found.slot)
	k.reconnects, k.reinitialized = t.reconnects.Load(), m.reinitialized.Load()
	return k, nil
}

// poolSize is what the reference wants, or what the token has beside the anchor, where it says so. Zero means
// no limit there, and all ones that the token does not know.
func poolSize(want int, tokenMax uint) int {
	if tokenMax == pkcs11.CK_EFFECTIVELY_INFINITE || tokenMax == pkcs11.CK_UNAVAILABLE_INFORMATION || tokenMax > uint(want) {
		return want
	}
	return max(1, int(tokenMax)-1) // #nosec G115 -- tokenMax is at most want here
}

// key is a private key in a token.
type key struct {
	ref        reference
	module     *module
	token      *token
	pub        *rsa.PublicKey
	binding    atomic.Pointer[binding] // nil while the key is not found
	mechanisms mechanisms
	messages   atomic.Bool // the token is handed messages, not digests
	sessions   *pool

	// What had happened before the key was opened.
	reconnects, reinitialized uint64

	closing sync.Once
	ended   chan struct{} // closed when all is given back
	endErr  error         // readable after ended
}

// Public is the *rsa.PublicKey, read when the key was opened.
func (k *key) Public() crypto.PublicKey { return k.pub }

// Sign is SignContext without a deadline.
func (k *key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.SignContext(context.Background(), digest, opts)
}

// SignContext signs a SHA-256 or SHA-1 digest; see signer.Signer. When ctx ends while the module works, the
// call goes on in the background and its signature is dropped. A token that hashes itself gives an error that
// wraps signer.ErrUnsupported; it needs SignMessageContext.
func (k *key) SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	h, err := signer.CheckDigest(digest, opts, crypto.SHA256, crypto.SHA1)
	if err != nil {
		return nil, k.fail(err)
	}
	return k.run(ctx, newPayload(h, digest))
}

// SignMessageContext is SignContext over a message, which is hashed here, or in the token where that insists.
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

// run signs in the background, so that the end of ctx sets the caller free.
func (k *key) run(ctx context.Context, p payload) ([]byte, error) {
	if err := k.sessions.acquire(ctx); err != nil {
		return nil, k.fail(err)
	}
	if ctx.Done() == nil { // nothing sets the caller free
		defer k.sessions.release()
		sig, err := k.sign(ctx, p)
		if err != nil {
			return nil, k.fail(err)
		}
		return sig, nil
	}
	type result struct {
		sig []byte
		err error
	}
	done := make(chan result, 1)
	go func() {
		defer k.sessions.release()
		sig, err := k.sign(ctx, p)
		done <- result{sig, err}
	}()
	select {
	case res := <-done:
		if res.err != nil {
			return nil, k.fail(res.err)
		}
		return res.sig, nil
	case <-ctx.Done():
		return nil, k.fail(fmt.Errorf("%w: C_Sign has not come back: %w", signer.ErrUnavailable, ctx.Err()))
	}
}

// sign makes one signature, and a second try of it where the first met a session or module that died. The caller
// holds a permit.
func (k *key) sign(ctx context.Context, p payload) ([]byte, error) {
	b, ok := k.bound()
	var cause error
	if ok {
		var sig []byte
		if sig, cause = k.attempt(ctx, b, p); cause == nil {
			return sig, nil
		}
		if c := classOf(cause); c != classSession && c != classModule {
			return nil, cause
		}
	}
	if err := k.recover(ctx, b, cause); err != nil {
		return nil, err
	}
	b, ok = k.bound()
	if !ok {
		return nil, errLost
	}
	return k.attempt(ctx, b, p)
}

// errLost: the login ended between finding the key and using it.
var errLost = fmt.Errorf("%w: the token was logged out meanwhile", signer.ErrUnavailable)

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
		return nil, &callError{"C_SignInit", pkcs11.CKR_SESSION_CLOSED} // a recovery came between
	}
	s, err := k.sessions.take(ctx, b.login)
	if err != nil {
		return nil, err
	}
	defer func() { k.sessions.put(s, err) }()
	return k.signWith(s, b, p)
}

// fail is the error of a signature, unless it is one of an operation before it.
func (k *key) fail(err error) error {
	if told, ok := err.(*signer.Error); ok { //nolint:errorlint // the outermost error is what is asked for
		return told
	}
	return k.ref.fail("sign with", err, fixFor(err))
}

// Stats are the figures of this key.
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

// Close gives back sessions, login and module. It waits a few seconds for signatures that are under way; what
// the module has not finished by then is given back when it is, and the error wraps signer.ErrUnavailable.
func (k *key) Close() error {
	k.closing.Do(func() {
		go func() {
			k.endErr = k.end()
			close(k.ended)
		}()
	})
	timer := time.NewTimer(closeWait)
	defer timer.Stop()
	select {
	case <-k.ended:
		if k.endErr != nil {
			return k.ref.fail("close", k.endErr, "")
		}
		return nil
	case <-timer.C:
		return k.ref.fail("close", fmt.Errorf("%w: module %q still works on a call after %v", signer.ErrUnavailable, k.ref.module, closeWait), "")
	}
}

// end gives everything back, in the order in which the module wants it.
func (k *key) end() error {
	k.sessions.drain()
	k.module.mu.Lock()
	defer k.module.mu.Unlock()
	return errors.Join(k.sessions.close(), k.module.releaseToken(k.token), k.module.release())
}
