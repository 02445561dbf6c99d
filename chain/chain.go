// Package chain builds and checks the certificate chain of an MDM vendor, which is part of every Push Certificate
// Request: the vendor certificate, Apple's WWDR intermediate, Apple's root.
//
// Parse reads certificate files. Build returns the vendor's own chain, or the first error. Check reports all findings
// about the chain of a finished request. Both apply the same rules.
//
// Trust is by exact bytes: a chain ends at one of Apple's roots, known by SHA-256 (Pins), or at a certificate of
// Options.TrustRoots. The system's certificate store is not used. The signature of a root over itself proves nothing and
// is not verified (RFC 5280 section 6.1.1 (d)). Fetch downloads Apple's certificates, which hsmsign does not contain.
//
// Everything here is safe for concurrent use.
package chain

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"slices"
	"strings"
	"time"

	"hsmsign/fault"
	"hsmsign/internal/strictder"
)

// The limits of this package.
const (
	MaxFile  = 1 << 20 // bytes of a certificate file
	MaxCerts = 64      // certificates of one file, or of one chain with everything that was given in addition
	MaxPath  = 8       // certificates from the leaf to the root
)

// Options of Build and Check. The zero value trusts Apple's roots, knows no key and uses the current time.
type Options struct {
	TrustRoots []*x509.Certificate // trusted in addition to Apple's pinned roots, by exact bytes
	Key        crypto.PublicKey    // the vendor's public key; nil: unknown. It selects the leaf among several and must match it
	Now        time.Time           // zero: time.Now()
	WarnDays   int                 // warn if fewer days are left; zero: 30
}

func (o Options) withDefaults() Options {
	if o.Now.IsZero() {
		o.Now = time.Now()
	}
	o.WarnDays = cmp.Or(o.WarnDays, 30)
	return o
}

// trusts reports whether a chain may end at cert.
func (o Options) trusts(cert *x509.Certificate) bool {
	pin, ok := Lookup(cert)
	return ok && pin.Root || slices.ContainsFunc(o.TrustRoots, cert.Equal)
}

// Chain is leaf, intermediates and root, checked by Build.
type Chain struct {
	Certs    []*x509.Certificate
	Findings []fault.Finding // warnings and notes
}

// Leaf returns the vendor certificate.
func (c *Chain) Leaf() *x509.Certificate { return c.Certs[0] }

// PEM returns the chain as a Push Certificate Request contains it, leaf first.
func (c *Chain) PEM() string { return PEM(c.Certs) }

// Raw returns the DER of each certificate, leaf first.
func (c *Chain) Raw() [][]byte {
	raw := make([][]byte, len(c.Certs))
	for i, cert := range c.Certs {
		raw[i] = cert.Raw
	}
	return raw
}

// MatchKey returns a *fault.Finding (chain.key-mismatch) unless the leaf contains this public key.
func (c *Chain) MatchKey(pub crypto.PublicKey) error {
	if sameKey(c.Leaf().PublicKey, pub) {
		return nil
	}
	return keyMismatch(c.Leaf(), pub)
}

// PEM encodes certificates: 64 characters in every line but the last of each, and a newline after every END line.
func PEM(certs []*x509.Certificate) string {
	var b strings.Builder
	for _, c := range certs {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	return b.String()
}

// FirstExpiry returns the certificate that expires first, of at least one.
func FirstExpiry(certs []*x509.Certificate) *x509.Certificate {
	return slices.MinFunc(certs, func(a, b *x509.Certificate) int { return a.NotAfter.Compare(b.NotAfter) })
}

// SPKISHA256 returns the SHA-256 of a public key's DER SubjectPublicKeyInfo in lower case hex, or "" for a type of key
// without such an encoding.
func SPKISHA256(pub crypto.PublicKey) string {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return ""
	}
	return sha256Hex(der)
}

// Build returns the chain. It selects the leaf from cert (the vendor certificate, alone or in its chain, in any order)
// and its issuers from cert, extra and Options.TrustRoots together. It drops duplicates and leaves out certificates that
// do not belong to the chain, with a note.
//
// The error is a *fault.Finding of severity error with the subject "chain".
func Build(cert, extra []*x509.Certificate, opts Options) (*Chain, error) {
	opts = opts.withDefaults()
	given, _ := dedupe(slices.Concat(cert, extra))
	for _, c := range given { // of a token, for example, which Parse has not read
		if err := strictder.Check(c.Raw); err != nil {
			return nil, unreadable("%s is damaged: %v", name(c), err)
		}
	}
	leaves, _ := dedupe(cert)
	pool, _ := dedupe(slices.Concat(given, opts.TrustRoots))
	path, findings := inspect(leaves, pool, opts)
	if err := fault.First(findings); err != nil {
		return nil, err
	}
	return &Chain{Certs: path, Findings: append(findings, strangers(given, path)...)}, nil
}

// Check examines the certificates of a request, made by any tool, and returns all findings; without one of severity
// error the chain is good. Options.TrustRoots are trusted but not added: what is missing from certs is missing from the
// request.
func Check(certs []*x509.Certificate, opts Options) []fault.Finding {
	opts = opts.withDefaults()
	unique, findings := dedupe(certs)
	path, more := inspect(unique, unique, opts)
	findings = append(findings, more...)
	if len(path) == 0 {
		return findings
	}
	findings = append(findings, order(unique, path)...)
	return append(findings, strangers(unique, path)...)
}

// inspect selects the leaf, finds its issuers and applies every rule to the result.
func inspect(leaves, pool []*x509.Certificate, opts Options) (path []*x509.Certificate, findings []fault.Finding) {
	if len(leaves) == 0 {
		return nil, []fault.Finding{*empty("there is no certificate")}
	}
	if len(pool) > MaxCerts {
		return nil, []fault.Finding{*tooMany(len(pool))}
	}
	leaf, chosen := chooseLeaf(leaves, opts)
	findings = append(checkLeaf(leaf), chosen...) // "a push certificate" says more than "not the certificate of the key"
	path, complete := climb(leaf, pool, opts)
	if !complete {
		findings = append(findings, *incomplete(path, pool))
	}
	dates := checkDates(path, opts)
	findings = append(findings, dates...)
	if complete && fault.First(dates) == nil {
		findings = append(findings, verify(path, opts)...)
	}
	return path, findings
}

// dedupe returns the certificates without repetitions, in their order, and a finding for each repetition.
func dedupe(certs []*x509.Certificate) (unique []*x509.Certificate, findings []fault.Finding) {
	seen := make(map[[sha256.Size]byte]bool, len(certs))
	for _, c := range certs {
		sum := sha256.Sum256(c.Raw)
		if seen[sum] {
			findings = append(findings, *fault.Warn("chain.duplicate", "the chain contains %s more than once", name(c)).WithFix("remove the others"))
			continue
		}
		seen[sum] = true
		unique = append(unique, c)
	}
	return unique, findings
}

// selfIssued reports whether subject and issuer are the same, as in a root (RFC 5280 section 3.2).
func selfIssued(c *x509.Certificate) bool { return bytes.Equal(c.RawIssuer, c.RawSubject) }

// CheckDates returns an error, a *fault.Finding, if a certificate of the chain is not valid at the given time. Build
// checks the dates once; a process that keeps the chain for days checks them again before each signature.
func (c *Chain) CheckDates(now time.Time) error {
	return fault.First(checkDates(c.Certs, Options{Now: now}))
}
