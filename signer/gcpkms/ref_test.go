package gcpkms

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"github.com/google/go-cmp/cmp"

	"hsmsign/signer"
	remote "hsmsign/signer/kms"
)

func TestReferences(t *testing.T) {
	for _, c := range []struct {
		ref  string
		want settings
	}{
		{"//" + vendorOne, settings{name: resource{"mdm-prod", "europe-west1", "mdm", "vendor", "1"}}},
		{"//" + vendor, settings{name: resource{"mdm-prod", "europe-west1", "mdm", "vendor", ""}}},
		{"//projects/example.com:mdm/locations/global", settings{name: resource{project: "example.com:mdm", location: "global"}}},
		{"//" + ring + "?endpoint=127.0.0.1:9010", settings{name: resource{"mdm-prod", "europe-west1", "mdm", "", ""}, endpoint: "127.0.0.1:9010", loopback: true}},
		{"//" + ring + "?endpoint=[::1]:9010", settings{name: resource{"mdm-prod", "europe-west1", "mdm", "", ""}, endpoint: "[::1]:9010", loopback: true}},
		{"//" + ring + "?endpoint=cloudkms.europe-west3.rep.googleapis.com:443", settings{name: resource{"mdm-prod", "europe-west1", "mdm", "", ""}, endpoint: "cloudkms.europe-west3.rep.googleapis.com:443", google: true}},
		{"//" + ring + "?endpoint=192.0.2.2:443", settings{name: resource{"mdm-prod", "europe-west1", "mdm", "", ""}, endpoint: "192.0.2.2:443"}},
		{"//" + ring + "?protection=software", settings{name: resource{"mdm-prod", "europe-west1", "mdm", "", ""}, protection: kmspb.ProtectionLevel_SOFTWARE}},
		{"//" + ring + "?require-hsm=yes&protection=hsm&max-rps=2.5&max-concurrent=3&timeout=1m", settings{
			name: resource{"mdm-prod", "europe-west1", "mdm", "", ""}, requireHSM: true,
			policy: remote.Policy{Attempt: time.Second, MaxRPS: 2.5, MaxConcurrent: 3, Total: time.Minute}}},
	} {
		if c.want.policy == (remote.Policy{}) {
			c.want.policy = remote.Policy{Attempt: time.Second}
		}
		if c.want.protection == 0 {
			c.want.protection = kmspb.ProtectionLevel_HSM
		}
		got, err := parse(reference(t, "gcpkms:"+c.ref), remote.Policy{Attempt: time.Second})
		if err != nil {
			t.Errorf("%s: %v", c.ref, err)
		} else if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(settings{}, resource{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.ref, diff)
		}
	}
}

func TestMalformedReferences(t *testing.T) {
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
		{"//" + vendor + "/versions/1", `"cryptoKeyVersions"`},
		{"//" + vendor + "/cryptoKeyVersions/0", "cryptoKeyVersions/"},
		{"//" + vendor + "/cryptoKeyVersions/01", "cryptoKeyVersions/"},
		{"//" + vendor + "/cryptoKeyVersions/latest", "cryptoKeyVersions/"},
		{"//" + vendorOne + "/", "follows the version"},
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
		{"//" + vendorOne + "?max-rps=0", "number"},
		{"//" + vendorOne + "?max-rps=NaN", "number"},
		{"//" + vendorOne + "?max-rps=-1", "number"},
		{"//" + vendorOne + "?max-concurrent=0", "100"},
		{"//" + vendorOne + "?max-concurrent=101", "100"},
		{"//" + vendorOne + "?timeout=0", "10ms"},
		{"//" + vendorOne + "?timeout=1h", "10m"},
		{"//" + vendorOne + "?timeout=20", "10m"},
	} {
		_, err := Backend(Options{}).Open(t.Context(), reference(t, "gcpkms:"+c.ref), signer.OpenOptions{})
		wants(t, err, signer.ErrReference, false)
		if !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v: it does not say %q", c.ref, err, c.says)
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

// FuzzReference: a reference that is read names a resource that its own name reads as the same, in which nothing can
// hide; settings are within their bounds; and plain text goes to a loopback address only.
func FuzzReference(f *testing.F) {
	f.Fuzz(func(t *testing.T, text string) {
		ref, err := signer.ParseRef(text)
		if err != nil || ref.Scheme != "gcpkms" {
			return
		}
		s, err := parse(ref, remote.Policy{})
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
			t.Fatalf("%q: %q is taken for a loopback address", text, s.endpoint)
		}
		p := s.policy
		if p.MaxRPS < 0 || p.MaxRPS > 100_000 || p.MaxConcurrent < 0 || p.MaxConcurrent > 100 || p.Total < 0 || p.Total > 10*time.Minute {
			t.Fatalf("%q: out of bounds: %+v", text, p)
		}
	})
}

func TestFuzzCorpus(t *testing.T) {
	seeds, err := os.ReadDir("testdata/fuzz/FuzzReference")
	if err != nil || len(seeds) < 10 {
		t.Errorf("%d seeds, %v", len(seeds), err)
	}
}
