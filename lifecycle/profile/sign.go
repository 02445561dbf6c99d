package profile

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"slices"
	"strings"
	"time"

	"howett.net/plist"

	"hsmsign/fault"
	"hsmsign/internal/cms"
	"hsmsign/internal/pemtext"
	"hsmsign/signer"
)

// ErrIdentity is the error family of certificates that cannot sign profiles.
var ErrIdentity = fault.Vendor.New("the profile certificate cannot sign profiles")

// oidMDMVendor marks Apple's MDM vendor certificates.
var oidMDMVendor = asn1.ObjectIdentifier{1, 2, 840, 113635, 100, 4, 12}

// NewChain returns the chain that is included in a signature: the leaf and its issuers among extra, in this order. The error
// wraps ErrIdentity if the leaf cannot sign profiles, if its issuer is not among extra, or if a certificate is not valid at
// the time now.
func NewChain(leaf *x509.Certificate, extra []*x509.Certificate, now time.Time) ([]*x509.Certificate, error) {
	if err := CheckSigner(leaf); err != nil {
		return nil, err
	}
	chain := cms.Chain(leaf, extra)
	if len(chain) == 1 && !bytes.Equal(leaf.RawIssuer, leaf.RawSubject) {
		return nil, fault.Errorf("%w: the certificate of its issuer %q is missing", ErrIdentity, leaf.Issuer.CommonName).
			Fix("add it below chain, with those above it")
	}
	return chain, CheckDates(chain, now)
}

// CheckDates returns an error that wraps ErrIdentity if a certificate is not valid at the time now.
func CheckDates(chain []*x509.Certificate, now time.Time) error {
	for _, cert := range chain {
		switch {
		case now.After(cert.NotAfter):
			return fault.Errorf("%w: %q expired on %s, and devices would show the profile as \"Unverified\"", ErrIdentity, cert.Subject.CommonName, day(cert.NotAfter)).
				Fix("get a new certificate")
		case now.Before(cert.NotBefore):
			return fault.Errorf("%w: %q is valid from %s on", ErrIdentity, cert.Subject.CommonName, day(cert.NotBefore)).Fix("check the clock")
		}
	}
	return nil
}

func day(t time.Time) string { return t.UTC().Format(time.DateOnly) }

// CheckSigner returns an error that wraps ErrIdentity if the certificate has no RSA key of 2048 bits or more, is a vendor
// certificate of Apple, or may not sign data.
func CheckSigner(cert *x509.Certificate) error {
	pub, isRSA := cert.PublicKey.(*rsa.PublicKey)
	vendor := strings.HasPrefix(cert.Subject.CommonName, "MDM Vendor:") ||
		slices.ContainsFunc(cert.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(oidMDMVendor) })
	switch {
	case vendor:
		return fault.Errorf("%w: %q is a vendor certificate, and a vendor key signs requests only", ErrIdentity, cert.Subject.CommonName).
			Fix("use a separate key and certificate for profiles")
	case !isRSA || pub.N.BitLen() < 2048:
		return fault.Errorf("%w: %q has no RSA key of 2048 bits or more", ErrIdentity, cert.Subject.CommonName).Fix("use an RSA key")
	case cert.KeyUsage != 0 && cert.KeyUsage&(x509.KeyUsageDigitalSignature|x509.KeyUsageContentCommitment) == 0:
		return fault.Errorf("%w: the key usage of %q excludes signatures", ErrIdentity, cert.Subject.CommonName).Fix("use a certificate for digitalSignature")
	}
	return nil
}

// Sign returns the profile as DER CMS SignedData with SHA-256, with itself and the chain inside. key is that of the first
// certificate of the chain; NewChain makes the chain. The signature is verified before Sign returns.
func Sign(ctx context.Context, key signer.Signer, chain []*x509.Certificate, p *Profile, now time.Time) ([]byte, error) {
	return cms.Sign(ctx, key, chain, p.XML, now)
}

// Encrypt returns the profile with its payloads encrypted for the certificates of devices: PayloadContent is replaced by
// EncryptedPayloadContent, a CMS EnvelopedData (AES-256-CBC) of the property list of the payloads. Each device needs the
// private key of one of the certificates. The result is signed after it. A certificate that cannot be used is a finding,
// profile.recipient.
func Encrypt(p *Profile, devices ...*x509.Certificate) (*Profile, error) {
	if p.Encrypted {
		return nil, fault.Refuse("profile.encrypted", "the profile is encrypted already").WithFix("name the profile from which it was made")
	}
	if len(devices) == 0 || len(devices) > cms.MaxRecipients {
		return nil, fault.Refuse("profile.recipient", "%d device certificates were given, want 1 to %d", len(devices), cms.MaxRecipients).
			WithFix("encrypt one profile for each device")
	}
	for _, cert := range devices {
		if err := cms.CheckRecipient(cert); err != nil {
			return nil, fault.Refuse("profile.recipient", "the device certificate %q: %v", cert.Subject.CommonName, err).WithFix("name the certificate of a device")
		}
	}
	payloads, err := plist.MarshalIndent(p.keys["PayloadContent"], plist.XMLFormat, "\t")
	if err != nil {
		return nil, err
	}
	envelope, err := cms.Encrypt(payloads, devices...)
	if err != nil {
		return nil, err
	}
	keys := map[string]any{}
	for name, value := range p.keys {
		if name != "PayloadContent" {
			keys[name] = value
		}
	}
	keys["EncryptedPayloadContent"], keys["IsEncrypted"] = envelope, true
	data, err := plist.MarshalIndent(keys, plist.XMLFormat, "\t")
	if err != nil {
		return nil, err
	}
	return Parse(append(data, '\n'))
}

// VerifyOptions says what a signed profile is checked against.
type VerifyOptions struct {
	Roots []*x509.Certificate // trusted; empty: trust is not checked
	Now   time.Time
}

// Report is the result of Verify.
type Report struct {
	Signature *cms.Signed // nil if there is none, or it cannot be read
	Profile   *Profile    // nil if it cannot be read
	Findings  []fault.Finding
}

// OK returns whether no finding is an error.
func (r *Report) OK() bool { return fault.First(r.Findings) == nil }

func (r *Report) add(f *fault.Finding) { r.Findings = append(r.Findings, *f) }

// unverified is what a device shows.
const unverified = "; devices show the profile as \"Unverified\""

// Verify checks a signed profile: DER or BER, or the base64 or PEM of it. It says what a device would show.
func Verify(data []byte, o VerifyOptions) *Report {
	r := &Report{}
	if len(data) > 2*MaxSize {
		r.add(fault.Refuse("profile.size", "the profile is larger than %d bytes", 2*MaxSize))
		return r
	}
	message := Decode(data)
	if !cms.IsSigned(message) {
		p, err := Parse(data)
		if err != nil {
			r.addError(err)
			return r
		}
		r.Profile = p
		r.add(fault.Refuse("profile.unsigned", "the profile is not signed; devices show it as \"Not Signed\"").WithFix("sign it with hsmsign profile sign"))
		return r
	}
	signed, err := cms.Verify(message, cms.VerifyOptions{Roots: o.Roots, At: o.Now})
	if err != nil {
		r.addError(err)
		return r
	}
	r.Signature = signed
	for _, f := range signed.Findings {
		switch f.ID {
		case "cms.expired", "cms.not-yet-valid", "cms.untrusted":
			f.Message += unverified
			f.Fix = "sign the profile again with a valid certificate that devices trust"
		case "cms.signature", "cms.signing-time":
			f.Message += "; devices refuse the profile"
			f.Fix = "sign the profile again"
		}
		r.add(&f)
	}
	if len(signed.Chain) == 1 && !bytes.Equal(signed.Signer.RawIssuer, signed.Signer.RawSubject) {
		r.add(fault.Warn("profile.chain", "the issuer %q of the signer is not included%s unless they have it", signed.Signer.Issuer.CommonName, unverified).
			WithFix("sign the profile with the chain"))
	}
	if len(o.Roots) == 0 {
		r.add(fault.Note("profile.trust", "whether devices trust the signer was not checked").WithFix("name the trusted root with --trust-root"))
	}
	if r.Profile, err = Parse(signed.Content); err != nil {
		r.addError(err)
	}
	return r
}

func (r *Report) addError(err error) {
	if f, ok := err.(*fault.Finding); ok { //nolint:errorlint // Parse and cms.Verify return findings
		r.add(f)
		return
	}
	r.add(fault.Refuse("profile.form", "%v", err))
}

// Decode returns the DER of a signed profile that is base64 or PEM; other data does not change.
func Decode(data []byte) []byte {
	if len(data) == 0 || data[0] == 0x30 || bytes.ContainsAny(data[:min(len(data), 64)], "<\x00") {
		return data
	}
	for block := range pemtext.Scan(string(data)) {
		if der, err := block.DER(); err == nil {
			return der
		}
		return data
	}
	if der, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(string(data)), "")); err == nil {
		return der
	}
	return data
}
