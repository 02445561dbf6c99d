package kms

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
	"hsmsign/signer"
	"hsmsign/signer/signertest"
)

// memory is a Store over the golden key. A nil sign signs.
type memory struct {
	sign   func(ctx context.Context, digest []byte) ([]byte, error)
	closed atomic.Int64
}

func (m *memory) Sign(ctx context.Context, digest []byte) ([]byte, error) { return m.sign(ctx, digest) }
func (m *memory) Close() error                                            { m.closed.Add(1); return nil }

func golden(t *testing.T) *memory {
	private := testkit.GoldenKey(t)
	return &memory{sign: func(ctx context.Context, digest []byte) ([]byte, error) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		return rsa.SignPKCS1v15(nil, private, crypto.SHA256, digest)
	}}
}

// TestKey: a Key passes the conformance suite.
func TestKey(t *testing.T) {
	public := &testkit.GoldenKey(t).PublicKey
	signertest.Run(t, signertest.Fixture{
		Backend: signer.Backend{Open: func(ctx context.Context, ref signer.Ref, _ signer.OpenOptions) (signer.Signer, error) {
			err := cmp.Or(ctx.Err(), ref.CheckQuery())
			if err == nil && ref.Path == "missing" {
				err = signer.ErrKeyNotFound
			}
			if err != nil {
				return nil, &signer.Error{Op: "open", Ref: ref, Err: err}
			}
			return NewKey(ref, public, true, golden(t)), nil
		}},
		Ref: "memory:key", Public: public, Missing: "memory:missing", Hashes: []crypto.Hash{crypto.SHA256},
	})
}

// TestSHA1: only a Key that is WithSHA1 signs SHA-1 digests, also the first one that proves the key.
func TestSHA1(t *testing.T) {
	private := testkit.GoldenKey(t)
	store := &memory{sign: func(_ context.Context, digest []byte) ([]byte, error) {
		return rsa.SignPKCS1v15(nil, private, crypto.SHA1, digest)
	}}
	digest := make([]byte, 20)
	testkit.Value(NewKey(signer.Ref{}, &private.PublicKey, false, store).WithSHA1().SignContext(t.Context(), digest, crypto.SHA1))(t)
	_, err := NewKey(signer.Ref{}, &private.PublicKey, false, store).SignContext(t.Context(), digest, crypto.SHA1)
	if !errors.Is(err, signer.ErrUnsupported) || !strings.Contains(err.Error(), "signs SHA-256 digests only") {
		t.Errorf("%v", err)
	}
}

// TestProof: a signature that does not verify with the certificate's key is not returned. After the first one that
// does, the Key verifies no more.
func TestProof(t *testing.T) {
	digest := make([]byte, 32)
	other := NewKey(signer.Ref{}, &testkit.Key("other").PublicKey, false, golden(t))
	for range 2 {
		sig, err := other.SignContext(t.Context(), digest, crypto.SHA256)
		if !errors.Is(err, signer.ErrBadKey) || fault.Hint(err) == "" || sig != nil {
			t.Errorf("%d bytes, %v (%s)", len(sig), err, fault.Hint(err))
		}
	}
	store := golden(t)
	good, wrong := store.sign, false
	store.sign = func(ctx context.Context, digest []byte) ([]byte, error) {
		sig, err := good(ctx, digest)
		if wrong && err == nil {
			sig[0] ^= 1
		}
		return sig, err
	}
	key := NewKey(signer.Ref{}, &testkit.GoldenKey(t).PublicKey, false, store)
	for range 2 {
		testkit.Value(key.SignContext(t.Context(), digest, crypto.SHA256))(t)
		wrong = true // which signer.Sign detects
	}
	if _, err := signer.Sign(t.Context(), key, []byte("message"), crypto.SHA256); !errors.Is(err, signer.ErrBadSignature) {
		t.Errorf("got %v", err)
	}
}

// TestKeyRefusesOtherHashes: the store is not asked.
func TestKeyRefusesOtherHashes(t *testing.T) {
	key := NewKey(signer.Ref{}, &testkit.GoldenKey(t).PublicKey, true, nil)
	_, err := key.SignContext(t.Context(), make([]byte, 20), crypto.SHA1)
	if !errors.Is(err, signer.ErrUnsupported) || fault.Hint(err) != "sign with SHA-256" {
		t.Errorf("%v (%s)", err, fault.Hint(err))
	}
}

// TestClose: it ends a call that waits for its next attempt, and releases the connections again after that call.
func TestClose(t *testing.T) {
	store := &memory{}
	c := New(Policy{RetryDelay: time.Minute, Timeout: time.Hour}, nil)
	waits := make(chan struct{})
	store.sign = func(ctx context.Context, _ []byte) ([]byte, error) {
		return Do(ctx, c, func(context.Context) ([]byte, error) {
			close(waits)
			return nil, ErrThrottled
		})
	}
	key := NewKey(signer.Ref{}, &testkit.GoldenKey(t).PublicKey, true, store)
	ended := make(chan error)
	go func() {
		_, err := key.Sign(nil, make([]byte, 32), crypto.SHA256)
		ended <- err
	}()
	<-waits
	testkit.OK(t, key.Close())
	if err := <-ended; !errors.Is(err, signer.ErrClosed) || store.closed.Load() != 2 {
		t.Errorf("%v; closed %d times", err, store.closed.Load())
	}
}

func TestPublicKey(t *testing.T) {
	public := &testkit.GoldenKey(t).PublicKey
	for _, tt := range []struct {
		in   crypto.PublicKey
		want *rsa.PublicKey
		err  error
	}{{nil, nil, nil}, {public, public, nil}, {ed25519.PublicKey{}, nil, signer.ErrUnsupported}} {
		if got, err := PublicKey(signer.OpenOptions{PublicKey: tt.in}); got != tt.want || !errors.Is(err, tt.err) {
			t.Errorf("%T: %v, %v", tt.in, got, err)
		}
	}
}

// Stats shows the breaker that is nearest to closed, and the attempts in flight of all regions.
func TestStats(t *testing.T) {
	if stats := NewKey(signer.Ref{}, nil, true, golden(t)).Stats(); stats != (signer.Stats{}) {
		t.Errorf("without a network: %+v", stats)
	}
	policy := Policy{BreakerThreshold: 1, BreakerCooldown: 50 * time.Millisecond, Timeout: time.Second, AttemptTimeout: time.Second}
	callers := []*Caller{New(policy, nil), New(policy, nil)}
	k := NewKey(signer.Ref{}, nil, true, golden(t), callers...)
	fails := func(c *Caller) {
		_, _ = Once(t.Context(), c, func(context.Context) (int, error) {
			if stats := k.Stats(); stats.InUse != 1 {
				t.Errorf("in a call: %+v", stats)
			}
			return 0, signer.ErrUnavailable
		})
	}
	for i, want := range []string{"closed", "closed", "open"} {
		if i > 0 {
			fails(callers[i-1])
		}
		if stats := k.Stats(); stats.Breaker != want || stats.InUse != 0 {
			t.Errorf("%d breakers are open: %+v, want %s", i, stats, want)
		}
	}
	time.Sleep(60 * time.Millisecond)
	if stats := k.Stats(); stats.Breaker != "half-open" {
		t.Errorf("after the cooldown: %+v", stats)
	}
}
