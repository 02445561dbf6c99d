package policy

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"regexp"
	"strings"
	"sync"
	"time"

	"hsmsign/fault"
)

// maxLifetime is the longest time from NotBefore to NotAfter of a client certificate.
const maxLifetime = 398 * 24 * time.Hour

// sanForms are the forms of a SAN in a configuration, by kind. A SPIFFE ID has a path: a trust domain alone is no workload.
// They are compiled at their first use: most runs of the program need none.
var sanForms = sync.OnceValue(func() map[string]*regexp.Regexp {
	return map[string]*regexp.Regexp{
		"dns":   regexp.MustCompile(`^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`),
		"email": regexp.MustCompile(`^[!-?A-~]+@[!-?A-~]+$`),
		"uri":   regexp.MustCompile(`^spiffe://[a-z0-9._-]{1,255}(/[A-Za-z0-9._-]+)+$`),
	}
})

// maxSAN is the length of a SAN; that of a SPIFFE ID.
const maxSAN = 2048

// checkSAN returns an error, of kind usage, for a text that is not a SAN.
func checkSAN(san string) error {
	kind, value, _ := strings.Cut(san, ":")
	form := sanForms()[kind]
	if form == nil || len(value) > maxSAN || !form.MatchString(value) || kind == "uri" && (strings.Contains(value+"/", "/./") || strings.Contains(value+"/", "/../")) {
		return fault.Usage.Errorf("client-cert: %q is not a subject alternative name", fault.Clip(san, 64)).
			Fix("write dns:HOST in lower case, email:NAME@HOST or uri:spiffe://DOMAIN/PATH, without wildcards")
	}
	return nil
}

func (p *Policy) addCertificates(c *Caller) error {
	for _, text := range c.from.ClientCert.SPKI {
		hash, err := hex.DecodeString(text)
		if err != nil || len(hash) != sha256.Size || hex.EncodeToString(hash) != text {
			return fault.Usage.Errorf("client-cert: %q is not the SHA-256 of a public key, 64 hex digits in lower case", fault.Clip(text, 80)).
				Fix("openssl x509 -in CERT -pubkey -noout | openssl pkey -pubin -outform DER | sha256sum prints it")
		}
		pin := [sha256.Size]byte(hash)
		if other := p.pins[pin]; other != nil {
			return oneCaller("the "+certificateName(hash), other)
		}
		p.pins[pin] = c
	}
	for _, san := range c.from.ClientCert.SAN {
		if err := checkSAN(san); err != nil {
			return err
		}
		if other := p.sans[san]; other != nil {
			return oneCaller("the name "+san, other)
		}
		p.sans[san] = c
	}
	return nil
}

const certificatePrefix = "certificate "

// certificateName returns the name of a certificate's credential; hash is that of its SubjectPublicKeyInfo.
func certificateName(hash []byte) string { return certificatePrefix + hex.EncodeToString(hash[:8]) }

// Certificate returns the credential that a client certificate is: the TLS handshake has proven that the client has its key.
// The public key may be pinned; or, if verified, which means that its chain was verified under the client-ca for client
// authentication, a subject alternative name may be that of a caller. The certificate is checked at each call: it must be
// valid at now, for at most 398 days as a whole, and must not name two callers. The error is of kind unauthenticated; it has
// the reason for certificates of callers only. The caller of Certificate compares the address with Caller.From.
func (p *Policy) Certificate(leaf *x509.Certificate, verified bool, now time.Time) (Credential, error) {
	spki := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	found := p.pins[spki]
	if verified {
		for _, san := range subjectAltNames(leaf) {
			c := p.sans[san]
			switch {
			case c == nil || c == found:
			case found == nil:
				found = c
			default:
				return refuseCertificate("is that of the callers %s and %s", found.Name, c.Name)
			}
		}
	}
	day := func(t time.Time) string { return t.UTC().Format(time.DateOnly) }
	switch {
	case found == nil:
		return refuseCertificate("is not that of a caller")
	case now.Before(leaf.NotBefore):
		return refuseCertificate("of caller %s is not valid before %s", found.Name, day(leaf.NotBefore))
	case now.After(leaf.NotAfter):
		return refuseCertificate("of caller %s expired on %s", found.Name, day(leaf.NotAfter))
	case leaf.NotAfter.Sub(leaf.NotBefore) > maxLifetime:
		return refuseCertificate("of caller %s is valid from %s to %s, for more than %d days", found.Name, day(leaf.NotBefore), day(leaf.NotAfter), maxLifetime/(24*time.Hour))
	}
	return Credential{Caller: found, Name: certificateName(spki[:])}, nil
}

func refuseCertificate(format string, args ...any) (Credential, error) {
	return Credential{}, fault.Unauthenticated.Errorf("the client certificate "+format, args...).Fix("ask whoever writes the configuration")
}

// The tags of a GeneralName (RFC 5280, section 4.2.1.6), all IA5String.
var sanKinds = map[int]string{1: "email", 2: "dns", 6: "uri"}

// subjectAltNames returns the names of a certificate in the form of the configuration. It reads the extension itself: package
// x509 keeps a URI only after parsing it, and a SPIFFE ID is compared byte by byte. A certificate with several URIs has no
// SPIFFE ID (X.509-SVID, section 2).
func subjectAltNames(leaf *x509.Certificate) []string {
	oid := asn1.ObjectIdentifier{2, 5, 29, 17}
	var names []string
	uris := 0
	for _, extension := range leaf.Extensions {
		if !extension.Id.Equal(oid) {
			continue
		}
		var list []asn1.RawValue
		if rest, err := asn1.Unmarshal(extension.Value, &list); err != nil || len(rest) > 0 {
			return nil
		}
		for _, name := range list {
			kind := sanKinds[name.Tag]
			if name.Class != asn1.ClassContextSpecific || name.IsCompound || kind == "" {
				continue
			}
			value := string(name.Bytes)
			switch kind {
			case "dns":
				value = strings.ToLower(value)
			case "uri":
				uris++
			}
			names = append(names, kind+":"+value)
		}
	}
	if uris <= 1 {
		return names
	}
	var others []string
	for _, name := range names {
		if !strings.HasPrefix(name, "uri:") {
			others = append(others, name)
		}
	}
	return others
}
