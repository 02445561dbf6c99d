package pushcert

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"hsmsign/chain"
	"hsmsign/fault"
	"hsmsign/internal/testkit"
	"hsmsign/testpki"
)

var now = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

// kit is a test authority, two customer keys, and a vendor certificate of the first.
type kit struct {
	authority  *testpki.Authority
	key, other *rsa.PrivateKey
	vendor     *x509.Certificate
}

func newKit() *kit {
	k := &kit{authority: testkit.Authority(now), key: testkit.Key("customer"), other: testkit.Key("other")}
	k.vendor = testkit.Must(k.authority.IssueVendor(testkit.CSR(k.key), testpki.VendorOptions{NotBefore: now}))
	return k
}

// issue returns a push certificate for a key.
func (k *kit) issue(key crypto.Signer, opts testpki.PushOptions) *Certificate {
	if opts.NotBefore.IsZero() {
		opts.NotBefore = now
	}
	cert := testkit.Must(k.authority.IssuePush(testkit.CSR(key), opts))
	return &Certificate{cert, Topic(cert)}
}

func TestParseCertificate(t *testing.T) {
	k := newKit()
	cert := k.issue(k.key, testpki.PushOptions{})
	another := k.issue(k.key, testpki.PushOptions{})
	list := func(certs ...*x509.Certificate) string { return chain.PEM(certs) }
	app := selfSigned(k.key, "com.example.app")
	csr := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: testkit.CSR(k.key).Raw})
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: testkit.Must(x509.MarshalPKCS8PrivateKey(k.key))})
	for _, tt := range []struct{ name, data, id, message string }{
		{"PEM", list(cert.Certificate), "", ""},
		{"DER", string(cert.Raw), "", ""},
		{"with its CA", list(k.authority.Integration, cert.Certificate), "", ""},
		{"vendor", list(k.vendor), "push.kind", "this is the MDM vendor's certificate"},
		{"vendor chain", list(k.vendor, k.authority.WWDR, k.authority.Root), "push.kind", "this is the MDM vendor's certificate"},
		{"CA", list(k.authority.Root), "push.kind", `the certificate of a CA, "hsmsign TEST Root CA"`},
		{"app", list(app), "push.kind", `the topic "com.example.app", which is not MDM's`},
		{"any", list(selfSigned(k.key, "")), "push.kind", `the certificate of "stranger"`},
		{"two", list(cert.Certificate, another.Certificate), "push.count", "several push certificates"},
		{"CSR", string(csr), "push.unreadable", "a certificate signing request"},
		{"key", string(key), "push.unreadable", "a private key"},
		{"empty", "", "push.unreadable", "empty"},
		{"cut", list(cert.Certificate)[:200], "push.unreadable", ""},
		{"large", strings.Repeat("x", MaxCertificate+1), "push.unreadable", "larger than"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseCertificate([]byte(tt.data))
			if testkit.FindingID(err) != tt.id || tt.id == "" && err != nil {
				t.Fatalf("%v, want %q", err, tt.id)
			}
			if err != nil {
				if !strings.Contains(err.Error(), tt.message) || strings.Contains(err.Error(), "\n") {
					t.Errorf("%q, want %q", err, tt.message)
				}
				return
			}
			if !got.Equal(cert.Certificate) || got.Topic != cert.Topic || !strings.HasPrefix(got.Topic, "com.apple.mgmt.External.") {
				t.Errorf("another certificate, topic %q", got.Topic)
			}
		})
	}
}

// selfSigned returns a certificate that is not for MDM.
func selfSigned(key *rsa.PrivateKey, uid string) *x509.Certificate {
	names := []pkix.AttributeTypeAndValue{{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "stranger"}}
	if uid != "" {
		names = append(names, pkix.AttributeTypeAndValue{Type: asn1.ObjectIdentifier{0, 9, 2342, 19200300, 100, 1, 1}, Value: uid})
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{ExtraNames: names}, NotAfter: now}
	return testkit.Must(x509.ParseCertificate(testkit.Must(x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key))))
}

func TestCheck(t *testing.T) {
	k := newKit()
	cert := k.issue(k.key, testpki.PushOptions{})
	end := cert.NotAfter
	for _, tt := range []struct {
		at   time.Time
		want string
	}{
		{cert.NotBefore.Add(-time.Second), "push.not-yet-valid"},
		{cert.NotBefore, ""},
		{end.Add(-30 * 24 * time.Hour), ""},
		{end.Add(-30*24*time.Hour + time.Second), "push.expires-soon"},
		{end, "push.expires-soon"},
		{end.Add(time.Second), "push.expired"},
	} {
		got := ""
		for _, f := range cert.Check(tt.at) {
			got += f.ID
		}
		if got != tt.want {
			t.Errorf("at %v: %q, want %q", tt.at, got, tt.want)
		}
	}
}

func TestMatchKey(t *testing.T) {
	k := newKit()
	cert := k.issue(k.key, testpki.PushOptions{})
	if err := cert.MatchKey(k.key.Public()); err != nil {
		t.Error(err)
	}
	err := cert.MatchKey(k.other.Public())
	if testkit.FindingID(err) != "push.key-mismatch" || !strings.Contains(err.Error(), chain.SPKISHA256(k.other.Public())) {
		t.Errorf("another key: %v", err)
	}
}

func TestCheckRenewal(t *testing.T) {
	k := newKit()
	old := k.issue(k.key, testpki.PushOptions{})
	later := now.AddDate(0, 11, 0)
	for _, tt := range []struct {
		name     string
		old, new *Certificate
		at       time.Time
		want     string
	}{
		{"same key", old, k.issue(k.key, testpki.PushOptions{Topic: old.Topic, NotBefore: later}), later, ""},
		{"new key", old, k.issue(k.other, testpki.PushOptions{Topic: old.Topic, NotBefore: later}), later, ""},
		{"other topic", old, k.issue(k.key, testpki.PushOptions{NotBefore: later}), later, "push.topic"},
		{"topic in capitals", old, k.issue(k.key, testpki.PushOptions{NotBefore: later, Topic: "com.apple.mgmt.External." + strings.ToUpper(strings.TrimPrefix(old.Topic, "com.apple.mgmt.External."))}), later, "push.topic"},
		{"twice the same", old, old, later, "push.not-later"},
		{"exchanged", k.issue(k.key, testpki.PushOptions{Topic: old.Topic, NotBefore: later}), old, later, "push.not-later"},
		{"not yet", old, k.issue(k.key, testpki.PushOptions{Topic: old.Topic, NotBefore: later}), now, "push.not-yet-valid"},
		{"expired itself", old, k.issue(k.key, testpki.PushOptions{Topic: old.Topic, NotBefore: later}), later.AddDate(2, 0, 0), "push.expired"},
	} {
		err := CheckRenewal(tt.old, tt.new, tt.at)
		if testkit.FindingID(err) != tt.want || tt.want == "" && err != nil {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}

func TestSeeds(t *testing.T) { testkit.Seeds(t, "FuzzParseCertificate", 3) }

// FuzzParseCertificate checks that an error is a bounded finding, and that an accepted certificate is also accepted alone.
func FuzzParseCertificate(f *testing.F) {
	f.Fuzz(func(t *testing.T, data []byte) {
		cert, err := ParseCertificate(data)
		if err != nil {
			checkFinding(t, err)
			return
		}
		again, err := ParseCertificate(cert.Raw)
		if err != nil || again.Topic != cert.Topic || !strings.HasPrefix(cert.Topic, topicPrefix) {
			t.Errorf("alone: %v", err)
		}
		for _, f := range cert.Check(now) {
			checkFinding(t, &f)
		}
		if CheckRenewal(cert, again, now) == nil {
			t.Error("a certificate renews itself")
		}
	})
}

func checkFinding(t *testing.T, err error) {
	t.Helper()
	f, ok := errors.AsType[*fault.Finding](err)
	if !ok || f.Subject() != fault.Push || f.Fix == "" || len(f.Message) > 1000 {
		t.Errorf("%T %q", err, err)
	}
}
