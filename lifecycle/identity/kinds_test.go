package identity

import (
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"hsmsign/internal/pfx"
	"hsmsign/internal/testkit"
	"hsmsign/testpki"
)

var now = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

// fixtures are one identity of every kind.
var fixtures = sync.OnceValue(func() []testpki.Identity {
	return testkit.Must(testkit.Authority(now).Identities(now))
})

func fixture(t testing.TB, kind string) testpki.Identity {
	t.Helper()
	i := slices.IndexFunc(fixtures(), func(i testpki.Identity) bool { return i.Kind == kind })
	if i < 0 {
		t.Fatalf("there is no fixture %q", kind)
	}
	return fixtures()[i]
}

// Every kind has all texts and one fixture, and there is no other fixture.
func TestKinds(t *testing.T) {
	var inPKI []string
	for _, i := range fixtures() {
		inPKI = append(inPKI, i.Kind)
	}
	for _, k := range Kinds() {
		if slices.Contains([]string{k.Name, k.IssuedBy, k.NeededBy, k.OnExpiry, k.HSMSign}, "") {
			t.Errorf("%s: a text is missing: %+v", k.ID, k)
		}
		if n := len(slices.DeleteFunc(slices.Clone(inPKI), func(id string) bool { return id != k.ID })); n != 1 {
			t.Errorf("%s has %d fixtures in testpki", k.ID, n)
		}
	}
	for _, id := range inPKI {
		if _, ok := Find(id); !ok {
			t.Errorf("the fixture %q is of no kind", id)
		}
	}
}

// docs/certificates.md has one row for each kind, with the texts of the table, and no other.
func TestCertificatesDocument(t *testing.T) {
	text := string(testkit.Value(os.ReadFile(filepath.Join("..", "..", "docs", "certificates.md")))(t))
	var rows []string
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "| `") {
			rows = append(rows, strings.TrimSpace(line))
		}
	}
	var want []string
	for _, k := range Kinds() {
		want = append(want, fmt.Sprintf("| `%s` | %s | %s | %s | %s | %s |", k.ID, k.Name, k.IssuedBy, k.NeededBy, k.OnExpiry, k.HSMSign))
	}
	if !slices.Equal(rows, want) {
		t.Errorf("docs/certificates.md has not the rows\n%s", strings.Join(want, "\n"))
	}
}

// The kinds that certificates tell of themselves, with the chain in the same file.
func TestDetect(t *testing.T) {
	for kind, want := range map[string]string{
		Vendor: Vendor, AppleCA: "", Push: Push, PushPKCS12: Push, Device: Device, DevicePKCS12: Device, DeviceSCEP: Device, DeviceACME: Device,
		DeviceCA: "", SCEPRA: SCEPRA, ProfileSigner: ProfileSigner, ProfileEncryption: ProfileEncryption, Trusted: "", ServerTLS: ServerTLS,
		ServerCA: "", ABMToken: ABMToken, DEPAnchor: "",
	} {
		i := fixture(t, kind)
		if got := Detect([]*x509.Certificate{i.Certificate})[0]; got != want {
			t.Errorf("%s: %q, want %q", kind, got, want)
		}
	}
	for kind, want := range map[string]string{Vendor: AppleCA, Push: AppleCA, Device: DeviceCA, SCEPRA: DeviceCA, ServerTLS: ServerCA} {
		i := fixture(t, kind)
		file := append([]*x509.Certificate{i.Certificate}, i.Chain...)
		slices.Reverse(file)
		if got := Detect(file); got[0] != want {
			t.Errorf("the chain of %s: %q, want %q", kind, got, want)
		}
	}
	if got := Detect([]*x509.Certificate{testkit.Apple(t, "AppleIncRootCertificate.cer")}); got[0] != AppleCA {
		t.Errorf("Apple's root: %q", got)
	}
}

// What a PKCS#12 file says besides its certificate.
func TestDetectPKCS12(t *testing.T) {
	for kind, want := range map[string]string{PushPKCS12: PushPKCS12, DevicePKCS12: DevicePKCS12, ABMToken: ABMToken, Trusted: ""} {
		if got, findings := DetectPKCS12(&pfx.File{Certificate: fixture(t, kind).Certificate}); got != want || findings != nil {
			t.Errorf("%s: %q, %v; want %q", kind, got, findings, want)
		}
	}
	if kind, findings := DetectPKCS12(&pfx.File{Others: fixture(t, Push).Chain}); kind != "" || findingIDs(findings) != "identity.key-mismatch" {
		t.Errorf("%q, %v", kind, findings)
	}
}
