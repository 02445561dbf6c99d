package kms

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
	"hsmsign/signer"
	"hsmsign/signer/signertest"
)

// memory is a Store over a key in memory.
func memory(t *testing.T, released *atomic.Int64) Store {
	key := testkit.GoldenKey(t)
	return Store{
		Sign: func(ctx context.Context, digest []byte) ([]byte, error) {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			return rsa.SignPKCS1v15(nil, key, crypto.SHA256, digest)
		},
		Release: func() {
			if released != nil {
				released.Add(1)
			}
		},
	}
}

// TestKey: a Key passes the conformance suite.
func TestKey(t *testing.T) {
	public := &testkit.GoldenKey(t).PublicKey
	signertest.Run(t, signertest.Fixture{
		Backend: signer.Backend{Open: func(ctx context.Context, ref signer.Ref, _ signer.OpenOptions) (signer.Signer, error) {
			return Run(ctx, "open", ref, func() (io.Closer, error) { return io.NopCloser(nil), ref.CheckQuery() }, func(io.Closer) (signer.Signer, error) {
				if ref.Path == "missing" {
					return nil, signer.ErrKeyNotFound
				}
				return NewKey(ref, public, true, memory(t, nil)), nil
			})
		}},
		Ref: "memory:key", Public: public, Missing: "memory:missing", Hashes: []crypto.Hash{crypto.SHA256},
	})
}

// TestProof: a signature that does not verify with the certificate's key is not returned. After the first one that
// does, the Key verifies no more.
func TestProof(t *testing.T) {
	digest := make([]byte, 32)
	other := NewKey(signer.Ref{}, &testkit.Key("other").PublicKey, false, memory(t, nil))
	for range 2 {
		sig, err := other.SignContext(t.Context(), digest, crypto.SHA256)
		if !errors.Is(err, signer.ErrBadKey) || fault.Hint(err) == "" || sig != nil {
			t.Errorf("%d bytes, %v (%s)", len(sig), err, fault.Hint(err))
		}
	}
	store := memory(t, nil)
	good, wrong := store.Sign, false
	store.Sign = func(ctx context.Context, digest []byte) ([]byte, error) {
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
	key := NewKey(signer.Ref{}, &testkit.GoldenKey(t).PublicKey, true, Store{})
	_, err := key.SignContext(t.Context(), make([]byte, 20), crypto.SHA1)
	if !errors.Is(err, signer.ErrUnsupported) || fault.Hint(err) != "sign with SHA-256" {
		t.Errorf("%v (%s)", err, fault.Hint(err))
	}
}

// TestClose: it ends a call that waits for its next attempt, and releases the connections again after that call.
func TestClose(t *testing.T) {
	var released atomic.Int64
	store := memory(t, &released)
	c := New(Policy{RetryDelay: time.Minute, Timeout: time.Hour}, nil)
	waits := make(chan struct{})
	store.Sign = func(ctx context.Context, _ []byte) ([]byte, error) {
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
	if err := <-ended; !errors.Is(err, signer.ErrClosed) || released.Load() != 2 {
		t.Errorf("%v; released %d times", err, released.Load())
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

type closer struct{ closed int }

func (c *closer) Close() error { c.closed++; return nil }

// TestRun: a session is closed if the work fails, and an error names the operation.
func TestRun(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tt := range []struct {
		name             string
		ctx              context.Context
		connect, work    error
		connects, closed int
		want             error
	}{
		{"works", t.Context(), nil, nil, 1, 0, nil},
		{"ended", ended, nil, nil, 0, 0, context.Canceled},
		{"cannot connect", t.Context(), signer.ErrAuth, nil, 1, 0, signer.ErrAuth},
		{"fails", t.Context(), nil, signer.ErrBadKey, 1, 1, signer.ErrBadKey},
	} {
		connects, session := 0, &closer{}
		value, err := Run(tt.ctx, "open", signer.Ref{Scheme: "kms", Path: "key"},
			func() (*closer, error) { connects++; return session, tt.connect },
			func(*closer) (int, error) { return 1, tt.work })
		if !errors.Is(err, tt.want) || connects != tt.connects || session.closed != tt.closed || (value == 1) != (tt.want == nil) {
			t.Errorf("%s: %d, %v; connected %d times, closed %d times", tt.name, value, err, connects, session.closed)
		}
		if e, ok := errors.AsType[*signer.Error](err); tt.want != nil && (!ok || e.Op != "open" || e.Ref.Path != "key") {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}
