package chain

import (
	"crypto/x509"
	"errors"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
	"hsmsign/testpki"
)

func TestBuild(t *testing.T) {
	w := newWorld()
	good := certs(w.vendor, w.WWDR, w.Root)
	other := w.issue(w.RootKey, testpki.VendorOptions{Organization: "Other"})
	old := w.issue(w.key, testpki.VendorOptions{NotBefore: now.AddDate(-1, -6, 0)})
	oldWWDR := certify("", w.WWDRKey, &ca{w.Root, w.RootKey}, func(c *x509.Certificate) {
		c.RawSubject, c.SubjectKeyId, c.NotAfter = w.WWDR.RawSubject, w.WWDR.SubjectKeyId, now.Add(-time.Hour)
	}).cert
	longWWDR := certify("", w.WWDRKey, &ca{w.Root, w.RootKey}, func(c *x509.Certificate) {
		c.RawSubject, c.SubjectKeyId, c.NotAfter = w.WWDR.RawSubject, w.WWDR.SubjectKeyId, now.AddDate(15, 0, 0)
	}).cert
	trustRoot := []string{"note chain.trust-root"}
	tests := []struct {
		name        string
		cert, extra []*x509.Certificate
		opts        Options
		path        []*x509.Certificate
		findings    []string
	}{
		{"leaf and issuers", certs(w.vendor), certs(w.WWDR, w.Root), Options{}, good, trustRoot},
		{"one file", good, nil, Options{}, good, trustRoot},
		{"any order", certs(w.Root, w.vendor, w.WWDR), nil, Options{}, good, trustRoot},
		{"root from the trust roots", certs(w.vendor), certs(w.WWDR), Options{}, good, trustRoot},
		{"duplicates", slices.Concat(good, good), good, Options{}, good, trustRoot},
		{"strangers", certs(w.vendor), certs(w.WWDR, other, w.Root), Options{}, good, append(trustRoot, "note chain.stranger")},
		{"key chooses the leaf", certs(other, w.vendor), certs(w.WWDR), Options{Key: w.key.Public()}, good, append(trustRoot, "note chain.stranger")},
		{"renewed leaf", certs(old, w.vendor), certs(w.WWDR), Options{Key: w.key.Public()}, good, append(trustRoot, "note chain.stranger")},
		{"longest lasting intermediate", certs(w.vendor), certs(w.WWDR, longWWDR), Options{}, certs(w.vendor, longWWDR, w.Root), append(trustRoot, "note chain.stranger")},
		{"renewed intermediate", certs(w.vendor), certs(oldWWDR, w.WWDR), Options{}, good, append(trustRoot, "note chain.stranger")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.opts.Now, tt.opts.TrustRoots = now, certs(w.Root)
			c := testkit.Value(Build(tt.cert, tt.extra, tt.opts))(t)
			if diff := cmp.Diff(subjects(tt.path), subjects(c.Certs)); diff != "" {
				t.Errorf("path (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.findings, summary(c.Findings)); diff != "" {
				t.Errorf("findings (-want +got):\n%s", diff)
			}
			if !c.Leaf().Equal(w.vendor) {
				t.Errorf("leaf is %q", c.Leaf().Subject)
			}
		})
	}
}

// ruleCase is a chain that breaks one rule, leaf first.
type ruleCase struct {
	name     string
	certs    []*x509.Certificate
	opts     Options
	id       string
	portal   string
	mentions []string // in message and fix
}

// leafCases break a rule about the vendor certificate.
func leafCases(w world) []ruleCase {
	issuers := certs(w.WWDR, w.Root)
	ec, small := ecKey(), testkit.KeyOf(1024, "small")
	leaf := func(opts testpki.VendorOptions) []*x509.Certificate { return certs(w.issue(w.key, opts)) }
	return []ruleCase{
		{"expired leaf", slices.Concat(leaf(testpki.VendorOptions{NotBefore: now.AddDate(-1, 0, -10)}), issuers), Options{}, "chain.expired", fault.PortalExpired,
			[]string{"expired 2026-11-10, 10 days ago", "renew the vendor certificate"}},
		{"two expired leaves", slices.Concat(leaf(testpki.VendorOptions{NotBefore: now.AddDate(-2, 0, 0)}), leaf(testpki.VendorOptions{NotBefore: now.AddDate(-1, 0, -10)}), issuers),
			Options{Key: w.key.Public()}, "chain.expired", fault.PortalExpired, []string{"expired 2026-11-10"}},
		{"not yet valid", slices.Concat(leaf(testpki.VendorOptions{NotBefore: now.Add(time.Hour)}), issuers), Options{}, "chain.not-yet-valid", fault.PortalSignature,
			[]string{"valid from 2026-11-20T13:00:00Z", "it is 2026-11-20T12:00:00Z"}},
		{"EC key", slices.Concat(certs(w.issue(ec, testpki.VendorOptions{})), issuers), Options{}, "chain.leaf-key", fault.PortalSignature, []string{"EC on P-256"}},
		{"small key", slices.Concat(certs(w.issue(small, testpki.VendorOptions{})), issuers), Options{}, "chain.leaf-key", fault.PortalSignature, []string{"1024 bits"}},
		{"CA as leaf", certs(w.WWDR, w.Root), Options{}, "chain.leaf-is-ca", fault.PortalSignature, []string{"not a vendor certificate"}},
		{"vendor CA", slices.Concat(leaf(testpki.VendorOptions{IsCA: true}), issuers), Options{Key: w.key.Public()}, "chain.leaf-is-ca", fault.PortalSignature, nil},
		{"key usage", slices.Concat(leaf(testpki.VendorOptions{KeyUsage: x509.KeyUsageKeyEncipherment}), issuers), Options{}, "chain.leaf-usage", fault.PortalSignature, nil},
		{"push certificate", slices.Concat(leaf(testpki.VendorOptions{UID: "com.apple.mgmt.External.6a3f"}), issuers), Options{Key: ec.Public()}, "chain.push-certificate", fault.PortalSignature,
			[]string{"is a push certificate, not the vendor's", "com.apple.mgmt.External.6a3f"}},
		{"key of another", certs(w.vendor, w.WWDR, w.Root), Options{Key: ec.Public()}, "chain.key-mismatch", fault.PortalSignature,
			[]string{SPKISHA256(w.vendor.PublicKey), SPKISHA256(ec.Public())}},
		{"two leaves", slices.Concat(certs(w.vendor), leaf(testpki.VendorOptions{Organization: "Other"}), issuers), Options{}, "chain.ambiguous-leaf", "", []string{`"MDM Vendor: Other"`}},
		{"two of the key", slices.Concat(certs(w.vendor), leaf(testpki.VendorOptions{}), issuers), Options{Key: w.key.Public()}, "chain.ambiguous-leaf", "", nil},
	}
}

// pathCases break a rule about the certificates above it.
func pathCases(w world) []ruleCase {
	selfSigned := w.leafOf(nil)
	impostor := newCA("", nil, func(c *x509.Certificate) {
		c.RawSubject, c.SubjectKeyId = w.WWDR.RawSubject, w.WWDR.SubjectKeyId
	})
	fakeApple := newCA("Apple Root CA", nil, nil)
	fakeWWDR := newCA(wwdr, fakeApple, nil)
	rebuilt := testkit.Authority(now.Add(-time.Hour))
	return []ruleCase{
		{"nothing", nil, Options{}, "chain.empty", fault.PortalChainMissing, nil},
		{"no intermediate", certs(w.vendor), Options{}, "chain.missing-intermediate", fault.PortalSignature,
			[]string{`"MDM Vendor: Example Corp"`, `"hsmsign TEST Worldwide Developer Relations CA"`, keyID(w.WWDR.SubjectKeyId)}},
		{"intermediate of another PKI", certs(w.vendor, rebuilt.WWDR), Options{}, "chain.missing-intermediate", fault.PortalSignature,
			[]string{keyID(rebuilt.WWDR.SubjectKeyId) + " did not issue it"}},
		{"no root", certs(w.vendor, w.WWDR), Options{TrustRoots: certs(rebuilt.Root)}, "chain.missing-root", fault.PortalSignature, []string{`"hsmsign TEST Root CA"`}},
		{"root not trusted", certs(w.vendor, w.WWDR, w.Root), Options{TrustRoots: certs(rebuilt.Root)}, "chain.untrusted", fault.PortalSignature, []string{`"hsmsign TEST Root CA"`}},
		{"root of Apple's name", certs(w.leafOf(fakeWWDR), fakeWWDR.cert, fakeApple.cert), Options{}, "chain.untrusted", fault.PortalSignature,
			[]string{"but not Apple's bytes", "b0b1730ecbc7ff45"}},
		{"self-signed leaf", certs(selfSigned), Options{TrustRoots: certs(selfSigned)}, "chain.untrusted", fault.PortalSignature, nil},
		{"impostor", certs(w.vendor, impostor.cert), Options{}, "chain.signature", fault.PortalSignature, nil},
		{"too many", append(many(), w.vendor), Options{}, "chain.too-many", "", []string{"; at most 64 are allowed"}},
	}
}

// TestRules breaks one rule at a time. Build returns its finding, and Check reports it.
func TestRules(t *testing.T) {
	w := newWorld()
	for _, tt := range append(leafCases(w), pathCases(w)...) {
		t.Run(tt.name, func(t *testing.T) {
			tt.opts.Now = now
			if tt.opts.TrustRoots == nil {
				tt.opts.TrustRoots = certs(w.Root)
			}
			_, err := Build(tt.certs, nil, tt.opts)
			var f *fault.Finding
			if !errors.As(err, &f) {
				t.Fatalf("Build: %v, want a finding", err)
			}
			if f.ID != tt.id || f.Severity != fault.SeverityError || f.Portal != tt.portal || f.Subject() != fault.Chain {
				t.Errorf("Build: %s %s (portal %q), want %s (portal %q)", f.Severity, f.ID, f.Portal, tt.id, tt.portal)
			}
			for _, m := range tt.mentions {
				if !strings.Contains(f.Message+"; "+f.Fix, m) {
					t.Errorf("%q is not in: %s; %s", m, f.Message, f.Fix)
				}
			}
			if f.Fix == "" || f.Message != strings.TrimSpace(f.Message) || strings.ContainsAny(f.Message+f.Fix, "\n\r") {
				t.Errorf("message %q, fix %q: want one line each", f.Message, f.Fix)
			}
			if got := summary(Check(tt.certs, tt.opts)); !slices.Contains(got, "error "+tt.id) {
				t.Errorf("Check: %q, want error %s among them", got, tt.id)
			}
		})
	}
}

// many returns as many certificates as are allowed.
func many() []*x509.Certificate {
	var all []*x509.Certificate
	for range MaxCerts {
		all = append(all, newCA("one of many", nil, nil).cert)
	}
	return all
}

func TestWarnings(t *testing.T) {
	w := newWorld()
	until := func(left time.Duration) []*x509.Certificate {
		return certs(w.issue(w.key, testpki.VendorOptions{NotAfter: now.Add(left)}), w.WWDR, w.Root)
	}
	noUsage := certify("MDM Vendor: Example Corp", w.key, &ca{w.WWDR, w.WWDRKey}, func(c *x509.Certificate) { c.IsCA, c.KeyUsage = false, 0 }).cert
	const day = 24 * time.Hour
	tests := []struct {
		name     string
		certs    []*x509.Certificate
		warnDays int
		want     []string
		mentions string
	}{
		{"good", certs(w.vendor, w.WWDR, w.Root), 0, []string{"note chain.trust-root"}, ""},
		{"30 days", until(30 * day), 0, []string{"note chain.trust-root"}, ""},
		{"29 days", until(30*day - time.Second), 0, []string{"warning chain.expires-soon", "note chain.trust-root"}, "expires 2026-12-20, in 29 days"},
		{"1 day", until(day), 0, []string{"warning chain.expires-soon", "note chain.trust-root"}, "expires 2026-11-21, in 1 day"},
		{"60 days, 90 asked for", until(60 * day), 90, []string{"warning chain.expires-soon", "note chain.trust-root"}, "in 60 days"},
		{"no vendor extension", certs(w.issue(w.key, testpki.VendorOptions{OmitExtension: true}), w.WWDR, w.Root), 0,
			[]string{"warning chain.vendor-extension", "note chain.trust-root"}, "1.2.840.113635.100.4.12"},
		{"no key usage", certs(noUsage, w.WWDR, w.Root), 0, []string{"warning chain.vendor-extension", "note chain.trust-root"}, ""},
		{"critical Apple extension", certs(w.issue(w.key, testpki.VendorOptions{Critical: true}), w.WWDR, w.Root), 0, []string{"note chain.trust-root"}, ""},
		{"root first", certs(w.Root, w.WWDR, w.vendor), 0, []string{"note chain.trust-root", "warning chain.order"}, `Root CA", "hsmsign`},
		{"twice", certs(w.vendor, w.WWDR, w.WWDR, w.Root), 0, []string{"warning chain.duplicate", "note chain.trust-root"}, "more than once"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			findings := Check(tt.certs, Options{Now: now, TrustRoots: certs(w.Root), WarnDays: tt.warnDays})
			if diff := cmp.Diff(tt.want, summary(findings)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if len(findings) > 0 && !slices.ContainsFunc(findings, func(f fault.Finding) bool { return strings.Contains(f.Message, tt.mentions) }) {
				t.Errorf("%q is not in %v", tt.mentions, findings)
			}
			if _, err := Build(tt.certs, nil, Options{Now: now, TrustRoots: certs(w.Root)}); err != nil {
				t.Errorf("Build: %v", err)
			}
		})
	}
}

// A number of days below zero turns the warning off, never the refusal.
func TestExpiredWithoutWarning(t *testing.T) {
	w := newWorld()
	expired := certs(w.issue(w.key, testpki.VendorOptions{NotAfter: now.Add(-time.Hour)}), w.WWDR, w.Root)
	_, err := Build(expired, nil, Options{Now: now, TrustRoots: certs(w.Root), WarnDays: -1})
	if f, ok := errors.AsType[*fault.Finding](err); !ok || f.ID != "chain.expired" {
		t.Errorf("error %v; want chain.expired", err)
	}
}

// Check reports several defects at once.
func TestCheckReportsAll(t *testing.T) {
	w := newWorld()
	leaf := w.issue(ecKey(), testpki.VendorOptions{NotBefore: now.AddDate(-2, 0, 0), OmitExtension: true})
	got := summary(Check(certs(w.WWDR, leaf, leaf), Options{Now: now, TrustRoots: certs(w.Root), Key: w.key.Public()}))
	want := []string{"warning chain.duplicate", "error chain.leaf-key", "warning chain.vendor-extension", "error chain.key-mismatch",
		"error chain.missing-root", "error chain.expired", "warning chain.order"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// PEM has 64 characters in every line but the last of a certificate, and a newline after every END line.
func TestPEM(t *testing.T) {
	w := newWorld()
	c := testkit.Must(Build(certs(w.vendor), certs(w.WWDR), Options{Now: now, TrustRoots: certs(w.Root)}))
	form := regexp.MustCompile(`^(-----BEGIN CERTIFICATE-----\n([A-Za-z0-9+/]{64}\n)+[A-Za-z0-9+/=]{1,64}\n-----END CERTIFICATE-----\n){3}$`)
	again, err := Parse([]byte(c.PEM()))
	if !form.MatchString(c.PEM()) || err != nil || !slices.EqualFunc(c.Certs, again, (*x509.Certificate).Equal) {
		t.Errorf("%v\n%s", err, c.PEM())
	}
}

func TestSPKISHA256(t *testing.T) {
	if got := SPKISHA256("not a key"); got != "" {
		t.Errorf("%q for a value that is not a key", got)
	}
	a, b := newWorld().key.Public(), newWorld().WWDRKey.Public()
	if len(SPKISHA256(a)) != 64 || SPKISHA256(a) == SPKISHA256(b) {
		t.Errorf("%q and %q", SPKISHA256(a), SPKISHA256(b))
	}
}

// Build also refuses bytes inside a certificate that another parser accepted.
func TestBuildIsStrict(t *testing.T) {
	w := newWorld()
	vendor := testkit.Must(x509.ParseCertificate(longer(w.vendor.Raw)))
	_, err := Build(certs(vendor), certs(w.WWDR, w.Root), Options{Now: now, TrustRoots: certs(w.Root)})
	if testkit.FindingID(err) != "chain.unreadable" || !strings.Contains(err.Error(), "2 bytes follow the signature") {
		t.Error(err)
	}
}
