//go:build linux

package isolate

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/internal/signerkit"
	"hsmsign/internal/testkit"
	"hsmsign/signer"
	"hsmsign/signer/signertest"
)

var digest = bytes.Repeat([]byte{0xab}, 32)

func TestConformance(t *testing.T) {
	s := newStore(t)
	signertest.Run(t, signertest.Fixture{
		Backend: signer.Backend{Open: func(ctx context.Context, ref signer.Ref, open signer.OpenOptions) (signer.Signer, error) {
			k, err := Open(ctx, ref, open, config())
			if err != nil {
				return nil, err
			}
			return k, nil
		}},
		Ref: "test:" + s.dir, Missing: "test:/none", Public: &testkit.GoldenKey(t).PublicKey, Hashes: hashes(),
	})
}

// The worker gets the exact reference, also if its text is redacted for people, with the wanted public key and the number
// of lanes. A warning is passed on once.
func TestExactReference(t *testing.T) {
	s := newStore(t)
	pub := &testkit.GoldenKey(t).PublicKey
	for _, query := range []string{"?echo=&pin-value=4711&passphrase=s%26 e%25", "?module-path=/lib/1%3B2&echo=exec:/x --pin-value=2"} {
		ref := testkit.Value(signer.ParseRef("test:" + s.dir + query))(t)
		var warned []string
		cfg := config()
		cfg.Warn = func(text string) { warned = append(warned, text) }
		k := testkit.Value(Open(t.Context(), ref, signer.OpenOptions{PublicKey: pub}, cfg))(t)
		kill(t, k.pid(), syscall.SIGKILL)
		mustSign(t, k)
		if want := ref.Encode() + " 4 true"; len(warned) != 1 || warned[0] != want || strings.Contains(want, "REDACTED") {
			t.Errorf("the worker got %q; want %q", warned, want)
		}
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	}
	// What the worker must not learn is removed from Config.Ref; errors have the parent's reference.
	cfg := config()
	cfg.Ref = signer.Ref{Scheme: "test", Path: "/none"}
	_, err := s.open(t.Context(), t, "?pin-value=4711", cfg)
	signerkit.Refused(t, err, signer.ErrKeyNotFound, "test:"+s.dir+"?pin-value=REDACTED", "/none/key")
}

// The parent answers for secrets through Login, which runs each start; a secret that is refused starts no worker again.
func TestSecrets(t *testing.T) {
	s := newStore(t)
	answer, starts := "yes", 0
	errAway := errors.New("went for lunch")
	var latched, refusals error
	cfg := config()
	cfg.Refused = func(err error) { refusals = err }
	cfg.Login = func(ctx context.Context, start func(Secret) error) error {
		if latched != nil {
			return &signer.Error{Op: "log in", Err: latched}
		}
		starts++
		err := start(func(_ context.Context, question string) ([]byte, error) {
			if question != "the\x00word" {
				t.Errorf("asked for %q", question)
			}
			if answer == "" {
				return nil, fmt.Errorf("%w: %w", signer.ErrAuth, errAway)
			}
			return []byte(answer), nil
		})
		if errors.Is(err, ErrSecretRefused) {
			latched = inner(err)
		}
		return err
	}
	const query = "?ask=the%00word"
	k := testkit.Value(s.open(t.Context(), t, query, cfg))(t)
	defer func() { _ = k.Close() }()
	s.fault(t, "latch")
	_, err := k.Sign(nil, digest, crypto.SHA256)
	signerkit.Refused(t, err, signer.ErrAuth)
	if !errors.Is(refusals, ErrSecretRefused) {
		t.Errorf("Refused was called with %v", refusals)
	}
	sent := k.current.sent
	s.fault(t, "sign-crash", "sign-crash-too")
	_, err = k.Sign(nil, digest, crypto.SHA256)
	signerkit.Refused(t, err, signer.ErrUnavailable, "the secret is REDACTED")
	if string(sent) != "\x00\x00\x00" {
		t.Errorf("the secret of a dead worker is kept: %q", sent)
	}

	answer = "" // the error of the parent is kept
	_, err = s.open(t.Context(), t, query, cfg)
	signerkit.Refused(t, err, errAway)
	answer = "no"
	testkit.Eventually(t, "the refusal", func() bool {
		_, err = k.Sign(nil, digest, crypto.SHA256)
		return errors.Is(err, ErrSecretRefused)
	})
	before := starts
	_, err = k.Sign(nil, digest, crypto.SHA256)
	signerkit.Refused(t, err, ErrSecretRefused)
	if starts != before || strings.Contains(err.Error(), "may be started") {
		t.Errorf("%d starts after the refusal; %v", starts-before, err)
	}
	_, err = s.open(t.Context(), t, query, config()) // without Login
	signerkit.Refused(t, err, signer.ErrAuth, "has no secret")
}

// A worker that dies, idle or during a signature, is replaced, and the signature is made once more.
func TestWorkerDies(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSEGV} {
		t.Run(sig.String(), func(t *testing.T) {
			s := newStore(t)
			k := s.mustOpen(t)
			for range 3 {
				before := k.pid()
				kill(t, before, sig)
				testkit.Eventually(t, "end", func() bool { return !k.current.alive() })
				mustSign(t, k)
				if now := k.pid(); now == before {
					t.Errorf("the same worker %d signs after %v", now, sig)
				}
			}
			if got := k.Stats(); got != (signer.Stats{Restarts: 3}) {
				t.Errorf("%+v; want 3 restarts", got)
			}
			before := s.calls("sign")
			s.fault(t, "sign-hang")
			done := make(chan struct{})
			go func() {
				defer close(done)
				mustSign(t, k)
			}()
			testkit.Eventually(t, "the signature", func() bool { return s.calls("sign") == before+1 })
			kill(t, k.pid(), sig)
			<-done
			if n := s.calls("sign") - before; n != 2 {
				t.Errorf("%d signatures; want the one that was lost and one more", n)
			}
		})
	}
}

// A second crash in a row costs the signature, and a pause. An error of the key does not cost the worker.
func TestWorkerCrashes(t *testing.T) {
	s := newStore(t)
	k := s.mustOpen(t)
	s.fault(t, "sign-crash", "sign-crash-too")
	_, err := k.Sign(nil, digest, crypto.SHA256)
	signerkit.Refused(t, err, signer.ErrUnavailable, "the worker process ended", "SIGSEGV: segmentation violation")
	if strings.Contains(err.Error(), "goroutine") || strings.Contains(err.Error(), "rax") {
		t.Errorf("the error contains stacks or registers: %v", err)
	}
	for err != nil { // until the back-off has ended
		if _, err = k.Sign(nil, digest, crypto.SHA256); err != nil {
			signerkit.Refused(t, err, signer.ErrUnavailable, "may be started at "+time.Now().Format("2006-"), "SIGSEGV")
		}
	}
	if n := s.calls("sign"); n != 3 {
		t.Errorf("%d signatures; want 3: none during the back-off", n)
	}
	if since := time.Since(k.notUntil); since > time.Hour {
		t.Errorf("the back-off ended %v ago", since)
	}
	before := k.pid()
	s.fault(t, "refuse")
	_, err = k.Sign(nil, digest, crypto.SHA256)
	signerkit.Refused(t, err, signer.ErrBadKey, "not permitted")
	s.fault(t, "short")
	_, err = k.Sign(nil, digest, crypto.SHA256)
	signerkit.Refused(t, err, signer.ErrBadSignature, "255 bytes; the modulus has 256")
	_, err = k.SignMessageContext(t.Context(), make([]byte, maxSigned+1), crypto.SHA256)
	signerkit.Refused(t, err, signer.ErrUnsupported, "131009 bytes")
	if _, err := signer.Sign(t.Context(), k, make([]byte, maxSigned), crypto.SHA256); err != nil {
		t.Error(err)
	}
	if k.pid() != before {
		t.Error("an answer of the key costs the worker")
	}
}

// The pause doubles up to its limit, and a signature ends it.
func TestBackOff(t *testing.T) {
	k := newStore(t).mustOpen(t)
	var waits []time.Duration
	k.mu.Lock()
	for range 10 {
		now := time.Now()
		k.lose(errHung(), now)
		waits = append(waits, k.notUntil.Sub(now)/time.Millisecond)
	}
	k.mu.Unlock()
	if got, want := fmt.Sprintf("%d", waits), "[0 100 200 400 800 1600 3200 6400 10000 10000]"; got != want {
		t.Errorf("pauses %s ms; want %s", got, want)
	}
	mustSign(t, k)
	kill(t, k.pid(), syscall.SIGKILL)
	mustSign(t, k) // at once
}

// A worker that hangs is killed some time after the deadline, and other callers are served by the next one.
func TestWorkerHangs(t *testing.T) {
	k := newStore(t).mustOpen(t)
	k.grace = 200 * time.Millisecond
	before := k.pid()
	kill(t, before, syscall.SIGSTOP)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	var others sync.WaitGroup
	for range cap(k.free) - 1 {
		others.Go(func() { mustSign(t, k) })
	}
	_, err := k.SignContext(ctx, digest, crypto.SHA256)
	signerkit.Refused(t, err, context.DeadlineExceeded)
	signerkit.Refused(t, err, signer.ErrUnavailable)
	mustSign(t, k)
	others.Wait()
	if k.pid() == before {
		t.Error("the worker that hangs is still used")
	}

	k.limit = 100 * time.Millisecond // for a caller without a deadline
	kill(t, k.pid(), syscall.SIGSTOP)
	_, err = k.Sign(nil, digest, crypto.SHA256)
	signerkit.Refused(t, err, signer.ErrUnavailable, "did not answer in time")
	if fault.Hint(err) == "" {
		t.Errorf("%v has no hint", err)
	}
	k.limit = defLimit
	mustSign(t, k)

	// A caller that leaves, or whose deadline is over, does not cost a worker that answers soon.
	k.grace = 20 * time.Second
	before = k.pid()
	kill(t, before, syscall.SIGSTOP)
	ctx, cancel = context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = k.SignContext(ctx, digest, crypto.SHA256)
	signerkit.Refused(t, err, context.DeadlineExceeded)
	gone, cancel := context.WithCancel(t.Context())
	failed := make(chan error)
	go func() {
		_, err := k.SignContext(gone, digest, crypto.SHA256)
		failed <- err
	}()
	testkit.Eventually(t, "two calls in flight", func() bool { return len(k.free) == cap(k.free)-2 })
	cancel()
	signerkit.Refused(t, <-failed, context.Canceled)
	_, err = k.SignContext(gone, digest, crypto.SHA256)
	signerkit.Refused(t, err, context.Canceled)
	kill(t, before, syscall.SIGCONT)
	mustSign(t, k)
	testkit.Eventually(t, "the end of the abandoned calls", func() bool { return len(k.free) == cap(k.free) })
	if k.pid() != before {
		t.Error("a caller that left costs the worker")
	}
}

// Close ends a worker that hangs, and the callers get an error. A worker that works closes its key.
func TestClose(t *testing.T) {
	s := newStore(t)
	k := s.mustOpen(t)
	mustSign(t, k)
	if err := k.Close(); err != nil {
		t.Error(err)
	}
	if n := s.calls("close"); n != 1 {
		t.Errorf("the worker closed its key %d times; want once", n)
	}
	_, err := k.Sign(nil, digest, crypto.SHA256)
	signerkit.Refused(t, err, signer.ErrClosed)

	k = s.mustOpen(t)
	k.closeWait = 300 * time.Millisecond
	pid := k.pid()
	kill(t, pid, syscall.SIGSTOP)
	done := make(chan error)
	go func() {
		_, err := k.SignContext(context.Background(), digest, crypto.SHA256)
		done <- err
	}()
	testkit.Eventually(t, "a call in flight", func() bool { return len(k.free) < cap(k.free) })
	if err := k.Close(); err != nil {
		t.Error(err)
	}
	signerkit.Refused(t, <-done, signer.ErrClosed)
	if s := state(pid); s != "" {
		t.Errorf("the worker still exists, in state %s", s)
	}
}
