package chain

import (
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"hsmsign/fault"
)

// What Apple's Push Certificates Portal says to a request with such a chain.
const (
	portalSignature = "Certificate Signature Verification failed because the signature is invalid (-80018)"
	portalExpired   = "Certificate Signature Verification failed because the signing certificate is expired"
	portalNoChain   = "Signing Certificate Chain Missing"
)

const (
	date       = "2006-01-02"
	minKeyBits = 2048
	maxKeyBits = 8192              // of any RSA key a signature is verified with, as in crypto/tls
	pushTopic  = "com.apple.mgmt." // an MDM push certificate's subject UID begins with it

	fixLeaf  = "give the certificate that Apple issued for the MDM vendor's CSR (\"MDM Vendor: ...\")"
	fixRenew = "renew the vendor certificate in the Apple Developer account; hsmsign vendor csr makes its request"
)

// checkLeaf: what a certificate must be to sign Push Certificate Requests.
func checkLeaf(c *x509.Certificate) []fault.Finding {
	if uid := userID(c); strings.HasPrefix(uid, pushTopic) || c.Issuer.CommonName == pushCA {
		return []fault.Finding{refuse("chain.push-certificate", fixLeaf, portalSignature,
			"%s is a push certificate, not the vendor's (user id %q, issued by %q)", name(c), uid, c.Issuer.CommonName)}
	}
	if c.IsCA {
		return []fault.Finding{refuse("chain.leaf-is-ca", fixLeaf, portalSignature,
			"%s is a certificate authority, not a vendor certificate", name(c))}
	}
	var f []fault.Finding
	if pub, ok := c.PublicKey.(*rsa.PublicKey); !ok {
		f = append(f, refuse("chain.leaf-key", "make a vendor CSR with an RSA-2048 key and have Apple issue a certificate for it", portalSignature,
			"%s holds a key of type %v; Apple takes RSA only", name(c), c.PublicKeyAlgorithm))
	} else if bits := pub.N.BitLen(); bits < minKeyBits || bits > maxKeyBits {
		f = append(f, refuse("chain.leaf-key", "make a vendor CSR with an RSA-2048 key and have Apple issue a certificate for it", portalSignature,
			"%s holds an RSA key of %d bits; %d to %d are taken", name(c), bits, minKeyBits, maxKeyBits))
	}
	if c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		f = append(f, refuse("chain.leaf-usage", fixLeaf, portalSignature,
			"%s must not sign data: its key usage lacks digitalSignature", name(c)))
	}
	vendor := asn1.ObjectIdentifier{1, 2, 840, 113635, 100, 4, 12}
	if !hasExtension(c, vendor) {
		f = append(f, fault.Finding{ID: "chain.vendor-extension", Severity: fault.SeverityWarning,
			Fix:     "make sure that this is the certificate Apple issued for the MDM vendor's CSR; if it is, ignore this",
			Message: fmt.Sprintf("%s lacks Apple's extension %v, which marks an MDM vendor's certificate", name(c), vendor)})
	}
	return f
}

// checkDates: every certificate of the path is valid now, and for some time to come.
func checkDates(path []*x509.Certificate, opts Options) []fault.Finding {
	const day = 24 * time.Hour
	var f []fault.Finding
	for i, c := range path {
		if pin, ok := Lookup(c); ok && pin.Retired {
			continue // chain.wwdr-g1 says it
		}
		fix := "use the certificate of this name that is valid now; hsmsign chain fetch gets Apple's"
		if i == 0 {
			fix = fixRenew
		}
		left := c.NotAfter.Sub(opts.Now)
		switch {
		case opts.Now.Before(c.NotBefore):
			f = append(f, refuse("chain.not-yet-valid", "check this machine's clock, or wait", portalSignature,
				"%s is valid from %s on; it is %s", name(c), c.NotBefore.UTC().Format(time.RFC3339), opts.Now.UTC().Format(time.RFC3339)))
		case left < 0:
			f = append(f, refuse("chain.expired", fix, portalExpired,
				"%s expired %s, %s ago", name(c), c.NotAfter.UTC().Format(date), days(-left)))
		case left < time.Duration(opts.WarnDays)*day:
			f = append(f, fault.Finding{ID: "chain.expires-soon", Severity: fault.SeverityWarning, Fix: fix,
				Message: fmt.Sprintf("%s expires %s, in %s", name(c), c.NotAfter.UTC().Format(date), days(left))})
		}
	}
	return f
}

// incomplete says why the path does not reach a trusted certificate.
func incomplete(path, pool []*x509.Certificate) []fault.Finding {
	top := path[len(path)-1]
	if pin, ok := Lookup(top); ok && pin.Retired {
		return []fault.Finding{retired(top, pin, true)}
	}
	if selfIssued(top) {
		return []fault.Finding{untrusted(top)}
	}
	circle := false
	for _, c := range pool {
		if !named(top, c) || !keyIDsMatch(top, c) {
			continue
		}
		if slices.ContainsFunc(path, c.Equal) {
			circle = true
			continue
		}
		if err := checkSignature(top, c); err != nil {
			return []fault.Finding{refuse("chain.signature", "get the certificate of the issuer anew: "+fetchFix(top), portalSignature,
				"the signature of %s is not by %s, although that has its issuer's name: %v", name(top), name(c), err)}
		}
		return []fault.Finding{refuse("chain.too-long", "give only the certificates between the vendor's and Apple's root", portalSignature,
			"no trusted root within %d certificates of %s", MaxPath, name(path[0]))}
	}
	if circle { // two authorities that certified each other
		return []fault.Finding{untrusted(top)}
	}
	return []fault.Finding{missing(path, pool)}
}

// missing: the issuer of the path's end is not there.
func missing(path, pool []*x509.Certificate) fault.Finding {
	top := path[len(path)-1]
	id, what := "chain.missing-intermediate", "the intermediate"
	pin, pinned := lookupIssuer(top)
	if pinned && pin.Root || !pinned && len(path) > 1 {
		id, what = "chain.missing-root", "the root"
	}
	msg := fmt.Sprintf("%s that issued %s is missing: %q", what, name(top), short(top.Issuer.CommonName))
	if pinned {
		msg += " (" + pin.Name + ")"
	}
	if len(top.AuthorityKeyId) > 0 {
		msg += ", key id " + keyID(top.AuthorityKeyId)
	}
	// The wrong generation of WWDR and a test PKI made anew both show as a certificate of the right name.
	for _, c := range pool {
		if c.Subject.CommonName == top.Issuer.CommonName && !slices.ContainsFunc(path, c.Equal) {
			msg += fmt.Sprintf("; %s with key id %s is there and did not issue it", name(c), keyID(c.SubjectKeyId))
			break
		}
	}
	return refuse(id, fetchFix(top), portalSignature, "%s", msg)
}

func untrusted(top *x509.Certificate) fault.Finding {
	msg := fmt.Sprintf("the chain ends at %s, which is neither Apple's root nor a trust root that was given", name(top))
	for _, p := range Pins() {
		if p.Root && p.Subject == top.Subject.CommonName {
			msg += fmt.Sprintf("; it has Apple's name and not Apple's bytes (SHA-256 %s, Apple's is %s)", sha256Hex(top.Raw), p.SHA256)
		}
	}
	return refuse("chain.untrusted", "use a certificate that Apple issued; for a test PKI name its root as a trust root", portalSignature, "%s", msg)
}

// retired: WWDR G1 expired and is still in many guides and chain files. Its key is not that of G3: a vendor
// certificate that it issued needs renewal, one that it only stands beside does not need it.
func retired(c *x509.Certificate, pin Pin, inPath bool) fault.Finding {
	f := fault.Finding{ID: "chain.wwdr-g1", Severity: fault.SeverityWarning,
		Message: fmt.Sprintf("%s expired %s and must not be used", name(c), pin.NotAfter.Format(date))}
	for _, p := range Pins() {
		if p.Name == "WWDR G3" {
			f.Fix = "use WWDR G3: " + get(p)
		}
	}
	if inPath {
		f.Severity, f.Portal, f.Fix = fault.SeverityError, portalExpired, fixRenew+"; then "+f.Fix
	}
	return f
}

// strangers are certificates that do not belong to the chain.
func strangers(certs, path []*x509.Certificate) []fault.Finding {
	var f []fault.Finding
	for _, c := range certs {
		if slices.ContainsFunc(path, c.Equal) {
			continue
		}
		if pin, ok := Lookup(c); ok && pin.Retired {
			f = append(f, retired(c, pin, false))
			continue
		}
		f = append(f, fault.Finding{ID: "chain.stranger", Severity: fault.SeverityNote,
			Message: fmt.Sprintf("%s does not belong to the chain", name(c))})
	}
	return f
}

// order: leaf first and root last. Others have been seen in requests; whether the portal takes them is not known.
func order(certs, path []*x509.Certificate) []fault.Finding {
	members := filter(certs, func(c *x509.Certificate) bool { return slices.ContainsFunc(path, c.Equal) })
	if slices.EqualFunc(members, path, (*x509.Certificate).Equal) {
		return nil
	}
	var names []string
	for _, c := range members {
		names = append(names, name(c))
	}
	return []fault.Finding{{ID: "chain.order", Severity: fault.SeverityWarning, Fix: "put the vendor certificate first and the root last",
		Message: "the certificates are out of order: " + strings.Join(names, ", ")}}
}

func empty() fault.Finding {
	return refuse("chain.empty", "add the vendor certificate, the WWDR intermediate and Apple's root", portalNoChain, "there is no certificate")
}

func tooMany(n int) fault.Finding {
	return refuse("chain.too-many", "give only the vendor certificate, the WWDR intermediate and Apple's root", "",
		"%d certificates; at most %d are looked at", n, MaxCerts)
}

func duplicate(c *x509.Certificate) fault.Finding {
	return fault.Finding{ID: "chain.duplicate", Severity: fault.SeverityWarning, Fix: "leave one of them",
		Message: name(c) + " stands in the chain more than once"}
}

func keyMismatch(c *x509.Certificate, key crypto.PublicKey) fault.Finding {
	return refuse("chain.key-mismatch", "give the certificate that was issued for this key, or the key of this certificate", portalSignature,
		"%s is not the certificate of the key: it holds the public key with SHA-256 %s, the key has %s", name(c), SPKISHA256(c.PublicKey), SPKISHA256(key))
}

func ambiguous(certs []*x509.Certificate) fault.Finding {
	var names []string
	for _, c := range certs {
		names = append(names, fmt.Sprintf("%s (serial number %x, until %s)", name(c), c.SerialNumber, c.NotAfter.UTC().Format(date)))
	}
	return refuse("chain.ambiguous-leaf", "give one vendor certificate only", "",
		"%d certificates may be the vendor's: %s", len(certs), strings.Join(names, ", "))
}

func invalidPath(leaf *x509.Certificate, err error) fault.Finding {
	return refuse("chain.invalid", "use the chain that Apple issued", portalSignature, "the chain of %s is not valid: %v", name(leaf), err)
}

func notApple(root *x509.Certificate) fault.Finding {
	return fault.Finding{ID: "chain.trust-root", Severity: fault.SeverityNote, Portal: portalSignature,
		Message: fmt.Sprintf("the chain ends at %s, a trust root that was given; Apple's portal takes Apple's roots only", name(root))}
}

// refuse makes a finding of severity Error.
func refuse(id, fix, portal, format string, args ...any) fault.Finding {
	return fault.Finding{ID: id, Severity: fault.SeverityError, Message: fmt.Sprintf(format, args...), Fix: fix, Portal: portal}
}

// fetchFix says how to get the issuer of cert.
func fetchFix(cert *x509.Certificate) string {
	if pin, ok := lookupIssuer(cert); ok && !pin.Retired {
		return get(pin)
	} else if ok {
		return fixRenew
	}
	return fmt.Sprintf("add the certificate of %q to the chain", short(cert.Issuer.CommonName))
}

func get(p Pin) string {
	return fmt.Sprintf("run hsmsign chain fetch, or get %s (SHA-256 %s)", p.URL, p.SHA256)
}

// name is how messages call a certificate: its common name, quoted, and for Apple's the short name.
func name(c *x509.Certificate) string {
	n := c.Subject.CommonName
	if n == "" {
		n = c.Subject.String()
	}
	if pin, ok := Lookup(c); ok {
		return fmt.Sprintf("%q (%s)", short(n), pin.Name)
	}
	return fmt.Sprintf("%q", short(n))
}

// short bounds a name out of a certificate: it may be as long as its maker liked.
func short(s string) string {
	const most = 128
	if len(s) <= most {
		return s
	}
	return s[:most] + "..."
}

func keyID(id []byte) string {
	if len(id) == 0 {
		return "(none)"
	}
	return short(hex.EncodeToString(id))
}

func days(d time.Duration) string {
	n := int(d / (24 * time.Hour))
	if n == 1 {
		return "1 day"
	}
	return fmt.Sprintf("%d days", n)
}

func userID(c *x509.Certificate) string {
	for _, attr := range c.Subject.Names {
		if attr.Type.Equal(asn1.ObjectIdentifier{0, 9, 2342, 19200300, 100, 1, 1}) { // RFC 4519 section 2.39
			s, _ := attr.Value.(string)
			return short(s)
		}
	}
	return ""
}

func hasExtension(c *x509.Certificate, id asn1.ObjectIdentifier) bool {
	for _, e := range c.Extensions {
		if e.Id.Equal(id) {
			return true
		}
	}
	return false
}
