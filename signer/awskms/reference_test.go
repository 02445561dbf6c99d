package awskms

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hsmsign/fault"
	"hsmsign/internal/signerkit"
	"hsmsign/internal/testkit"
	"hsmsign/signer"
	"hsmsign/signer/kms"
)

const (
	testID  = "1234abcd-12ab-34cd-56ef-1234567890ab"
	testMRK = "mrk-1234abcd12ab34cd56ef1234567890ab"
	testARN = "arn:aws:kms:eu-west-1:111122223333:key/" + testID
)

func TestParseReference(t *testing.T) {
	for in, want := range map[string]reference{
		"awskms:///alias/mdm-Vendor?region=eu-west-1":                                                          reference{id: "alias/mdm-Vendor", regions: []string{"eu-west-1"}},
		"awskms:///alias/a/b_c":                                                                                reference{id: "alias/a/b_c"},
		"awskms:///" + testARN:                                                                                 reference{id: testARN, regions: []string{"eu-west-1"}},
		"awskms:///" + testARN + "?region=eu-west-1":                                                           reference{id: testARN, regions: []string{"eu-west-1"}},
		"awskms:///arn:aws-us-gov:kms:us-gov-west-1:111122223333:alias/x":                                      reference{id: "arn:aws-us-gov:kms:us-gov-west-1:111122223333:alias/x", regions: []string{"us-gov-west-1"}},
		"awskms:///" + testID + "?region=cn-north-1&endpoint=http://127.0.0.1:8080":                            reference{id: testID, regions: []string{"cn-north-1"}, endpoint: "http://127.0.0.1:8080"},
		"awskms:///" + testMRK + "?regions=eu-west-1,us-east-1":                                                reference{id: testMRK, regions: []string{"eu-west-1", "us-east-1"}},
		"awskms:///?region=eu-west-1":                                                                          reference{regions: []string{"eu-west-1"}},
		"awskms:///" + testID + "?endpoint=https://vpce-1.kms.eu-west-1.vpce.amazonaws.com&profile=my profile": reference{id: testID, regions: []string{"eu-west-1"}, endpoint: "https://vpce-1.kms.eu-west-1.vpce.amazonaws.com", profile: "my profile"},
		"awskms:///" + testARN + "?endpoint=https://kms-fips.eu-west-1.amazonaws.com":                          reference{id: testARN, regions: []string{"eu-west-1"}, endpoint: "https://kms-fips.eu-west-1.amazonaws.com"},
		"awskms:///" + testID + "?endpoint=https://proxy.example":                                              reference{id: testID, endpoint: "https://proxy.example"},
		"awskms:///" + testID + "?endpoint=http://[::1]:8080":                                                  reference{id: testID, endpoint: "http://[::1]:8080"},
		"awskms:///" + testID + "?role-arn=arn:aws:iam::111122223333:role/team/hsmsign":                        reference{id: testID, role: "arn:aws:iam::111122223333:role/team/hsmsign"},
		"awskms:///" + testID + "?max-rps=12.5&max-concurrent=8&timeout=1m":                                    reference{id: testID, policy: kms.Policy{MaxRPS: 12.5, MaxConcurrent: 8, Timeout: time.Minute}},
	} {
		got, err := parseReference(signerkit.Ref(t, in), kms.Policy{})
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(reference{})); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got)\n%s", in, err, diff)
		}
	}
}

func TestParseReferenceRefuses(t *testing.T) {
	for _, tt := range []struct{ in, text string }{
		{"awskms:alias/x", "three slashes"},
		{"awskms://host:4566/alias/x", "three slashes; write awskms:///alias/x?endpoint=https://host:4566"},
		{"awskms:key-id=" + testID + ";region=us-east-2", "three slashes; write awskms:///" + testID + "?region=REGION"},
		{"awskms:region=us-east-2;key-id=alias/x", "three slashes; write awskms:///alias/x?region=REGION"},
		{"awskms:///mdm-vendor", `written "alias/mdm-vendor"`},
		{"awskms:///alias/", "neither"},
		{"awskms:///alias/x y", "neither"},
		{"awskms:///alias/" + strings.Repeat("x", 251), "neither"},
		{"awskms:///" + strings.ToUpper(testID), "written"},
		{"awskms:///../" + testID, "neither"},
		{"awskms:///arn:aws:s3:::bucket", "not an ARN of a KMS key"},
		{"awskms:///" + testARN + "/x", "not an ARN of a KMS key"},
		{"awskms:///" + testARN + "?region=us-east-1", "region of the ARN"},
		{"awskms:///" + testID + "?region=eu-west-1.evil.example", "not a region"},
		{"awskms:///" + testID + "?region=", "not a region"},
		{"awskms:///" + testMRK + "?region=eu-west-1&regions=eu-west-1", "exclude each other"},
		{"awskms:///" + testMRK + "?regions=eu-west-1,", "not a region"},
		{"awskms:///" + testMRK + "?regions=eu-west-1,eu-west-1", "repeated"},
		{"awskms:///" + testMRK + "?regions=" + strings.Repeat("eu-west-1,", 8) + "us-east-1", "at most 8"},
		{"awskms:///" + testID + "?regions=eu-west-1,us-east-1", "multi-Region"},
		{"awskms:///" + testID + "?endpoint=http://kms.example.com", "plain http"},
		{"awskms:///" + testID + "?endpoint=http://127.0.0.1.example.com", "plain http"},
		{"awskms:///" + testID + "?endpoint=ftp://127.0.0.1", "plain http"},
		{"awskms:///" + testID + "?endpoint=127.0.0.1:8080", "form"},
		{"awskms:///" + testID + "?endpoint=https://user:secret@host", "form"},
		{"awskms:///" + testID + "?endpoint=https://host/path", "form"},
		{"awskms:///" + testID + "?endpoint=", "form"},
		{"awskms:///" + testID + "?region=eu-west-1&endpoint=https://kms.us-east-1.amazonaws.com", `the endpoint is in region "us-east-1", not "eu-west-1"`},
		{"awskms:///" + testARN + "?endpoint=https://KMS.us-east-1.api.aws", "the endpoint is in region"},
		{"awskms:///" + testMRK + "?regions=eu-west-1,us-east-1&endpoint=https://kms.us-east-1.amazonaws.com", "the endpoint is in region"},
		{"awskms:///" + testID + "?profile=", "profile"},
		{"awskms:///" + testID + "?profile=a]b", "profile"},
		{"awskms:///" + testID + "?role-arn=hsmsign", "role-arn"},
		{"awskms:///" + testID + "?max-concurrent=1025", "max-concurrent"},
		{"awskms:///" + testID + "?access-key=x", "unknown"},
	} {
		_, err := parseReference(signerkit.Ref(t, tt.in), kms.Policy{})
		if !errors.Is(err, signer.ErrReference) || !strings.Contains(err.Error()+"; "+fault.Hint(err), tt.text) {
			t.Errorf("%s: got %v, want %q", tt.in, err, tt.text)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: the error contains a password", tt.in)
		}
	}
}

// FuzzParseReference: a reference is refused with ErrReference, or it names a key that the service could have, and all
// limits are kept.
func FuzzParseReference(f *testing.F) {
	testkit.Seeds(f, "FuzzParseReference", 8)
	f.Fuzz(func(t *testing.T, in string) {
		ref, err := signer.ParseRef(in)
		if err != nil {
			return
		}
		r, err := parseReference(ref, kms.Policy{})
		if err != nil {
			if !errors.Is(err, signer.ErrReference) {
				t.Fatalf("%v has no family", err)
			}
			return
		}
		if r.id != "" && "///"+r.id != ref.Path {
			t.Errorf("the key is %q", r.id)
		}
		own := arnRegion(r.id)
		if own != "" && !slices.Contains(r.regions, own) {
			t.Errorf("%q is not among %q", own, r.regions)
		}
		for _, region := range r.regions {
			// A region becomes part of a host name.
			if strings.ContainsAny(region, "./:@ ") || own != "" && arnRegion(r.idIn(region)) != region {
				t.Errorf("region %q, key %q", region, r.idIn(region))
			}
		}
		if p := r.policy; p.Timeout < 0 || p.Timeout > 10*time.Minute || p.MaxConcurrent < 0 || p.MaxConcurrent > maxConcurrent || p.MaxRPS < 0 || p.MaxRPS > 100_000 {
			t.Errorf("policy %+v", p)
		}
		if strings.HasPrefix(r.endpoint, "http:") && !strings.Contains(r.endpoint, "127.") && !strings.Contains(r.endpoint, "localhost") && !strings.Contains(r.endpoint, "::") {
			t.Errorf("endpoint %q", r.endpoint)
		}
	})
}
