package agent

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"hsmsign/chain"
	"hsmsign/ledger/record"
	"hsmsign/request"
	"hsmsign/signer"
)

// Certificates are what the vendor's chain is built from.
type Certificates struct {
	Name       string              // what errors call the vendor certificate: the name of its file
	Vendor     []*x509.Certificate // the vendor certificate, or the whole chain
	Extra      []*x509.Certificate // intermediate and root certificates
	TrustRoots []*x509.Certificate // trusted in addition to Apple's roots
}

// build returns the chain, checked at the given time.
func (c Certificates) build(now time.Time, warnDays int) (*chain.Chain, error) {
	built, err := chain.Build(c.Vendor, c.Extra, chain.Options{TrustRoots: c.TrustRoots, Now: now, WarnDays: warnDays})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.Name, err)
	}
	return built, nil
}

// CertificateFiles returns a function for Config.Certificates that reads files, or references of certificates in a
// token: the vendor certificate, its intermediate and root certificates, and further trusted roots. The loader is a
// keystore.Store.
func CertificateFiles(loader interface {
	LoadCertificates(ctx context.Context, names ...string) ([]*x509.Certificate, error)
}, vendor string, extra, trustRoots []string,
) func(ctx context.Context) (Certificates, error) {
	return func(ctx context.Context) (Certificates, error) {
		c := Certificates{Name: vendor}
		if ref, err := signer.ParseRef(vendor); err == nil {
			c.Name = ref.String()
		}
		for _, part := range []struct {
			to    *[]*x509.Certificate
			names []string
		}{{&c.Vendor, []string{vendor}}, {&c.Extra, extra}, {&c.TrustRoots, trustRoots}} {
			var err error
			if *part.to, err = loader.LoadCertificates(ctx, part.names...); err != nil {
				return Certificates{}, err
			}
		}
		return c, nil
	}
}

// Config says where a vendor's identity is. Key and Certificates are required.
type Config struct {
	// Name is the name of the identity in the configuration; empty: there is only one.
	Name string
	// Key opens the vendor's key, as keystore.Key does.
	Key interface {
		Open(ctx context.Context, opts signer.OpenOptions) (signer.Signer, error)
	}
	// Certificates loads the vendor's certificates. NewVendor, Reload and CheckStatus call it.
	Certificates func(ctx context.Context) (Certificates, error)
	// OpenTimeout bounds opening the key, a person's typing included; zero: 2 minutes.
	OpenTimeout time.Duration
	// SignTimeout bounds one signature; zero: 1 minute. Network HSMs answer within a second, or not at all.
	SignTimeout time.Duration
	// Recorder records each signature before it is made and before it is released; nil: nothing is recorded. One that is a
	// record.Prober records probes too.
	Recorder record.Recorder
	// Probes is shared by the vendors of a process, so that they make one probe a minute together; see NewProbes. nil: the
	// vendor makes one probe a minute, whatever others do.
	Probes *rate.Limiter
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

func (cfg Config) withDefaults() Config {
	cfg.OpenTimeout = cmp.Or(cfg.OpenTimeout, 2*time.Minute)
	cfg.SignTimeout = cmp.Or(cfg.SignTimeout, time.Minute)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return cfg
}

// Vendor is one vendor identity: its chain, and its key, which is opened when it is first needed. Close releases the key.
type Vendor struct {
	cfg      Config
	identity atomic.Pointer[identity]
	limiters sync.Map // the *rate.Limiter of each caller
	signed   atomic.Pointer[time.Time]

	mu      sync.Mutex // guards what follows; never held while the key is opened or signs
	key     *openKey   // nil: not open
	opening *opening   // nil: nobody opens the key
	closed  bool
	probing *probing // nil: no probe is running
	probed  probed   // the last one
}

// identity is one loaded chain, and what is derived from it.
type identity struct {
	chain        *chain.Chain
	encoder      *request.Encoder
	certificates []byte // DER, concatenated
}

// openKey is an open key and the number of its users; it is closed when it was dropped and the last user is done.
type openKey struct {
	signer.Signer
	users   int
	dropped bool
}

// opening is one attempt to open the key. Callers that wait for it share its failure, so that nobody is asked for a
// passphrase twice; a caller that comes later makes a new attempt.
type opening struct {
	done      chan struct{} // closed at the end
	err       error         // readable after done
	abandoned bool          // the caller that made the attempt gave up, so its failure says nothing; as err
}

// NewVendor loads the vendor's chain. It does not open the key.
func NewVendor(ctx context.Context, cfg Config) (*Vendor, error) {
	v := &Vendor{cfg: cfg.withDefaults()}
	if v.cfg.Probes == nil {
		v.cfg.Probes = NewProbes()
	}
	if err := v.Reload(ctx); err != nil {
		return nil, err
	}
	return v, nil
}

// Reload loads the chain again and uses it from then on; if that fails, the chain before it stays. The next Issue
// opens the key of the new chain, if it is another one. Issue refuses orders that were prepared under another chain.
func (v *Vendor) Reload(ctx context.Context) error {
	certs, err := v.cfg.Certificates(ctx)
	if err != nil {
		return err
	}
	c, err := certs.build(v.cfg.Now(), 0)
	if err != nil {
		return err
	}
	before := v.identity.Load()
	if before != nil && before.chain.PEM() == c.PEM() {
		return nil
	}
	encoder, err := request.NewEncoder(c.Raw())
	if err != nil {
		return err
	}
	v.identity.Store(&identity{chain: c, encoder: encoder, certificates: bytes.Join(c.Raw(), nil)})
	if before != nil && before.chain.MatchKey(c.Leaf().PublicKey) != nil {
		v.forgetSignatures()
	}
	return nil
}

// Chain returns the vendor's chain.
func (v *Vendor) Chain() *chain.Chain { return v.identity.Load().chain }

// Close closes the key. Signatures in flight end first; no key is opened after it.
func (v *Vendor) Close() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.closed = true
	if v.key != nil {
		v.drop(v.key)
	}
}

// sign makes one verified signature with the key of an identity.
func (v *Vendor) sign(ctx context.Context, id *identity, message []byte, digest crypto.Hash) ([]byte, error) {
	key, err := v.acquire(ctx, id)
	if err != nil {
		return nil, err
	}
	defer v.release(key)
	ctx, cancel := context.WithTimeout(ctx, v.cfg.SignTimeout)
	defer cancel()
	var signature []byte
	err = Observe(ctx, StageSign, func(ctx context.Context) (err error) {
		signature, err = signer.Sign(ctx, key, message, digest)
		return err
	})
	if err == nil {
		now := v.cfg.Now()
		v.signed.Store(&now)
	}
	if lost(err) {
		v.mu.Lock()
		v.drop(key)
		v.mu.Unlock()
	}
	return signature, err
}

// lost returns whether a key that failed with err will fail until it is opened again.
func lost(err error) bool {
	return errors.Is(err, signer.ErrClosed) || errors.Is(err, signer.ErrKeyNotFound) || errors.Is(err, signer.ErrBadKey)
}

// Open opens the key now, unless it is open. Issue does the same when it needs the key.
func (v *Vendor) Open(ctx context.Context) error {
	key, err := v.acquire(ctx, v.identity.Load())
	if err == nil {
		v.release(key)
	}
	return err
}

// acquire returns the open key, which belongs to the identity's certificate; the caller releases it. A failure is not
// remembered: the next call tries again.
func (v *Vendor) acquire(ctx context.Context, id *identity) (*openKey, error) {
	for {
		v.mu.Lock()
		if v.key != nil && id.chain.MatchKey(v.key.Public()) != nil {
			v.drop(v.key) // it was opened for a chain that Reload has replaced
		}
		key, attempt := v.key, v.opening
		switch {
		case v.closed:
			v.mu.Unlock()
			return nil, fmt.Errorf("%w: the vendor was closed", signer.ErrClosed)
		case key != nil:
			key.users++
			v.mu.Unlock()
			return key, nil
		case attempt == nil:
			attempt = &opening{done: make(chan struct{})}
			v.opening = attempt
			v.mu.Unlock()
			return v.open(ctx, id, attempt)
		}
		v.mu.Unlock()
		select {
		case <-attempt.done:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: another caller is opening the key: %w", signer.ErrUnavailable, ctx.Err())
		}
		if attempt.err != nil && !attempt.abandoned {
			return nil, attempt.err
		}
	}
}

// open makes an attempt to open the key, and tells those who wait for it how it ended.
func (v *Vendor) open(ctx context.Context, id *identity, attempt *opening) (*openKey, error) {
	bounded, cancel := context.WithTimeout(ctx, v.cfg.OpenTimeout)
	defer cancel()
	var opened signer.Signer
	err := Observe(bounded, StageOpen, func(ctx context.Context) (err error) {
		opened, err = v.cfg.Key.Open(ctx, signer.OpenOptions{PublicKey: id.chain.Leaf().PublicKey})
		return err
	})
	if err == nil {
		if err = id.chain.MatchKey(opened.Public()); err != nil {
			err = errors.Join(err, opened.Close())
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.opening = nil
	attempt.err, attempt.abandoned = err, ctx.Err() != nil
	close(attempt.done)
	if err != nil {
		return nil, err
	}
	key := &openKey{Signer: opened, users: 1, dropped: v.closed}
	if !v.closed {
		v.key = key
	}
	return key, nil
}

func (v *Vendor) release(key *openKey) {
	v.mu.Lock()
	defer v.mu.Unlock()
	key.users--
	key.closeUnused()
}

// drop closes a key once nobody uses it, and lets the next caller open it again. The caller holds v.mu.
func (v *Vendor) drop(key *openKey) {
	if v.key == key {
		v.key = nil
	}
	key.dropped = true
	key.closeUnused()
}

// closeUnused closes a key that was dropped and has no users.
func (k *openKey) closeUnused() {
	if k.dropped && k.users == 0 {
		_ = k.Close() // it is given up; nobody could use the error
	}
}
