package gcpkms

import (
	"errors"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"github.com/google/go-cmp/cmp"

	"hsmsign/fault"
	"hsmsign/internal/signerkit"
	"hsmsign/internal/testkit"
	"hsmsign/signer"
	"hsmsign/signer/kms"
)

func TestParseReference(t *testing.T) {
	for _, c := range []struct {
		ref  string
		want reference
	}{
		{"//" + vendorOne, reference{name: resource{"mdm-prod", "europe-west1", "mdm", "vendor", "1"}}},
		{"//" + vendor, reference{name: resource{"mdm-prod", "europe-west1", "mdm", "vendor", ""}}},
		{"//projects/example.com:mdm/locations/global", reference{name: resource{project: "example.com:mdm", location: "global"}}},
		{"//" + ring + "?endpoint=127.0.0.1:9010", reference{name: resource{"mdm-prod", "europe-west1", "mdm", "", ""}, endpoint: "127.0.0.1:9010", loopback: true}},
		{"//" + ring + "?endpoint=[::1]:9010", reference{name: resource{"mdm-prod", "europe-west1", "mdm", "", ""}, endpoint: "[::1]:9010", loopback: true}},
		{"//" + ring + "?endpoint=cloudkms.europe-west3.rep.googleapis.com:443", reference{name: resource{"mdm-prod", "europe-west1", "mdm", "", ""}, endpoint: "cloudkms.europe-west3.rep.googleapis.com:443", google: true}},
		{"//" + ring + "?endpoint=192.0.2.2:443", reference{name: resource{"mdm-prod", "europe-west1", "mdm", "", ""}, endpoint: "192.0.2.2:443"}},
		{"//" + ring + "?protection=software", reference{name: resource{"mdm-prod", "europe-west1", "mdm", "", ""}, protection: kmspb.ProtectionLevel_SOFTWARE}},
		{"//" + ring + "?require-hsm=yes&protection=hsm&max-rps=2.5&max-concurrent=3&timeout=1m", reference{
			name: resource{"mdm-prod", "europe-west1", "mdm", "", ""}, requireHSM: true,
			policy: kms.Policy{AttemptTimeout: time.Second, MaxRPS: 2.5, MaxConcurrent: 3, Timeout: time.Minute}}},
	} {
		if c.want.policy == (kms.Policy{}) {
			c.want.policy = kms.Policy{AttemptTimeout: time.Second}
		}
		if c.want.protection == 0 {
			c.want.protection = kmspb.ProtectionLevel_HSM
		}
		got, err := parseReference(signerkit.Ref(t, "gcpkms:"+c.ref), kms.Policy{AttemptTimeout: time.Second})
		if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(reference{}, resource{})); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", c.ref, err, diff)
		}
	}
}

func TestParseReferenceRefuses(t *testing.T) {
	for _, c := range []struct{ ref, says string }{
		{vendorOne, "gcpkms://projects"},
		{"/" + vendorOne, "gcpkms://projects"},
		{"///" + vendorOne, "gcpkms://projects"},
		{"//cloudkms.googleapis.com/" + vendorOne, "gcpkms://projects"},
		{"//projects/mdm-prod", "no location"},
		{"//projects/mdm-prod/locations", "locations/"},
		{"//projects/mdm-prod/locations/", "locations/"},
		{"//projects//locations/global", "projects/"},
		{"//projects/MDM/locations/global", "projects/"},
		{"//projects/mdm-prod/regions/global", `"locations"`},
		{"//projects/mdm-prod/locations/global/keyrings/r", `"keyRings"`},
		{"//projects/mdm-prod/locations/global/keyRings/r r", "keyRings/"},
		{"//projects/mdm-prod/locations/global/keyRings/" + strings.Repeat("r", 64), "keyRings/"},
		{"//" + vendor + "/versions/1", `"cryptoKeyVersions" (case-sensitive); write cryptoKeyVersions/1`},
		{"//" + vendor + "/cryptoKeyVersions/0", "cryptoKeyVersions/"},
		{"//" + vendor + "/cryptoKeyVersions/01", "cryptoKeyVersions/"},
		{"//" + vendor + "/cryptoKeyVersions/latest", "cryptoKeyVersions/"},
		{"//" + vendorOne + "/", "text after the version"},
		{"//" + vendorOne + ":asymmetricSign", "cryptoKeyVersions/"},
		{"//" + vendorOne + "?version=1", "unknown query attribute"},
		{"//" + vendorOne + "?credentials-file=key.json", "unknown query attribute"},
		{"//" + vendorOne + "?endpoint=", "HOST:PORT"},
		{"//" + vendorOne + "?endpoint=127.0.0.1", "HOST:PORT"},
		{"//" + vendorOne + "?endpoint=:9010", "HOST:PORT"},
		{"//" + vendorOne + "?endpoint=127.0.0.1:0", "HOST:PORT"},
		{"//" + vendorOne + "?endpoint=127.0.0.1:65536", "HOST:PORT"},
		{"//" + vendorOne + "?endpoint=localhost:9010", "127.0.0.1"},
		{"//" + vendorOne + "?endpoint=dns:///evil:443", "HOST:PORT"},
		{"//" + vendorOne + "?endpoint=a/b:443", "neither an address nor a name"},
		{"//" + vendorOne + "?require-hsm=no", "yes"},
		{"//" + vendorOne + "?protection=external", "software"},
		{"//" + vendorOne + "?protection=software&require-hsm=yes", "exclude"},
		{"//" + vendorOne + "?max-concurrent=101", "100"},
	} {
		_, err := parseReference(signerkit.Ref(t, "gcpkms:"+c.ref), kms.Policy{})
		if !errors.Is(err, signer.ErrReference) || !strings.Contains(err.Error()+"; "+fault.Hint(err), c.says) {
			t.Errorf("%s: %v, want %q", c.ref, err, c.says)
		}
	}
}

func TestSameVersion(t *testing.T) {
	byID := resource{"mdm-prod", "europe-west1", "mdm", "vendor", "1"}
	byNumber := byID
	byNumber.project = "123456"
	for _, c := range []struct {
		asked    resource
		answered string
		want     bool
	}{
		{byID, vendorOne, true},
		{byID, vendorTwo, false},
		{byID, "", false},
		{byID, strings.Replace(vendorOne, "mdm-prod", "other", 1), false},
		{byNumber, vendorOne, true},
		{byNumber, byNumber.String(), true},
		{byNumber, vendorTwo, false},
		{byNumber, "", false},
	} {
		if got := c.asked.sameVersion(c.answered); got != c.want {
			t.Errorf("%v asked, %q answered: %v", c.asked, c.answered, got)
		}
	}
}

// FuzzReference: a reference that is accepted contains a resource name and nothing else, its attributes are within
// their limits, and plain text is sent to a loopback address only.
func FuzzReference(f *testing.F) {
	testkit.Seeds(f, "FuzzReference", 10)
	f.Fuzz(func(t *testing.T, text string) {
		ref, err := signer.ParseRef(text)
		if err != nil || ref.Scheme != "gcpkms" {
			return
		}
		s, err := parseReference(ref, kms.Policy{})
		if err != nil {
			if !errors.Is(err, signer.ErrReference) {
				t.Fatalf("%q: %v does not wrap ErrReference", text, err)
			}
			return
		}
		again, err := parseResource("//" + s.name.String())
		if err != nil || again != s.name {
			t.Fatalf("%q: %q reads as %+v, %v", text, s.name, again, err)
		}
		if "//"+s.name.String() != ref.Path {
			t.Fatalf("%q: the name is %q", text, s.name)
		}
		if s.loopback && !strings.HasPrefix(s.endpoint, "127.") && !strings.HasPrefix(s.endpoint, "[") {
			t.Fatalf("%q: %q counts as a loopback address", text, s.endpoint)
		}
		p := s.policy
		if p.MaxRPS < 0 || p.MaxRPS > 100_000 || p.MaxConcurrent < 0 || p.MaxConcurrent > 100 || p.Timeout < 0 || p.Timeout > 10*time.Minute {
			t.Fatalf("%q: out of limits: %+v", text, p)
		}
	})
}
