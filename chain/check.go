package chain

import (
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"hsmsign/fault"
	"hsmsign/internal/strictder"
)

const (
	date       = "2006-01-02"
	minKeyBits = 2048
	maxKeyBits = 8192              // of any RSA key that verifies a signature, as in crypto/tls
	pushTopic  = "com.apple.mgmt." // prefix of the subject UID of an MDM push certificate
	maxName    = 128               // bytes of a name from a certificate in a message

	fixLeaf  = "give the certificate that Apple issued for the MDM vendor's CSR (\"MDM Vendor: ...\")"
	fixKey   = "make a vendor CSR with an RSA-2048 key and have Apple issue a certificate for it"
	fixRenew = "renew the vendor certificate in the Apple Developer account; hsmsign vendor csr makes its CSR"
)

// refuse returns a finding of severity error for a chain whose signature Apple's portal would not verify.
func refuse(id, format string, args ...any) *fault.Finding {
	return fault.Refuse(id, format, args...).WithPortal(fault.PortalSignature)
}

// checkLeaf checks that a certificate can sign Push Certificate Requests.
func checkLeaf(c *x509.Certificate) []fault.Finding {
	if uid := userID(c); strings.HasPrefix(uid, pushTopic) || c.Issuer.CommonName == pushCA {
		return []fault.Finding{*refuse("chain.push-certificate", "%s is a push certificate, not the vendor's (user id %q, issued by %q)",
			name(c), uid, c.Issuer.CommonName).WithFix(fixLeaf)}
	}
	if c.IsCA {
		return []fault.Finding{*refuse("chain.leaf-is-ca", "%s is a certificate authority, not a vendor certificate", name(c)).WithFix(fixLeaf)}
	}
	var f []fault.Finding
	if pub, ok := c.PublicKey.(*rsa.PublicKey); !ok {
		f = append(f, *refuse("chain.leaf-key", "%s contains a key of type %s; Apple accepts RSA only", name(c), strictder.KeyType(c.RawSubjectPublicKeyInfo)).WithFix(fixKey))
	} else if bits := pub.N.BitLen(); bits < minKeyBits || bits > maxKeyBits {
		f = append(f, *refuse("chain.leaf-key", "%s contains an RSA key of %d bits; %d to %d are accepted", name(c), bits, minKeyBits, maxKeyBits).WithFix(fixKey))
	}
	if c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		f = append(f, *refuse("chain.leaf-usage", "%s must not sign data: its key usage lacks digitalSignature", name(c)).WithFix(fixLeaf))
	}
	if !HasVendorExtension(c) {
		f = append(f, *fault.Warn("chain.vendor-extension", "%s lacks Apple's extension %v, which marks an MDM vendor's certificate", name(c), vendorExtension).
			WithFix("make sure that Apple issued this certificate for the MDM vendor's CSR; if so, ignore this"))
	}
	return f
}

// checkDates checks that every certificate of the path is valid now and for some time to come.
func checkDates(path []*x509.Certificate, opts Options) []fault.Finding {
	warn := max(0, time.Duration(opts.WarnDays)*24*time.Hour)
	var f []fault.Finding
	for i, c := range path {
		left := c.NotAfter.Sub(opts.Now)
		if !opts.Now.Before(c.NotBefore) && left >= warn {
			continue
		}
		if pin, ok := Lookup(c); ok && pin.Retired {
			continue // chain.wwdr-g1 reports it
		}
		fix := "use the certificate of this name that is valid now; hsmsign chain fetch downloads Apple's"
		if i == 0 {
			fix = fixRenew
		}
		switch {
		case opts.Now.Before(c.NotBefore):
			f = append(f, *refuse("chain.not-yet-valid", "%s is valid from %s on; it is %s", name(c),
				c.NotBefore.UTC().Format(time.RFC3339), opts.Now.UTC().Format(time.RFC3339)).WithFix("check this machine's clock, or wait"))
		case left < 0:
			f = append(f, *fault.Refuse("chain.expired", "%s expired %s, %s ago", name(c), c.NotAfter.UTC().Format(date), days(-left)).
				WithFix(fix).WithPortal(fault.PortalExpired))
		default:
			f = append(f, *fault.Warn("chain.expires-soon", "%s expires %s, in %s", name(c), c.NotAfter.UTC().Format(date), days(left)).WithFix(fix))
		}
	}
	return f
}

// incomplete returns the reason why the path does not reach a trusted certificate.
func incomplete(path, pool []*x509.Certificate) *fault.Finding {
	top := path[len(path)-1]
	if pin, ok := Lookup(top); ok && pin.Retired {
		return retired(top, pin, true)
	}
	if selfIssued(top) {
		return untrusted(top)
	}
	circle := false // two authorities that certified each other
	for _, c := range pool {
		if !named(top, c) || !keyIDsMatch(top, c) {
			continue
		}
		if slices.ContainsFunc(path, c.Equal) {
			circle = true
			continue
		}
		if err := checkSignature(top, c); err != nil {
			return refuse("chain.signature", "the signature of %s is not by %s, which has the name of its issuer: %v", name(top), name(c), err).
				WithFix("get the certificate of the issuer again: " + fetchFix(top))
		}
		return refuse("chain.too-long", "no trusted root within %d certificates of %s", MaxPath, name(path[0])).
			WithFix("give only the certificates between the vendor's and Apple's root")
	}
	if circle {
		return untrusted(top)
	}
	return missing(path, pool)
}

// missing returns the finding for the issuer that the end of the path lacks.
func missing(path, pool []*x509.Certificate) *fault.Finding {
	top := path[len(path)-1]
	id, what := "chain.missing-intermediate", "the intermediate"
	pin, pinned := lookupIssuer(top)
	if pinned && pin.Root || !pinned && len(path) > 1 {
		id, what = "chain.missing-root", "the root"
	}
	msg := fmt.Sprintf("%s that issued %s is missing: %q", what, name(top), fault.Clip(top.Issuer.CommonName, maxName))
	if pinned {
		msg += " (" + pin.Name + ")"
	}
	if len(top.AuthorityKeyId) > 0 {
		msg += ", key id " + keyID(top.AuthorityKeyId)
	}
	// With the wrong generation of WWDR, or a test PKI that was made again, there is a certificate with the right name.
	for _, c := range pool {
		if c.Subject.CommonName == top.Issuer.CommonName && !slices.ContainsFunc(path, c.Equal) {
			msg += fmt.Sprintf("; %s with key id %s did not issue it", name(c), keyID(c.SubjectKeyId))
			break
		}
	}
	return refuse(id, "%s", msg).WithFix(fetchFix(top))
}

func untrusted(top *x509.Certificate) *fault.Finding {
	msg := fmt.Sprintf("the chain ends at %s, which is neither Apple's root nor one of the given trust roots", name(top))
	for _, p := range Pins() {
		if p.Root && p.Subject == top.Subject.CommonName {
			msg += fmt.Sprintf("; it has Apple's name but not Apple's bytes (SHA-256 %s, Apple's is %s)", sha256Hex(top.Raw), p.SHA256)
		}
	}
	return refuse("chain.untrusted", "%s", msg).WithFix("use a certificate that Apple issued; for a test PKI name its root as a trust root")
}

// retired returns the finding for WWDR G1, which expired and is still part of many guides and chain files. Its key is not
// that of G3: a vendor certificate that it issued must be renewed. It is only a warning if the path does not contain it.
func retired(c *x509.Certificate, pin Pin, inPath bool) *fault.Finding {
	f := fault.Warn("chain.wwdr-g1", "%s expired %s and must not be used", name(c), pin.NotAfter.Format(date))
	for _, p := range Pins() {
		if p.Name == "WWDR G3" {
			f.Fix = "use WWDR G3: " + download(p)
		}
	}
	if inPath {
		f.Severity, f.Portal, f.Fix = fault.SeverityError, fault.PortalExpired, fixRenew+"; then "+f.Fix
	}
	return f
}

// strangers returns a finding for each certificate that does not belong to the path.
func strangers(certs, path []*x509.Certificate) []fault.Finding {
	var f []fault.Finding
	for _, c := range certs {
		if slices.ContainsFunc(path, c.Equal) {
			continue
		}
		if pin, ok := Lookup(c); ok && pin.Retired {
			f = append(f, *retired(c, pin, false))
			continue
		}
		f = append(f, *fault.Note("chain.stranger", "%s does not belong to the chain", name(c)))
	}
	return f
}

// order checks that the leaf is first and the root last. Requests with another order exist; whether the portal accepts
// them is unknown.
func order(certs, path []*x509.Certificate) []fault.Finding {
	members := filter(certs, func(c *x509.Certificate) bool { return slices.ContainsFunc(path, c.Equal) })
	if slices.EqualFunc(members, path, (*x509.Certificate).Equal) {
		return nil
	}
	var names []string
	for _, c := range members {
		names = append(names, name(c))
	}
	return []fault.Finding{*fault.Warn("chain.order", "the certificates are out of order: %s", strings.Join(names, ", ")).
		WithFix("put the vendor certificate first and the root last")}
}

func empty(message string) *fault.Finding {
	return fault.Refuse("chain.empty", "%s", message).
		WithFix("add the vendor certificate, the WWDR intermediate and Apple's root").WithPortal(fault.PortalChainMissing)
}

func tooMany(n int) *fault.Finding {
	return fault.Refuse("chain.too-many", "%d certificates; at most %d are allowed", n, MaxCerts).
		WithFix("give only the vendor certificate, the WWDR intermediate and Apple's root")
}

func keyMismatch(c *x509.Certificate, key crypto.PublicKey) *fault.Finding {
	return refuse("chain.key-mismatch", "%s is not the certificate of the key: it contains the public key with SHA-256 %s, the key has %s",
		name(c), SPKISHA256(c.PublicKey), SPKISHA256(key)).WithFix("give the certificate that was issued for this key, or the key of this certificate")
}

// fetchFix returns how to get the issuer of cert.
func fetchFix(cert *x509.Certificate) string {
	pin, ok := lookupIssuer(cert)
	switch {
	case !ok:
		return fmt.Sprintf("add the certificate of %q to the chain", fault.Clip(cert.Issuer.CommonName, maxName))
	case pin.Retired:
		return fixRenew
	}
	return download(pin)
}

// download returns how to get one of Apple's certificates.
func download(p Pin) string {
	return fmt.Sprintf("run hsmsign chain fetch, or download %s (SHA-256 %s)", p.URL, p.SHA256)
}

// name returns the name of a certificate in messages: its common name, quoted, and the short name of Apple's.
func name(c *x509.Certificate) string {
	n := c.Subject.CommonName
	if n == "" {
		n = c.Subject.String()
	}
	n = fmt.Sprintf("%q", fault.Clip(n, maxName))
	if pin, ok := Lookup(c); ok {
		n += " (" + pin.Name + ")"
	}
	return n
}

func keyID(id []byte) string {
	if len(id) == 0 {
		return "(none)"
	}
	return fault.Clip(hex.EncodeToString(id), maxName)
}

func days(d time.Duration) string {
	n := int(d / (24 * time.Hour))
	if n == 1 {
		return "1 day"
	}
	return fmt.Sprintf("%d days", n)
}

// userID returns the attribute UID of the subject (RFC 4519 section 2.39), or "".
func userID(c *x509.Certificate) string {
	for _, attr := range c.Subject.Names {
		if attr.Type.Equal(asn1.ObjectIdentifier{0, 9, 2342, 19200300, 100, 1, 1}) {
			s, _ := attr.Value.(string)
			return fault.Clip(s, maxName)
		}
	}
	return ""
}

var vendorExtension = asn1.ObjectIdentifier{1, 2, 840, 113635, 100, 4, 12}

// HasVendorExtension reports whether a certificate has the extension that marks an MDM vendor certificate. Apple does not
// document it; not every vendor certificate has it.
func HasVendorExtension(c *x509.Certificate) bool {
	return slices.ContainsFunc(c.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(vendorExtension) })
}
