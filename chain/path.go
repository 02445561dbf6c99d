package chain

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"slices"
	"strings"

	"hsmsign/fault"
)

// chooseLeaf returns the vendor certificate: the one with the key, or, if the key is unknown, the only one that is not a
// CA. Among several (a renewal keeps the key) it is the only one that is valid now. With findings it returns the most
// likely one, so that Check can continue.
func chooseLeaf(certs []*x509.Certificate, opts Options) (*x509.Certificate, []fault.Finding) {
	candidates := filter(certs, func(c *x509.Certificate) bool { return !c.IsCA })
	if len(candidates) == 0 {
		candidates = certs[:1]
	}
	if opts.Key != nil {
		matching := filter(certs, func(c *x509.Certificate) bool { return sameKey(c.PublicKey, opts.Key) })
		if len(matching) == 0 {
			return candidates[0], []fault.Finding{*keyMismatch(candidates[0], opts.Key)}
		}
		candidates = matching
	}
	valid := filter(candidates, func(c *x509.Certificate) bool { return validAt(c, opts) })
	switch {
	case len(valid) == 1:
		return valid[0], nil
	case len(valid) > 1:
		var names []string
		for _, c := range valid {
			names = append(names, fmt.Sprintf("%s (serial number %x, until %s)", name(c), c.SerialNumber, c.NotAfter.UTC().Format(date)))
		}
		return valid[0], []fault.Finding{*fault.Refuse("chain.ambiguous-leaf", "%d certificates may be the vendor's: %s", len(valid), strings.Join(names, ", ")).
			WithFix("give one vendor certificate only")}
	}
	return slices.MaxFunc(candidates, byExpiry), nil // checkDates reports that it is not valid
}

// sameKey reports whether two public keys are equal. Every type of the standard library has this Equal (crypto.PublicKey).
func sameKey(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(x crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// maxSignatures is how many signatures one climb verifies at most: a pool of certificates that name and sign each other
// has more paths than there is time to try.
const maxSignatures = 256

// climb returns the path from the leaf to a trusted certificate, of at most MaxPath certificates. If there is none,
// complete is false and path is the first one that was tried.
func climb(leaf *x509.Certificate, pool []*x509.Certificate, opts Options) (path []*x509.Certificate, complete bool) {
	budget := maxSignatures
	var first []*x509.Certificate
	var up func(path []*x509.Certificate) []*x509.Certificate
	up = func(path []*x509.Certificate) []*x509.Certificate {
		top := path[len(path)-1]
		if len(path) > 1 && opts.trusts(top) {
			return path
		}
		dead := true
		if len(path) < MaxPath {
			for _, issuer := range issuers(top, pool, opts) {
				if slices.ContainsFunc(path, issuer.Equal) || budget == 0 {
					continue
				}
				budget--
				if checkSignature(top, issuer) != nil {
					continue
				}
				dead = false
				if whole := up(append(slices.Clone(path), issuer)); whole != nil {
					return whole
				}
			}
		}
		if dead && first == nil {
			first = path
		}
		return nil
	}
	if whole := up([]*x509.Certificate{leaf}); whole != nil {
		return whole, true
	}
	return first, false
}

// issuers returns the certificates of the pool with the name and key identifier of cert's issuer, the best first: trusted,
// then valid now, then the latest to expire. It does not verify signatures. WWDR G1 has no issuers: it is always refused,
// and it is signed with SHA-1, which Go does not verify.
func issuers(cert *x509.Certificate, pool []*x509.Certificate, opts Options) []*x509.Certificate {
	if pin, ok := Lookup(cert); ok && pin.Retired {
		return nil
	}
	found := filter(pool, func(c *x509.Certificate) bool { return named(cert, c) && keyIDsMatch(cert, c) && !c.Equal(cert) })
	rank := func(c *x509.Certificate) int {
		switch {
		case opts.trusts(c):
			return 0
		case validAt(c, opts):
			return 1
		}
		return 2
	}
	slices.SortStableFunc(found, func(a, b *x509.Certificate) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), byExpiry(b, a))
	})
	return found
}

// named reports whether issuer has the name of cert's issuer. It compares bytes, as crypto/x509 does.
func named(cert, issuer *x509.Certificate) bool {
	return bytes.Equal(cert.RawIssuer, issuer.RawSubject)
}

// keyIDsMatch compares the key identifiers, which differ between issuers with the same name. Either may be absent
// (RFC 5280 section 4.2.1.1).
func keyIDsMatch(cert, issuer *x509.Certificate) bool {
	return len(cert.AuthorityKeyId) == 0 || len(issuer.SubjectKeyId) == 0 || bytes.Equal(cert.AuthorityKeyId, issuer.SubjectKeyId)
}

// checkSignature verifies the signature of cert with issuer. crypto/x509 would verify with a key of any size, for minutes.
func checkSignature(cert, issuer *x509.Certificate) error {
	if pub, ok := issuer.PublicKey.(*rsa.PublicKey); ok && pub.N.BitLen() > maxKeyBits {
		return fmt.Errorf("an RSA key of %d bits; at most %d are accepted", pub.N.BitLen(), maxKeyBits)
	}
	return cert.CheckSignatureFrom(issuer)
}

// verify validates the path with crypto/x509: path length, name constraints, algorithms, everything that the rules above
// do not check. The only root is the end of the path, which is already trusted.
func verify(path []*x509.Certificate, opts Options) []fault.Finding {
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	last := len(path) - 1
	roots.AddCert(withoutApple(path[last]))
	for _, c := range path[1:last] {
		intermediates.AddCert(withoutApple(c))
	}
	_, err := withoutApple(path[0]).Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: opts.Now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return []fault.Finding{*refuse("chain.invalid", "the chain of %s is not valid: %v", name(path[0]), err).WithFix("use the chain that Apple issued")}
	}
	if pin, ok := Lookup(path[last]); !ok || !pin.Root {
		return []fault.Finding{*fault.Note("chain.trust-root", "the chain ends at %s, a given trust root; Apple's portal accepts only Apple's roots",
			name(path[last])).WithPortal(fault.PortalSignature)}
	}
	return nil
}

// withoutApple returns a copy of the certificate in which Apple's critical extensions (below 1.2.840.113635.100) do not
// count as unhandled. Go's Verify refuses every critical extension that it does not know.
func withoutApple(c *x509.Certificate) *x509.Certificate {
	copied := *c
	copied.UnhandledCriticalExtensions = slices.DeleteFunc(slices.Clone(c.UnhandledCriticalExtensions), func(id asn1.ObjectIdentifier) bool {
		apple := asn1.ObjectIdentifier{1, 2, 840, 113635, 100}
		return len(id) > len(apple) && id[:len(apple)].Equal(apple)
	})
	return &copied
}

func validAt(c *x509.Certificate, opts Options) bool {
	return !opts.Now.Before(c.NotBefore) && !opts.Now.After(c.NotAfter)
}

func byExpiry(a, b *x509.Certificate) int { return a.NotAfter.Compare(b.NotAfter) }

func filter(certs []*x509.Certificate, keep func(*x509.Certificate) bool) []*x509.Certificate {
	return slices.DeleteFunc(slices.Clone(certs), func(c *x509.Certificate) bool { return !keep(c) })
}
