package awskms

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"hsmsign/internal/testkit"

	"github.com/google/go-cmp/cmp"
)

// words is a JSON string or a list of them.
type words []string

func (w *words) UnmarshalJSON(data []byte) error {
	var one string
	if json.Unmarshal(data, &one) == nil {
		*w = words{one}
		return nil
	}
	return json.Unmarshal(data, (*[]string)(w))
}

type statement struct {
	Sid, Effect      string
	Principal        map[string]words
	Action, Resource words
	Condition        map[string]map[string]words
}

func policy(t *testing.T, name string) []statement {
	t.Helper()
	data := testkit.Value(os.ReadFile("../../deploy/aws/" + name))(t)
	var p struct {
		Version   string
		Statement []statement
	}
	if err := json.Unmarshal(data, &p); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	if p.Version != "2012-10-17" || len(p.Statement) == 0 {
		t.Fatalf("%s: version %q, %d statements", name, p.Version, len(p.Statement))
	}
	return p.Statement
}

// appleOnly returns the condition of kms:Sign: the requests of this package.
func appleOnly() map[string]map[string]words {
	return map[string]map[string]words{"StringEquals": {"kms:SigningAlgorithm": {string(algorithm)}, "kms:MessageType": {"DIGEST"}}}
}

// TestPolicies: the policies in deploy/aws allow the requests of the package, and no others.
func TestPolicies(t *testing.T) {
	for file, want := range map[string][]string{
		"iam-policy.json": {"kms:GetPublicKey", "kms:Sign"},
		"key-policy.json": nil, // see TestKeyPolicy
		"manage-policy.json": {"kms:CreateAlias", "kms:CreateKey", "kms:DescribeKey", "kms:GetPublicKey",
			"kms:ListAliases", "kms:ListKeys"},
	} {
		var allowed []string
		for _, s := range policy(t, file) {
			for _, action := range s.Action {
				if strings.Contains(action, "*") {
					t.Errorf("%s: %s names %q", file, s.Sid, action)
				}
				if s.Effect == "Allow" && action == "kms:Sign" {
					if len(s.Action) != 1 {
						t.Errorf("%s: %s allows more than kms:Sign under its condition", file, s.Sid)
					}
					if diff := cmp.Diff(appleOnly(), s.Condition); diff != "" {
						t.Errorf("%s: %s (-want +got)\n%s", file, s.Sid, diff)
					}
				}
			}
			if s.Effect == "Allow" {
				allowed = append(allowed, s.Action...)
			}
			if file == "iam-policy.json" && (len(s.Resource) != 1 || arnRegion(s.Resource[0]) == "") {
				t.Errorf("%s: %s is for %q, not for one key", file, s.Sid, s.Resource)
			}
		}
		slices.Sort(allowed)
		if diff := cmp.Diff(want, allowed); want != nil && diff != "" {
			t.Errorf("%s (-want +got)\n%s", file, diff)
		}
	}
}

// TestKeyPolicy: the account cannot sign, one role signs, all others are denied, and grants are denied.
func TestKeyPolicy(t *testing.T) {
	const role = "arn:aws:iam::111122223333:role/hsmsign"
	seen := map[string]bool{}
	for _, s := range policy(t, "key-policy.json") {
		principal := strings.Join(s.Principal["AWS"], " ")
		for _, action := range s.Action {
			switch {
			case s.Effect == "Deny" && action == "kms:Sign":
				want := map[string]map[string]words{"ArnNotEquals": {"aws:PrincipalArn": {role}}}
				if diff := cmp.Diff(want, s.Condition); diff != "" || principal != "*" {
					t.Errorf("%s for %q: (-want +got)\n%s", s.Sid, principal, diff)
				}
				seen["denied"] = true
			case s.Effect == "Deny" && action == "kms:CreateGrant":
				seen["no grants"] = principal == "*" && s.Condition == nil
			case action == "kms:Sign" || action == "kms:CreateGrant":
				if principal != role {
					t.Errorf("%s lets %q %s", s.Sid, principal, action)
				}
				seen["signs"] = true
			case action == "kms:PutKeyPolicy":
				seen["administered"] = true // otherwise nobody could change the policy again
			}
		}
	}
	for _, promise := range []string{"denied", "no grants", "signs", "administered"} {
		if !seen[promise] {
			t.Errorf("no statement: %s", promise)
		}
	}
}

// TestTrust: one service account may assume the role.
func TestTrust(t *testing.T) {
	for _, s := range policy(t, "trust-irsa.json") {
		conditions := s.Condition["StringEquals"]
		var names []string
		for name, values := range conditions {
			names = append(names, name[strings.LastIndexByte(name, ':'):])
			if len(values) != 1 || strings.Contains(values[0], "*") {
				t.Errorf("%s is %q", name, values)
			}
		}
		slices.Sort(names)
		if diff := cmp.Diff([]string{":aud", ":sub"}, names); diff != "" || s.Principal["Federated"] == nil {
			t.Errorf("%s for %v: (-want +got)\n%s", s.Sid, s.Principal, diff)
		}
	}
}

// TestTerraform: the policies contain the texts that main.tf replaces.
func TestTerraform(t *testing.T) {
	tf := testkit.Value(os.ReadFile("../../deploy/aws/main.tf"))(t)
	for file, texts := range map[string][]string{
		"key-policy.json": {"arn:aws:iam::111122223333:role/hsmsign", "111122223333", "arn:aws:"},
		"iam-policy.json": {"arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"},
	} {
		data := testkit.Value(os.ReadFile("../../deploy/aws/" + file))(t)
		for _, text := range append(texts, file) {
			if !strings.Contains(string(tf), `"`+text) && !strings.Contains(string(tf), "/"+text) {
				t.Errorf("main.tf does not contain %q", text)
			}
			if text != file && !strings.Contains(string(data), text) {
				t.Errorf("%s does not contain %q, which main.tf replaces", file, text)
			}
		}
	}
	for _, text := range []string{"prevent_destroy = true", `key_usage                = "SIGN_VERIFY"`} {
		if !strings.Contains(string(tf), text) {
			t.Errorf("main.tf does not contain %q", text)
		}
	}
}
