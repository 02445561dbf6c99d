package signertest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"hsmsign/internal/testkit"
	"hsmsign/signer"
)

const secret = "correct horse"

// memory is a correct backend. Its faults make it incorrect.
type memory struct {
	private *rsa.PrivateKey
	faults  faults
}

type faults struct {
	openErr   func(ref signer.Ref, err error) error         // changes the error of Open
	ignoreCtx bool                                          // Open does not look at its context
	sign      func(k *memoryKey, s signing) ([]byte, error) // replaces correct
	public    func(*memoryKey) crypto.PublicKey
	close     func(*memoryKey) error
	shared    bool            // Open returns the same Signer each time
	leak      <-chan struct{} // a goroutine waits for it
}

type memoryKey struct {
	*memory
	ref    signer.Ref
	mu     sync.Mutex
	closed bool
	digest []byte // that a faulty Signer kept
	sig    []byte
	calls  int
}

type signing struct {
	ctx    context.Context
	digest []byte
	opts   crypto.SignerOpts
}

func (m *memory) backend() signer.Backend {
	common := &memoryKey{memory: m}
	return signer.Backend{Open: func(ctx context.Context, ref signer.Ref, _ signer.OpenOptions) (signer.Signer, error) {
		err := m.find(ref)
		if err == nil && !m.faults.ignoreCtx {
			err = ctx.Err()
		}
		if err != nil {
			err = wrap(ref, err)
			if m.faults.openErr != nil {
				err = m.faults.openErr(ref, err)
			}
		}
		if err != nil {
			return nil, err
		}
		if m.faults.leak != nil {
			go func() { <-m.faults.leak }()
		}
		if m.faults.shared {
			return common, nil
		}
		return &memoryKey{memory: m, ref: ref}, nil
	}}
}

func wrap(ref signer.Ref, err error) error { return &signer.Error{Op: "do", Ref: ref, Err: err} }

func (m *memory) find(ref signer.Ref) error {
	switch {
	case ref.CheckQuery("pin") != nil:
		return ref.CheckQuery("pin")
	case ref.Path == "missing":
		return signer.ErrKeyNotFound
	case ref.Path == "several":
		return fmt.Errorf("%w: first, second", signer.ErrAmbiguousKey)
	}
	return nil
}

func (k *memoryKey) Public() crypto.PublicKey {
	if k.faults.public != nil {
		return k.faults.public(k)
	}
	return k.private.Public()
}

func (k *memoryKey) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.SignContext(context.Background(), digest, opts)
}

func (k *memoryKey) SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if k.faults.sign != nil {
		return k.faults.sign(k, signing{ctx, digest, opts})
	}
	return k.correct(ctx, digest, opts)
}

func (k *memoryKey) correct(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	k.mu.Lock()
	closed := k.closed
	k.mu.Unlock()
	h, err := signer.CheckDigest(digest, opts, crypto.SHA256, crypto.SHA1)
	switch {
	case closed:
		err = signer.ErrClosed
	case err == nil:
		err = ctx.Err()
	}
	if err != nil {
		return nil, wrap(k.ref, err)
	}
	return rsa.SignPKCS1v15(nil, k.private, h, digest)
}

func (k *memoryKey) Close() error {
	if k.faults.close != nil {
		return k.faults.close(k)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.closed = true
	return nil
}

func fixture(m *memory) Fixture {
	return Fixture{
		Backend: m.backend(), Ref: "memory:key?pin=" + strings.ReplaceAll(secret, " ", "%20"), Public: &m.private.PublicKey,
		Missing: "memory:missing", Ambiguous: "memory:several", Matches: []string{"first", "second"},
		Secrets: []string{secret}, limit: 20 * time.Second,
	}
}

func TestGoodBackend(t *testing.T) {
	Run(t, fixture(&memory{private: testkit.GoldenKey(t)}))
}

// badBackend breaks one rule.
type badBackend struct {
	fault  string
	check  string // that must find the fault
	want   string // in the problem
	faults faults
	limit  time.Duration // of a call; zero: the fixture's
}

// properly signs correctly: a fault may affect some calls only.
func properly(k *memoryKey, s signing) ([]byte, error) { return k.correct(s.ctx, s.digest, s.opts) }

// wrongSignatures use another key or do not check the request.
func wrongSignatures(other *rsa.PrivateKey) []badBackend {
	otherKey := func(_ *memoryKey, s signing) ([]byte, error) {
		return rsa.SignPKCS1v15(nil, other, s.opts.HashFunc(), s.digest)
	}
	return []badBackend{
		{fault: "another public key", check: "public key", want: "not that of the fixture",
			faults: faults{public: func(*memoryKey) crypto.PublicKey { return other.Public() }}},
		{fault: "signs with another key", check: "signature", want: "does not verify", faults: faults{sign: otherKey}},
		{fault: "another signature on the second call", check: "signature", want: "does not verify",
			faults: faults{sign: func(k *memoryKey, s signing) ([]byte, error) {
				sig, err := properly(k, s)
				if k.calls++; k.calls > 1 && err == nil {
					sig[len(sig)-1] ^= 1
				}
				return sig, err
			}}},
		{fault: "signs any length and hash", check: "unsupported", want: "no error",
			faults: faults{sign: func(k *memoryKey, _ signing) ([]byte, error) {
				return rsa.SignPKCS1v15(nil, k.private, crypto.SHA256, make([]byte, 32))
			}}},
		{fault: "accepts PSS options as a hash", check: "unsupported", want: "RSASSA-PSS: no error",
			faults: faults{sign: func(k *memoryKey, s signing) ([]byte, error) {
				if pss, ok := s.opts.(*rsa.PSSOptions); ok {
					s.opts = pss.Hash
				}
				return properly(k, s)
			}}},
		{fault: "signs with another key", check: "certificate request", want: "certificate request",
			faults: faults{sign: otherKey}},
		{fault: "signs with another key", check: "signer.Sign", want: "bad signature",
			faults: faults{sign: otherKey}},
	}
}

// ignoreContext do not end when they must. hang blocks until the test is over.
func ignoreContext(hang <-chan struct{}) []badBackend {
	noCtx := func(k *memoryKey, s signing) ([]byte, error) {
		return k.correct(context.WithoutCancel(s.ctx), s.digest, s.opts)
	}
	return []badBackend{
		{fault: "ignores the context", check: "context ended before", want: "sign: no error", faults: faults{sign: noCtx}},
		{fault: "open ignores the context", check: "context ended before", want: "open: no error", faults: faults{ignoreCtx: true}},
		{fault: "another error for the context", check: "context ended before", want: "does not wrap",
			faults: faults{sign: func(k *memoryKey, s signing) ([]byte, error) {
				if s.ctx.Err() != nil {
					return nil, wrap(k.ref, signer.ErrUnavailable)
				}
				return properly(k, s)
			}}},
		{fault: "slow to notice the context", check: "context ended before", want: "to notice it",
			faults: faults{sign: func(k *memoryKey, s signing) ([]byte, error) {
				time.Sleep(atOnce)
				return properly(k, s)
			}}},
		{fault: "ignores the context", check: "cancelled in flight", want: "after the end succeeded", faults: faults{sign: noCtx}},
		{fault: "ignores the context", check: "deadline in flight", want: "after the end succeeded", faults: faults{sign: noCtx}},
		{fault: "hangs", check: "deadline in flight", want: "no answer within", limit: 300 * time.Millisecond,
			faults: faults{sign: func(*memoryKey, signing) ([]byte, error) { <-hang; return nil, nil }}},
		{fault: "signs after close", check: "closed in flight", want: "after the end succeeded",
			faults: faults{close: func(*memoryKey) error { return nil }}},
	}
}

// keepBuffers keep or change what belongs to the caller, or keep state.
func keepBuffers(hang <-chan struct{}) []badBackend {
	return []badBackend{
		{fault: "mixes up concurrent calls", check: "concurrent", want: "does not verify",
			faults: faults{sign: func(k *memoryKey, s signing) ([]byte, error) {
				k.mu.Lock()
				k.digest = bytes.Clone(s.digest)
				k.mu.Unlock()
				time.Sleep(time.Millisecond)
				k.mu.Lock()
				s.digest = k.digest
				k.mu.Unlock()
				return properly(k, s)
			}}},
		{fault: "changes the digest", check: "digest", want: "changed it",
			faults: faults{sign: func(k *memoryKey, s signing) ([]byte, error) {
				defer clear(s.digest)
				return properly(k, s)
			}}},
		{fault: "keeps the digest", check: "digest", want: "second use of a buffer",
			faults: faults{sign: func(k *memoryKey, s signing) ([]byte, error) {
				if k.digest != nil && bytes.Equal(k.digest, s.digest) {
					return k.sig, nil
				}
				var err error
				k.digest = s.digest
				k.sig, err = properly(k, s)
				return k.sig, err
			}}},
		{fault: "keeps the signature", check: "digest", want: "cleared a signature",
			faults: faults{sign: func(k *memoryKey, s signing) ([]byte, error) {
				if bytes.Equal(k.digest, s.digest) {
					return k.sig, nil
				}
				sig, err := properly(k, s)
				if k.digest == nil {
					k.digest, k.sig = bytes.Clone(s.digest), sig
				}
				return sig, err
			}}},
		{fault: "an error on the second close", check: "close", want: "close: already",
			faults: faults{close: func(k *memoryKey) error {
				if k.closed {
					return errors.New("already")
				}
				k.closed = true
				return nil
			}}},
		{fault: "one closes all", check: "close", want: "another Signer", faults: faults{shared: true}},
		{fault: "leaves a goroutine", check: "public key", want: "goroutines outlive", faults: faults{leak: hang}},
	}
}

// wrongAnswers open keys that they must not open, or return wrong errors.
func wrongAnswers() []badBackend {
	return []badBackend{
		{fault: "another family", check: "missing key", want: "does not wrap",
			faults: faults{openErr: func(ref signer.Ref, _ error) error { return wrap(ref, signer.ErrBadKey) }}},
		{fault: "a bare error", check: "missing key", want: "is not a *signer.Error",
			faults: faults{openErr: func(_ signer.Ref, err error) error { return errors.Unwrap(err) }}},
		{fault: "shows the secret", check: "context ended before", want: "contains a secret",
			faults: faults{openErr: func(ref signer.Ref, err error) error {
				pin, _ := ref.Query("pin")
				return wrap(ref, fmt.Errorf("%w with pin %s", errors.Unwrap(err), pin))
			}}},
		{fault: "does not list the matches", check: "ambiguous key", want: "does not list",
			faults: faults{openErr: func(ref signer.Ref, _ error) error { return wrap(ref, signer.ErrAmbiguousKey) }}},
		{fault: "opens the first of several", check: "ambiguous key", want: "no error",
			faults: faults{openErr: func(signer.Ref, error) error { return nil }}},
		{fault: "accepts any attribute", check: "unknown attribute", want: "no error",
			faults: faults{openErr: func(signer.Ref, error) error { return nil }}},
	}
}

// TestBadBackends: the check of each rule detects a backend that breaks it.
func TestBadBackends(t *testing.T) {
	private := testkit.GoldenKey(t)
	other := testkit.Key("other")
	hang := make(chan struct{})
	defer close(hang)
	tests := slices.Concat(wrongSignatures(other), ignoreContext(hang), keepBuffers(hang), wrongAnswers())
	untested := map[string]bool{}
	for _, c := range checks() {
		untested[c.name] = true
	}
	for _, tt := range tests {
		delete(untested, tt.check)
		t.Run(tt.check+"/"+tt.fault, func(t *testing.T) {
			all := checks()
			i := slices.IndexFunc(all, func(c check) bool { return c.name == tt.check })
			if i < 0 {
				t.Fatalf("there is no check %q", tt.check)
			}
			f := fixture(&memory{private: private, faults: tt.faults})
			if tt.limit != 0 {
				f.limit = tt.limit
			}
			found := strings.Join(all[i].problems(f), "\n")
			if !strings.Contains(found, tt.want) {
				t.Errorf("found %q, want %q", found, tt.want)
			}
		})
	}
	for name := range untested {
		t.Errorf("no bad backend for check %q", name)
	}
}
