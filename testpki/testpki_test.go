package testpki_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hsmsign/internal/testkit"
	"hsmsign/testpki"

	"github.com/google/go-cmp/cmp"
)

var now = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

func testAuthority() *testpki.Authority { return testkit.Authority(now) }

func ecKey() *ecdsa.PrivateKey { return testkit.Must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) }

// extensions returns the object identifiers of a certificate's extensions, and whether each is critical.
func extensions(c *x509.Certificate) map[string]bool {
	m := map[string]bool{}
	for _, e := range c.Extensions {
		m[e.Id.String()] = e.Critical
	}
	return m
}

func TestShape(t *testing.T) {
	a := testAuthority()
	vendor := testkit.Must(a.IssueVendor(testkit.CSR(ecKey()), testpki.VendorOptions{Organization: "Example Corp", NotBefore: now}))
	type shape struct {
		Subject, Issuer string
		From, Until     time.Time
		Algorithm       string
		Extensions      map[string]bool // critical or not
	}
	const (
		root = "CN=hsmsign TEST Root CA,O=hsmsign TEST PKI - not Apple,C=US"
		wwdr = "CN=hsmsign TEST Worldwide Developer Relations CA,OU=G3,O=hsmsign TEST PKI - not Apple,C=US"
		ski  = "2.5.29.14"
		ku   = "2.5.29.15"
		bc   = "2.5.29.19"
		aki  = "2.5.29.35"
	)
	tests := []struct {
		cert *x509.Certificate
		want shape
	}{
		{a.Root, shape{root, root, now.Add(-time.Hour), now.Add(-time.Hour).AddDate(25, 0, 0), "SHA256-RSA",
			map[string]bool{ski: false, ku: true, bc: true}}},
		{a.WWDR, shape{wwdr, root, now.Add(-time.Hour), now.Add(-time.Hour).AddDate(10, 0, 0), "SHA256-RSA",
			map[string]bool{ski: false, ku: true, bc: true, aki: false, "1.2.840.113635.100.6.2.1": false}}},
		{vendor, shape{"CN=MDM Vendor: Example Corp,OU=hsmsign TEST PKI - not Apple,O=Example Corp,C=US,UID=", wwdr, now, now.AddDate(1, 0, 0), "SHA256-RSA",
			map[string]bool{ski: false, ku: true, bc: true, aki: false, "1.2.840.113635.100.4.12": false}}},
	}
	for _, tt := range tests {
		subject, uid, _ := strings.Cut(tt.cert.Subject.String(), "0.9.2342.19200300.100.1.1=")
		if uid != "" {
			subject = strings.TrimSuffix(subject, ",") + ",UID="
			if v, ok := tt.cert.Subject.Names[0].Value.(string); !ok || len(v) != 10 {
				t.Errorf("subject begins with %v, want a user id of 10 characters", tt.cert.Subject.Names[0])
			}
		}
		got := shape{subject, tt.cert.Issuer.String(), tt.cert.NotBefore, tt.cert.NotAfter, tt.cert.SignatureAlgorithm.String(), extensions(tt.cert)}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.want.Subject, diff)
		}
	}
	if !a.WWDR.MaxPathLenZero || a.WWDR.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign {
		t.Errorf("WWDR: path length zero %v, key usage %b", a.WWDR.MaxPathLenZero, a.WWDR.KeyUsage)
	}
	if !strings.Contains(a.Root.Subject.String()+a.WWDR.Subject.String()+vendor.Subject.String(), "not Apple") {
		t.Error("a name does not say that it is a test")
	}
}

// WWDR has the extensions of the real WWDR G3, except those that name Apple's servers.
func TestShapeLikeApple(t *testing.T) {
	g3 := testkit.Apple(t, "AppleWWDRCAG3.cer")
	want := extensions(g3)
	delete(want, "1.3.6.1.5.5.7.1.1") // authority information access
	delete(want, "2.5.29.31")         // CRL distribution points
	if diff := cmp.Diff(want, extensions(testAuthority().WWDR)); diff != "" {
		t.Errorf("(-Apple +ours):\n%s", diff)
	}
}

func TestIssueVendorVerifies(t *testing.T) {
	a := testAuthority()
	roots, inter := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(a.Root)
	inter.AddCert(a.WWDR)
	csr := testkit.CSR(ecKey())
	csr.Subject.Organization = []string{"From The CSR"}
	for _, tt := range []struct {
		name string
		opts testpki.VendorOptions
		cn   string
		ok   bool
	}{
		{"zero", testpki.VendorOptions{NotBefore: now}, "MDM Vendor: From The CSR", true},
		{"organization", testpki.VendorOptions{NotBefore: now, Organization: "Acme"}, "MDM Vendor: Acme", true},
		{"no extension", testpki.VendorOptions{NotBefore: now, OmitExtension: true}, "MDM Vendor: From The CSR", true},
		{"critical", testpki.VendorOptions{NotBefore: now, Critical: true}, "MDM Vendor: From The CSR", false},
		{"expired", testpki.VendorOptions{NotBefore: now.AddDate(-2, 0, 0)}, "MDM Vendor: From The CSR", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := a.IssueVendor(csr, tt.opts)
			if err != nil {
				t.Fatal(err)
			}
			if c.Subject.CommonName != tt.cn {
				t.Errorf("common name %q, want %q", c.Subject.CommonName, tt.cn)
			}
			_, err = c.Verify(x509.VerifyOptions{Roots: roots, Intermediates: inter, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
			if (err == nil) != tt.ok {
				t.Errorf("Verify: %v, want ok %v", err, tt.ok)
			}
			if _, has := extensions(c)["1.2.840.113635.100.4.12"]; has == tt.opts.OmitExtension {
				t.Errorf("vendor extension present: %v", has)
			}
		})
	}
}

func TestSaveLoad(t *testing.T) {
	a := testAuthority()
	dir := filepath.Join(t.TempDir(), "pki")
	if err := a.Save(dir); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"root.key", "wwdr.key", "integration.key"} {
		info, err := os.Stat(filepath.Join(dir, f))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v; want mode 0600", f, info.Mode(), err)
		}
	}
	b, err := testpki.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if !b.Root.Equal(a.Root) || !b.WWDR.Equal(a.WWDR) || !b.Integration.Equal(a.Integration) || !b.IntegrationKey.Equal(a.IntegrationKey) || !b.RootKey.Equal(a.RootKey) || !b.WWDRKey.Equal(a.WWDRKey) {
		t.Error("Load returns another authority than Save wrote")
	}
	if _, err := b.IssueVendor(testkit.CSR(ecKey()), testpki.VendorOptions{}); err != nil {
		t.Errorf("issue from the loaded authority: %v", err)
	}
}

func TestSaveNeverOverwrites(t *testing.T) {
	for _, there := range []string{"root.pem", "root.key", "wwdr.pem", "wwdr.key", "integration.pem", "integration.key"} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, there), []byte("mine"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := testAuthority().Save(dir); !errors.Is(err, fs.ErrExist) {
			t.Errorf("%s: %v, want fs.ErrExist", there, err)
		}
		b, err := os.ReadFile(filepath.Join(dir, there)) // #nosec G304 -- a folder of this test
		if err != nil || string(b) != "mine" {
			t.Errorf("%s was overwritten", there)
		}
		if entries, _ := os.ReadDir(dir); len(entries) != 1 {
			t.Errorf("%s: %d files, want nothing else written", there, len(entries))
		}
	}
}

func TestLoadRefuses(t *testing.T) {
	a := testAuthority()
	alien := *a
	alien.Root, alien.RootKey = testkit.Authority(now.Add(time.Hour)).Root, testkit.Authority(now.Add(time.Hour)).RootKey
	swapped := *a
	swapped.Root, swapped.RootKey = a.WWDR, a.WWDRKey
	copyTo := func(from, to string) func(dir string) error {
		return func(dir string) error {
			return os.WriteFile(filepath.Join(dir, to), testkit.Must(os.ReadFile(filepath.Join(dir, from))), 0o600) // #nosec G304 G703 -- a folder of this test
		}
	}
	remove := func(name string) func(dir string) error {
		return func(dir string) error { return os.Remove(filepath.Join(dir, name)) }
	}
	nothing := func(string) error { return nil }
	for _, tt := range []struct {
		name   string
		a      *testpki.Authority
		damage func(dir string) error
		want   string
		is     error
	}{
		{"no root key", a, remove("root.key"), "root.key", fs.ErrNotExist},
		{"no WWDR", a, remove("wwdr.pem"), "wwdr.pem", fs.ErrNotExist},
		{"half an integration CA", a, remove("integration.key"), "integration.pem", fs.ErrExist},
		{"key of another", a, copyTo("root.key", "wwdr.key"), "does not match the certificate", nil},
		{"certificate for key", a, copyTo("root.pem", "root.key"), "is not one PRIVATE KEY block", nil},
		{"WWDR of another root", &alien, nothing, "was not issued by", nil},
		{"WWDR as root", &swapped, nothing, "is not the root of a test PKI", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := tt.a.Save(dir); err != nil {
				t.Fatal(err)
			}
			if err := tt.damage(dir); err != nil {
				t.Fatal(err)
			}
			_, err := testpki.Load(dir)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("error %v does not wrap %v", err, tt.is)
			}
		})
	}
}
