// Package signertest is the conformance suite of the key stores: what every signer.Backend must do. The test of a backend
// is a Fixture and a call of Run; see the example.
//
// Run has one subtest for each rule, and each of them opens the key again. It watches the goroutines of the whole
// process, so a test that calls it must not run in parallel with others.
package signertest

import (
	"context"
	"crypto"
	"crypto/rsa"
	_ "crypto/sha512" // a backend may list SHA-384 and SHA-512
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"hsmsign/fault"
	"hsmsign/signer"
)

// The time limits of one call. A slow token makes ten signatures per second, and the suite queues a few hundred.
const (
	callLimit = time.Minute     // any call
	atOnce    = 2 * time.Second // a call whose context ended before it began
)

// Fixture is a backend with a key to test it on. Backend, Ref, Public and Missing are required.
type Fixture struct {
	Backend signer.Backend
	Ref     string         // names the test key
	Public  *rsa.PublicKey // its public key
	Missing string         // a well-formed reference to a key that does not exist

	// Ambiguous is a reference that matches several keys; "": the backend has no such references. The error must contain
	// all texts in Matches, at least two.
	Ambiguous string
	Matches   []string

	// Hashes are all hashes that the key supports; nil: SHA-256 and SHA-1.
	Hashes []crypto.Hash
	// Secrets (PIN, passphrase, ...) must not appear in an error or a hint.
	Secrets []string
	// Leaks are the goroutines that may outlive a Signer, such as the thread of a loaded module.
	Leaks []goleak.Option

	limit time.Duration // of a call; zero: callLimit
}

// Run checks every rule, each in a subtest.
func Run(t *testing.T, f Fixture) {
	t.Helper()
	for _, c := range checks() {
		t.Run(c.name, func(t *testing.T) {
			for _, problem := range c.problems(f) {
				t.Error(problem)
			}
		})
	}
}

// check is one rule: it uses the backend through the probe, which collects the problems.
type check struct {
	name string
	run  func(p *probe)
}

// problems runs the check and returns what it found. After every check no goroutine may be left.
func (c check) problems(f Fixture) []string {
	if f.Hashes == nil {
		f.Hashes = []crypto.Hash{crypto.SHA256, crypto.SHA1}
	}
	if f.limit == 0 {
		f.limit = callLimit
	}
	leaks := append([]goleak.Option{goleak.IgnoreCurrent()}, f.Leaks...)
	p := &probe{Fixture: f}
	c.run(p)
	for _, key := range p.opened {
		if err := key.Close(); err != nil {
			p.failf("close: %v", err)
		}
	}
	if err := goleak.Find(leaks...); err != nil {
		p.failf("goroutines outlive the signer: %v", err)
	}
	return p.found
}

// probe makes calls with a time limit to a backend and collects the problems. Safe for concurrent use.
type probe struct {
	Fixture
	mu     sync.Mutex
	found  []string
	opened []signer.Signer
}

func (p *probe) failf(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if text := fmt.Sprintf(format, args...); !slices.Contains(p.found, text) {
		p.found = append(p.found, text)
	}
}

// open opens a reference within the limit. The Signer is closed at the end of the check.
func (p *probe) open(ctx context.Context, reference string) (signer.Signer, error) {
	ref, err := signer.ParseRef(reference)
	if err != nil {
		return nil, fmt.Errorf("the fixture's reference %q: %w", reference, err)
	}
	key, err := within(p.limit, func() (signer.Signer, error) { return p.Backend.Open(ctx, ref, signer.OpenOptions{}) })
	if err == nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.opened = append(p.opened, key)
	}
	return key, err
}

// key opens the test key. nil: it failed, which has been recorded.
func (p *probe) key() signer.Signer {
	key, err := p.open(context.Background(), p.Ref)
	if err != nil {
		p.failf("open %q: %v", p.Ref, err)
		return nil
	}
	return key
}

func (p *probe) sign(ctx context.Context, key signer.Signer, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return within(p.limit, func() ([]byte, error) { return key.SignContext(ctx, digest, opts) })
}

// within waits for f up to the limit: a backend that hangs must fail its test, not block it.
func within[T any](limit time.Duration, f func() (T, error)) (T, error) {
	type answer struct {
		value T
		err   error
	}
	answers := make(chan answer, 1)
	go func() {
		value, err := f()
		answers <- answer{value, err}
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case a := <-answers:
		return a.value, a.err
	case <-timer.C:
		var zero T
		return zero, fmt.Errorf("no answer within %v", limit)
	}
}

// signed records a signature that is missing or does not verify.
func (p *probe) signed(what string, h crypto.Hash, digest, sig []byte, err error) bool {
	if err != nil {
		p.failf("%s: %v", what, err)
		return false
	}
	if err := rsa.VerifyPKCS1v15(p.Public, h, digest, sig); err != nil {
		p.failf("%s: the signature of %d bytes does not verify: %v", what, len(sig), err)
		return false
	}
	return true
}

// refused records an error that is missing, of the wrong family, not a *signer.Error, or that contains a secret.
func (p *probe) refused(what string, err, family error) {
	if err == nil {
		p.failf("%s: no error; it must wrap %q", what, family)
		return
	}
	if !errors.Is(err, family) {
		p.failf("%s: %q does not wrap %q", what, err, family)
	}
	if _, ok := errors.AsType[*signer.Error](err); !ok {
		p.failf("%s: %q (%T) is not a *signer.Error", what, err, err)
	}
	for _, text := range []string{fmt.Sprintf("%v", err), fmt.Sprintf("%+v", err), fault.Hint(err)} {
		for _, secret := range p.Secrets {
			if strings.Contains(text, secret) {
				p.failf("%s: the error contains a secret", what)
			}
		}
	}
}
