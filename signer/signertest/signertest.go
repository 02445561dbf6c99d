// Package signertest is the conformance suite of the key stores: what a signer.Backend must do, whichever
// store is behind it. A backend's own test is a Fixture and one call:
//
//	func TestConformance(t *testing.T) {
//		signertest.Run(t, signertest.Fixture{
//			Backend: file.Backend(file.Options{}),
//			Ref:     "file:" + path,
//			Public:  &key.PublicKey,
//			Missing: "file:/no/such/file",
//		})
//	}
//
// Run makes one subtest per rule, and each of them opens the key afresh. It watches the goroutines of the
// whole process, so a test that calls it must not run in parallel with others.
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

// The bounds of one call. A slow token makes ten signatures a second, and the suite has at most a few hundred
// in the queue.
const (
	callLimit = time.Minute     // any call at all
	atOnce    = 2 * time.Second // a call whose context ended before it began
)

// Fixture is a backend with a key to test it on. Backend, Ref, Public and Missing are required.
type Fixture struct {
	Backend signer.Backend
	Ref     string         // names the test key
	Public  *rsa.PublicKey // what its public half must be
	Missing string         // a well-formed reference that names no key

	// Ambiguous is a reference that matches several keys; "" where the backend cannot have that. Matches are
	// the texts by which the error must list them, at least two.
	Ambiguous string
	Matches   []string

	// Hashes is all that the key can sign with; nil means SHA-256 and SHA-1.
	Hashes []crypto.Hash
	// Secrets (PIN, passphrase, ...) must appear in no error and in no hint.
	Secrets []string
	// Leaks tells goleak which goroutines may outlive a Signer, such as the thread of a loaded module.
	Leaks []goleak.Option

	limit time.Duration // of a call; zero means callLimit
}

// Run holds a backend to every rule, one subtest each.
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

// check is one rule: it uses the probe as a program would, and tells it what went wrong.
type check struct {
	name string
	run  func(p *probe)
}

// problems runs the check and gives what it found. Whatever the rule, no goroutine may be left behind.
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

// probe makes bounded calls to a backend and collects what is wrong with them. Safe for concurrent use.
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

// open opens a reference within the limit. The check's end closes what it gives.
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

// key opens the test key; nil says that it has failed and been noted.
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

// within waits for f, but not longer than the limit: a backend that hangs must fail its test, not stop it.
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
		var none T
		return none, fmt.Errorf("no answer within %v", limit)
	}
}

// signed notes a signature that is missing or does not verify.
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

// refused notes an error that is missing, of the wrong family, not a *signer.Error, or that tells a secret.
func (p *probe) refused(what string, err, family error) {
	if err == nil {
		p.failf("%s: no error; it must wrap %q", what, family)
		return
	}
	if !errors.Is(err, family) {
		p.failf("%s: %q does not wrap %q", what, err, family)
	}
	var carrier *signer.Error
	if !errors.As(err, &carrier) {
		p.failf("%s: %q (%T) is not a *signer.Error", what, err, err)
		carrier = &signer.Error{}
	}
	for _, text := range []string{fmt.Sprintf("%v", err), fmt.Sprintf("%+v", err), fault.Hint(err)} {
		for _, secret := range p.Secrets {
			if strings.Contains(text, secret) {
				p.failf("%s: the error tells a secret", what)
			}
		}
	}
}
