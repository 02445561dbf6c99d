// Package chain builds and checks the certificate chain of an MDM vendor, which every Push Certificate
// Request holds: the vendor certificate, Apple's WWDR intermediate, Apple's root.
//
//	certs, err := chain.Parse(file)                                // PEM, DER or PKCS#7, any number
//	c, err := chain.Build(certs, extra, chain.Options{Key: pub})   // leaf..root, or why not
//	text := c.PEM()                                                // for PushCertCertificateChain
//
// Build is for one's own chain: it takes certificates in any order and gives one good chain or the first
// error. Check is for the chain of a finished request: it takes the certificates as they stand and reports all
// that is wrong. Both apply the same rules, and both say what to do about a finding.
//
// Trust is by exact bytes: a chain ends at one of Apple's roots, known by SHA-256 (Pins), or at a certificate
// of Options.TrustRoots. The system's certificate store is never asked. Apple's older root is signed with
// SHA-1; a root's signature over itself proves nothing and is not looked at (RFC 5280 section 6.1.1 (d)).
//
// The program does not contain Apple's certificates. Fetch gets them and holds them to their pins.
//
// Everything here is safe for concurrent use: nothing is kept between calls, and certificates passed in are
// not changed.
package chain

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"slices"
	"strings"
	"time"

	"hsmsign/fault"
)

// Bounds of what is read and tried.
const (
	MaxFile  = 1 << 20 // bytes of one certificate file that are read; larger is refused
	MaxCerts = 64      // certificates of one file, or of one chain with all that was given beside it
	MaxPath  = 8       // certificates from the leaf to the root
)

// Options of Build and Check. The zero value trusts Apple's roots, knows no key and judges as of now.
type Options struct {
	TrustRoots []*x509.Certificate // accepted beside Apple's pinned roots, by exact bytes
	Key        crypto.PublicKey    // the vendor key's public half; nil when not known. Chooses the leaf among several and must match it
	Now        time.Time           // zero: time.Now()
	WarnDays   int                 // warn when fewer days are left; zero: 30
}

func (o Options) withDefaults() Options {
	if o.Now.IsZero() {
		o.Now = time.Now()
	}
	if o.WarnDays == 0 {
		o.WarnDays = 30
	}
	return o
}

// trusts says whether a chain may end at cert.
func (o Options) trusts(cert *x509.Certificate) bool {
	pin, ok := Lookup(cert)
	return ok && pin.Root || slices.ContainsFunc(o.TrustRoots, cert.Equal)
}

// Chain is leaf, intermediate(s), root, checked by Build.
type Chain struct {
	Certs    []*x509.Certificate
	Findings []fault.Finding // warnings and notes, none of severity Error
}

// Leaf is the vendor certificate.
func (c *Chain) Leaf() *x509.Certificate { return c.Certs[0] }

// PEM is the chain as a Push Certificate Request holds it, leaf first.
func (c *Chain) PEM() string { return PEM(c.Certs) }

// Raw is the DER of each certificate, leaf first.
func (c *Chain) Raw() [][]byte {
	raw := make([][]byte, len(c.Certs))
	for i, cert := range c.Certs {
		raw[i] = cert.Raw
	}
	return raw
}

// MatchKey is an error, a *fault.Finding, unless the leaf holds this public key.
func (c *Chain) MatchKey(pub crypto.PublicKey) error {
	if sameKey(c.Leaf().PublicKey, pub) {
		return nil
	}
	f := keyMismatch(c.Leaf(), pub)
	return &f
}

// PEM encodes certificates: lines of exactly 64 characters but the last of each, a newline after every END line.
func PEM(certs []*x509.Certificate) string {
	var b strings.Builder
	for _, c := range certs {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	return b.String()
}

// SPKISHA256 is the SHA-256 of a public key's DER SubjectPublicKeyInfo, in lower case hex; empty for a key of
// a type that has no such encoding.
func SPKISHA256(pub crypto.PublicKey) string {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return ""
	}
	return sha256Hex(der)
}

// Build makes the chain. The leaf is chosen from cert (what the user named as the vendor certificate: the leaf
// alone or a whole chain, in any order), its issuers from cert, extra and Options.TrustRoots together.
// Duplicates are dropped; certificates that do not belong to the chain are left out, with a Note.
//
// The error is a *fault.Finding of severity Error whose subject is "chain".
func Build(cert, extra []*x509.Certificate, opts Options) (*Chain, error) {
	opts = opts.withDefaults()
	given, _ := dedupe(slices.Concat(cert, extra))
	leaves, _ := dedupe(cert)
	pool, _ := dedupe(slices.Concat(given, opts.TrustRoots))
	path, findings := inspect(leaves, pool, opts)
	if err := fault.First(findings); err != nil {
		return nil, err
	}
	return &Chain{Certs: path, Findings: append(findings, strangers(given, path)...)}, nil
}

// Check looks at certificates as they stand in a request, made by whatever tool, and reports every finding:
// none of severity Error means that the chain is good. Options.TrustRoots are trusted but not added: what is
// missing from certs is missing from the request.
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

// inspect chooses the leaf, finds its issuers and applies every rule to what it found.
func inspect(leaves, pool []*x509.Certificate, opts Options) (path []*x509.Certificate, findings []fault.Finding) {
	if len(leaves) == 0 {
		return nil, []fault.Finding{empty()}
	}
	if len(pool) > MaxCerts {
		return nil, []fault.Finding{tooMany(len(pool))}
	}
	leaf, chosen := chooseLeaf(leaves, opts)
	findings = append(checkLeaf(leaf), chosen...) // "a push certificate" says more than "not this key's"
	path, complete := climb(leaf, pool, opts)
	if !complete {
		findings = append(findings, incomplete(path, pool)...)
	}
	dates := checkDates(path, opts)
	findings = append(findings, dates...)
	if complete && fault.First(dates) == nil {
		findings = append(findings, verify(path, opts)...)
	}
	return path, findings
}

// dedupe drops certificates that were there before, byte for byte, keeps the order, and reports each drop.
func dedupe(certs []*x509.Certificate) (unique []*x509.Certificate, findings []fault.Finding) {
	seen := make(map[[sha256.Size]byte]bool, len(certs))
	for _, c := range certs {
		sum := sha256.Sum256(c.Raw)
		if seen[sum] {
			findings = append(findings, duplicate(c))
			continue
		}
		seen[sum] = true
		unique = append(unique, c)
	}
	return unique, findings
}

// selfIssued: the subject is the issuer, as in a root (RFC 5280 section 3.2).
func selfIssued(c *x509.Certificate) bool { return bytes.Equal(c.RawIssuer, c.RawSubject) }
