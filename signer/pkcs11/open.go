//go:build cgo

package pkcs11

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/miekg/pkcs11"

	"hsmsign/signer"
)

// Available reports whether this build can load PKCS#11 modules.
const Available = true

// Backend returns the backend of PKCS#11 tokens. Its Open accepts a reference as the package comment describes it, logs
// in to the token, and returns the one RSA key that matches; it signs SHA-256 and SHA-1 digests. Errors are
// *signer.Error. Safe for concurrent use.
func Backend(opts Options) signer.Backend {
	return signer.Backend{
		Open:         opts.open,
		Generate:     opts.generate,
		List:         opts.list,
		Tokens:       opts.tokens,
		Diagnose:     opts.diagnose,
		Certificates: &signer.CertificateStore{Load: opts.loadCertificates, Import: opts.importCertificate},
	}
}

func (o Options) open(ctx context.Context, ref signer.Ref, wanted signer.OpenOptions) (signer.Signer, error) {
	r, err := o.reference("open", ref)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, r.wrap("open", fmt.Errorf("%w: %w", signer.ErrUnavailable, err))
	}
	if r.isolate == "yes" || r.isolate == "" && o.Isolate {
		return o.openIsolated(ctx, r, wanted)
	}
	return o.openHere(ctx, r, wanted)
}

// openHere opens a key whose module is loaded into this process. It returns when ctx ends.
func (o Options) openHere(ctx context.Context, r reference, wanted signer.OpenOptions) (signer.Signer, error) {
	work := func() (signer.Signer, error) { return o.retainAndOpen(ctx, r, wanted) }
	k, err := await(ctx, r.busy(), work, closeLate)
	return k, r.wrap("open", err)
}

// retainAndOpen loads the module, logs in to the token and finds the key.
func (o Options) retainAndOpen(ctx context.Context, r reference, wanted signer.OpenOptions) (signer.Signer, error) {
	return withModule(ctx, r, func(m *module) (signer.Signer, error) { return m.openOrRecover(ctx, r, o, wanted) })
}

// openOrRecover is openKey. If other keys are open, they may not have noticed yet that the device has gone: then it
// initializes the module again for all of them and opens once more. The caller holds m.mu.
func (m *module) openOrRecover(ctx context.Context, r reference, opts Options, wanted signer.OpenOptions) (signer.Signer, error) {
	k, err := m.openKey(ctx, r, opts, wanted)
	if c := classOf(err); m.keys > 1 && (c == classSession || c == classModule) {
		if again := m.signing.close(ctx, m.wait); again == nil {
			if m.reinitialize(err) == nil {
				k, err = m.openKey(ctx, r, opts, wanted)
			}
			m.signing.open()
		}
	}
	return k, err
}

// openKey opens a key of a retained module, and retains the module for it. The caller holds m.mu.
func (m *module) openKey(ctx context.Context, r reference, opts Options, wanted signer.OpenOptions) (signer.Signer, error) {
	found, err := m.findSettledToken(ctx, r)
	if err != nil {
		return nil, err
	}
	t, err := m.retainToken(ctx, r, &found, opts)
	if err != nil {
		return nil, err
	}
	size := poolSize(r.sessions, found.info.MaxSessionCount)
	if m.serial.Load() {
		opts.warn(fmt.Sprintf("module %q accepts no concurrent calls (CKR_CANT_LOCK), so one signature is made at a time", m.path))
		size = 1
	}
	k := &key{
		ref: r, wanted: wanted.PublicKey, module: m, token: t, mechanisms: newMechanisms(),
		sessions: newPool(m.lib, t, size), closeWait: closeWait,
	}
	k.end = sync.OnceValue(k.release)
	if t.now.Load() == nil {
		err = m.reattach(r, t)
	}
	if err == nil {
		err = k.bind()
	}
	if err != nil {
		_ = m.releaseToken(t) // the first error is reported
		return nil, err
	}
	k.chooseMechanism(found.slot)
	k.reconnects, k.reinitialized = t.reconnects.Load(), m.reinitialized.Load()
	m.keys++
	return k, nil
}

// closeWait is how long Close waits for signatures that the module has not finished.
const closeWait = 5 * time.Second

// poolSize returns the smaller of what the reference wants and what the token has besides the anchor. For the token,
// zero means that there is no limit, and all ones that it is unknown.
func poolSize(want int, tokenMax uint) int {
	if tokenMax == pkcs11.CK_EFFECTIVELY_INFINITE || tokenMax == pkcs11.CK_UNAVAILABLE_INFORMATION || tokenMax > uint(want) {
		return want
	}
	return max(1, int(tokenMax)-1) // #nosec G115 -- tokenMax is at most want here
}
