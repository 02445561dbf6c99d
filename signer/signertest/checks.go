package signertest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"hsmsign/signer"
)

func checks() []check {
	return []check{
		{"public key", publicKey},
		{"signature", signature},
		{"unsupported", unsupported},
		{"context ended before", endedBefore},
		{"cancelled in flight", cancelledInFlight},
		{"deadline in flight", deadlineInFlight},
		{"closed in flight", closedInFlight},
		{"concurrent", concurrent},
		{"digest", digestIsTheCallers},
		{"close", closing},
		{"missing key", missingKey},
		{"ambiguous key", ambiguousKey},
		{"unknown attribute", unknownAttribute},
		{"certificate request", certificateRequest},
		{"signer.Sign", signVerified},
	}
}

// digestOf returns the digest of the n-th test message.
func digestOf(h crypto.Hash, n int) []byte {
	hash := h.New()
	_, _ = fmt.Fprintf(hash, "message %d", n) // a hash never fails
	return hash.Sum(nil)
}

func publicKey(p *probe) {
	for range 2 {
		key := p.key()
		if key == nil {
			return
		}
		pub, ok := key.Public().(*rsa.PublicKey)
		if !ok || !pub.Equal(p.Public) {
			p.failf("public key: a %T that is not that of the fixture", key.Public())
		}
	}
}

// signature: PKCS#1 v1.5 is deterministic (RFC 8017 section 8.2.1), so every way to sign returns the same bytes.
func signature(p *probe) {
	key, other := p.key(), p.key()
	if key == nil || other == nil {
		return
	}
	for _, h := range p.Hashes {
		digest := digestOf(h, 0)
		var first []byte
		ways := map[string]func() ([]byte, error){
			"SignContext":                    func() ([]byte, error) { return p.sign(context.Background(), key, digest, h) },
			"SignContext again":              func() ([]byte, error) { return p.sign(context.Background(), key, digest, h) },
			"SignContext of a second Signer": func() ([]byte, error) { return p.sign(context.Background(), other, digest, h) },
			"Sign with a random source":      func() ([]byte, error) { return key.Sign(rand.Reader, digest, h) },
			"Sign without a random source":   func() ([]byte, error) { return key.Sign(nil, digest, h) },
		}
		for way, sign := range ways {
			sig, err := sign()
			if !p.signed(fmt.Sprintf("%s, %v", way, h), h, digest, sig, err) {
				continue
			}
			if first == nil {
				first = sig
			} else if !bytes.Equal(first, sig) {
				p.failf("%s, %v: a different signature", way, h)
			}
		}
	}
}

func unsupported(p *probe) {
	key := p.key()
	if key == nil {
		return
	}
	refuse := func(what string, digest []byte, opts crypto.SignerOpts) {
		_, err := p.sign(context.Background(), key, digest, opts)
		p.refused(what, err, signer.ErrUnsupported)
	}
	for _, h := range p.Hashes {
		for _, n := range []int{0, 1, h.Size() - 1, h.Size() + 1, 1 << 16} {
			refuse(fmt.Sprintf("%v digest of %d bytes", h, n), make([]byte, n), h)
		}
	}
	for _, h := range []crypto.Hash{crypto.MD5, crypto.SHA512} {
		if !slices.Contains(p.Hashes, h) {
			refuse(fmt.Sprintf("hash %v", h), make([]byte, h.Size()), h)
		}
	}
	digest := digestOf(crypto.SHA256, 0)
	refuse("no hash", digest, crypto.Hash(0))
	refuse("nil options", digest, nil)
	refuse("RSASSA-PSS", digest, &rsa.PSSOptions{Hash: crypto.SHA256})
	sig, err := p.sign(context.Background(), key, digest, crypto.SHA256)
	p.signed("after the refusals", crypto.SHA256, digest, sig, err)
}

func endedBefore(p *probe) {
	key := p.key()
	if key == nil {
		return
	}
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	late, cancel := context.WithDeadline(context.Background(), time.Now().Add(-time.Second))
	defer cancel()
	for _, ctx := range []context.Context{cancelled, late} {
		began := time.Now()
		_, err := p.sign(ctx, key, digestOf(crypto.SHA256, 0), crypto.SHA256)
		p.refused("sign", err, ctx.Err())
		_, err = p.open(ctx, p.Ref)
		p.refused("open", err, ctx.Err())
		if took := time.Since(began); took > atOnce {
			p.failf("%v: sign and open took %v to notice it", ctx.Err(), took)
		}
	}
}

func cancelledInFlight(p *probe) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	p.inFlight(ctx, context.Canceled, func(signer.Signer) { cancel() })
}

func deadlineInFlight(p *probe) {
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	p.inFlight(ctx, context.DeadlineExceeded, func(signer.Signer) { <-ctx.Done() })
}

func closedInFlight(p *probe) {
	p.inFlight(context.Background(), signer.ErrClosed, func(key signer.Signer) {
		if err := key.Close(); err != nil {
			p.failf("close with signatures in flight: %v", err)
		}
	})
}

// inFlight makes many signatures at the same time, ends them, and waits for all callers. Each result is valid or an error
// that wraps want. A call that begins after the end must fail.
func (p *probe) inFlight(ctx context.Context, want error, end func(signer.Signer)) {
	key := p.key()
	if key == nil {
		return
	}
	var ended atomic.Bool
	var workers sync.WaitGroup
	for n := range 32 {
		workers.Go(func() {
			digest := make([]byte, crypto.SHA256.Size())
			for {
				copy(digest, digestOf(crypto.SHA256, n))
				late := ended.Load()
				sig, err := p.sign(ctx, key, digest, crypto.SHA256)
				clear(digest) // under -race this detects a call that still reads the digest after it has returned
				if err != nil {
					p.refused("in flight", err, want)
					return
				}
				if !p.signed("in flight", crypto.SHA256, digestOf(crypto.SHA256, n), sig, nil) {
					return
				}
				if late {
					p.failf("in flight: a call that began after the end succeeded; it must wrap %q", want)
					return
				}
			}
		})
	}
	time.Sleep(20 * time.Millisecond) // any moment will do
	end(key)
	ended.Store(true)
	workers.Wait() // every call has a time limit
}

func concurrent(p *probe) {
	key := p.key()
	if key == nil {
		return
	}
	var workers sync.WaitGroup
	for n := range 64 {
		workers.Go(func() {
			for i := range 3 {
				h := p.Hashes[(n+i)%len(p.Hashes)]
				digest := digestOf(h, 3*n+i)
				sig, err := p.sign(context.Background(), key, digest, h)
				p.signed("concurrent", h, digest, sig, err)
			}
		})
	}
	workers.Wait()
}

// digestIsTheCallers: the digest's buffer and the signature belong to the caller, who may change both as soon as the call
// has returned.
func digestIsTheCallers(p *probe) {
	key := p.key()
	if key == nil {
		return
	}
	want := digestOf(crypto.SHA256, 1)
	buf := bytes.Clone(want)
	first, err := p.sign(context.Background(), key, buf, crypto.SHA256)
	if !bytes.Equal(buf, want) {
		p.failf("digest: the call changed it")
	}
	copy(buf, digestOf(crypto.SHA256, 2))
	second, err2 := p.sign(context.Background(), key, buf, crypto.SHA256)
	p.signed("digest: first use of a buffer", crypto.SHA256, want, first, err)
	p.signed("digest: second use of a buffer", crypto.SHA256, digestOf(crypto.SHA256, 2), second, err2)
	clear(first)
	again, err := p.sign(context.Background(), key, want, crypto.SHA256)
	p.signed("digest: after the caller cleared a signature", crypto.SHA256, want, again, err)
}

func closing(p *probe) {
	key, other := p.key(), p.key()
	if key == nil || other == nil {
		return
	}
	for range 2 {
		if err := key.Close(); err != nil {
			p.failf("close: %v", err)
		}
	}
	digest := digestOf(crypto.SHA256, 0)
	_, err := p.sign(context.Background(), key, digest, crypto.SHA256)
	p.refused("sign after close", err, signer.ErrClosed)
	_, err = key.Sign(nil, digest, crypto.SHA256)
	p.refused("Sign after close", err, signer.ErrClosed)
	if pub, ok := key.Public().(*rsa.PublicKey); !ok || !pub.Equal(p.Public) {
		p.failf("close: the public key is not available")
	}
	sig, err := p.sign(context.Background(), other, digest, crypto.SHA256)
	p.signed("another Signer of the closed key", crypto.SHA256, digest, sig, err)
}

func missingKey(p *probe) {
	_, err := p.open(context.Background(), p.Missing)
	p.refused("open of a missing key", err, signer.ErrKeyNotFound)
}

func ambiguousKey(p *probe) {
	if p.Ambiguous == "" {
		return
	}
	_, err := p.open(context.Background(), p.Ambiguous)
	p.refused("open of an ambiguous reference", err, signer.ErrAmbiguousKey)
	if len(p.Matches) < 2 {
		p.failf("Matches of the fixture: %d, want at least two", len(p.Matches))
	}
	for _, match := range p.Matches {
		if err != nil && !strings.Contains(err.Error(), match) {
			p.failf("open of an ambiguous reference: %q does not list %q", err, match)
		}
	}
}

// unknownAttribute: a typing error in a reference must not weaken a setting.
func unknownAttribute(p *probe) {
	separator := "?"
	if strings.Contains(p.Ref, "?") {
		separator = "&"
	}
	_, err := p.open(context.Background(), p.Ref+separator+"no-such-attribute=1")
	p.refused("open with an unknown attribute", err, signer.ErrReference)
}

func certificateRequest(p *probe) {
	key := p.key()
	if key == nil {
		return
	}
	template := &x509.CertificateRequest{Subject: pkix.Name{CommonName: "conformance"}, SignatureAlgorithm: x509.SHA256WithRSA}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		p.failf("certificate request: %v", err)
		return
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		p.failf("certificate request: %v", err)
	}
}

func signVerified(p *probe) {
	key := p.key()
	if key == nil {
		return
	}
	for _, h := range p.Hashes {
		message := []byte("signed end to end")
		hash := h.New()
		hash.Write(message)
		sig, err := signer.Sign(context.Background(), key, message, h)
		p.signed(fmt.Sprintf("signer.Sign, %v", h), h, hash.Sum(nil), sig, err)
	}
}
