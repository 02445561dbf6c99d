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
	"time"

	"github.com/miekg/pkcs11"

	"hsmsign/signer"
)

// closeWait is how long Close waits for signatures that the module has not finished.
const closeWait = 5 * time.Second

// The DigestInfo of RFC 8017 section 9.2, note 1, up to the digest.
const (
	sha1Info   = "\x30\x21\x30\x09\x06\x05\x2b\x0e\x03\x02\x1a\x05\x00\x04\x14"
	sha256Info = "\x30\x31\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00\x04\x20"
)

// Backend opens keys in PKCS#11 tokens. Its Open takes a reference as the package comment describes it, logs
// in to the token, and gives the one RSA key that matches; it signs SHA-256 and SHA-1 digests. Errors are
// *signer.Error. Safe for concurrent use.
func Backend(opts Options) signer.Backend {
	return signer.Backend{Open: func(ctx context.Context, ref signer.Ref) (signer.Signer, error) {
		r, err := parseReference(ref)
		if err != nil {
			return nil, r.fail("open", err, "")
		}
		if err := ctx.Err(); err != nil {
			return nil, r.fail("open", fmt.Errorf("%w: %w", signer.ErrUnavailable, err), "")
		}
		return open(ctx, r, opts)
	}}
}

// open runs openKey so that the end of ctx sets the caller free, even from a module that hangs.
func open(ctx context.Context, r reference, opts Options) (signer.Signer, error) {
	type result struct {
		k   *key
		err error
	}
	done := make(chan result, 1)
	go func() {
		k, err := openKey(ctx, r, opts)
		done <- result{k, err}
	}()
	select {
	case res := <-done:
		if res.err != nil {
			return nil, res.err
		}
		return res.k, nil
	case <-ctx.Done():
		// Whatever openKey still gets hold of must be given back.
		go func() {
			if res := <-done; res.err == nil {
				_ = res.k.Close() // nobody is left to be told
			}
		}()
		return nil, r.fail("open", fmt.Errorf("%w: module %q: %w", signer.ErrUnavailable, r.module, ctx.Err()), "")
	}
}

// openKey loads the module, logs in to the token and finds the key.
func openKey(ctx context.Context, r reference, opts Options) (k *key, err error) {
	m, err := findModule(r)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.retain(r); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = m.release() // the first error is the one to tell
		}
	}()
	found, err := m.findToken(r)
	if err != nil {
		return nil, err
	}
	t, err := m.retainToken(ctx, r, found, opts)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = m.releaseToken(t)
		}
	}()
	object, pub, err := finder{m.lib, t.anchor, r}.privateKey()
	if err != nil {
		return nil, err
	}
	return &key{
		ref: r, module: m, token: t, object: object, pub: pub,
		mechanism: []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS, nil)},
		sessions:  newPool(m.lib, found.slot, poolSize(r.sessions, found.info.MaxSessionCount)),
		ended:     make(chan struct{}),
	}, nil
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
	ref       reference
	module    *module
	token     *token
	object    pkcs11.ObjectHandle
	pub       *rsa.PublicKey
	mechanism []*pkcs11.Mechanism
	sessions  *pool

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
// call goes on in the background and its signature is dropped.
func (k *key) SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	h, err := signer.CheckDigest(digest, opts, crypto.SHA256, crypto.SHA1)
	if err != nil {
		return nil, k.ref.fail("sign with", err, "")
	}
	if err := k.sessions.acquire(ctx); err != nil {
		return nil, k.ref.fail("sign with", err, "")
	}
	info := sha256Info
	if h == crypto.SHA1 {
		info = sha1Info
	}
	// The caller may change its digest once it is told that ctx ended.
	data := append([]byte(info), digest...)
	type result struct {
		sig []byte
		err error
	}
	done := make(chan result, 1)
	go func() {
		defer k.sessions.release()
		sig, err := k.sign(data)
		done <- result{sig, err}
	}()
	select {
	case res := <-done:
		if res.err != nil {
			return nil, k.ref.fail("sign with", res.err, "")
		}
		return res.sig, nil
	case <-ctx.Done():
		return nil, k.ref.fail("sign with", fmt.Errorf("%w: C_Sign has not come back: %w", signer.ErrUnavailable, ctx.Err()), "")
	}
}

// sign makes one signature over a DigestInfo. The caller holds a permit.
func (k *key) sign(info []byte) (sig []byte, err error) {
	sh, err := k.sessions.take()
	if err != nil {
		return nil, err
	}
	defer func() { k.sessions.put(sh, err) }()
	if err := k.module.lib.SignInit(sh, k.mechanism, k.object); err != nil {
		return nil, call("C_SignInit", err)
	}
	if sig, err = k.module.lib.Sign(sh, info); err != nil {
		return nil, call("C_Sign", err)
	}
	if len(sig) != k.pub.Size() {
		return nil, fmt.Errorf("%w: C_Sign gives %d bytes where the modulus has %d", signer.ErrBadSignature, len(sig), k.pub.Size())
	}
	return sig, nil
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
	err := k.sessions.close()
	k.module.mu.Lock()
	defer k.module.mu.Unlock()
	return errors.Join(err, k.module.releaseToken(k.token), k.module.release())
}
