package awskms

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hsmsign/internal/testkit"
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

func deployed(t *testing.T, name string) string {
	t.Helper()
	return string(testkit.Value(os.ReadFile("../../deploy/terraform/aws/" + name))(t))
}

// TestPolicies: the policies allow the requests of this package and no others. Every statement is one line here.
func TestPolicies(t *testing.T) {
	const (
		account  = "arn:aws:iam::111122223333:"
		key      = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
		signing  = " if StringEquals kms:MessageType=DIGEST kms:SigningAlgorithm=" + string(algorithm)
		provider = "oidc.eks.eu-west-1.amazonaws.com/id/EXAMPLED539D4633E53DE1B71EXAMPLE"
	)
	for file, want := range map[string][]string{
		"iam-policy.json": {"Allow kms:GetPublicKey on " + key, "Allow kms:Sign on " + key + signing},
		"manage-policy.json": {
			"Allow kms:CreateKey on * if StringEquals kms:KeyUsage=SIGN_VERIFY if StringLike kms:KeySpec=RSA_*",
			"Allow kms:CreateAlias kms:DescribeKey kms:GetPublicKey on arn:aws:kms:eu-west-1:111122223333:key/* arn:aws:kms:eu-west-1:111122223333:alias/*",
			"Allow kms:ListKeys kms:ListAliases on *",
		},
		// The account can change the policy, but it can neither sign nor create grants.
		"key-policy.json": {
			"Allow kms:DescribeKey kms:GetPublicKey kms:GetKeyPolicy kms:PutKeyPolicy kms:ListResourceTags kms:TagResource kms:UntagResource " +
				"kms:CreateAlias kms:UpdateAlias kms:DeleteAlias kms:ReplicateKey kms:UpdateKeyDescription kms:EnableKey kms:DisableKey " +
				"kms:ScheduleKeyDeletion kms:CancelKeyDeletion kms:GetKeyRotationStatus kms:ListKeyPolicies kms:ListGrants for " + account + "root on *",
			"Allow kms:GetPublicKey for " + account + "role/hsmsign on *",
			"Allow kms:Sign for " + account + "role/hsmsign on *" + signing,
			"Deny kms:Sign for * on * if ArnNotEquals aws:PrincipalArn=" + account + "role/hsmsign",
			"Deny kms:CreateGrant for * on *",
		},
		"trust-irsa.json": {"Allow sts:AssumeRoleWithWebIdentity for " + account + "oidc-provider/" + provider +
			" if StringEquals " + provider + ":aud=sts.amazonaws.com " + provider + ":sub=system:serviceaccount:hsmsign:hsmsign"},
	} {
		var policy struct {
			Version   string
			Statement []struct {
				Effect           string
				Action, Resource words
				Principal        map[string]words
				Condition        map[string]map[string]words
			}
		}
		testkit.OK(t, json.Unmarshal([]byte(deployed(t, file)), &policy))
		got := []string{}
		for _, s := range policy.Statement {
			line := s.Effect + " " + strings.Join(s.Action, " ")
			for _, who := range s.Principal {
				line += " for " + strings.Join(who, " ")
			}
			if s.Resource != nil {
				line += " on " + strings.Join(s.Resource, " ")
			}
			var conditions []string
			for operator, values := range s.Condition {
				var pairs []string
				for name, value := range values {
					pairs = append(pairs, " "+name+"="+strings.Join(value, ","))
				}
				slices.Sort(pairs)
				conditions = append(conditions, " if "+operator+strings.Join(pairs, ""))
			}
			slices.Sort(conditions)
			got = append(got, line+strings.Join(conditions, ""))
		}
		if diff := cmp.Diff(want, got); diff != "" || policy.Version != "2012-10-17" {
			t.Errorf("%s, version %q (-want +got)\n%s", file, policy.Version, diff)
		}
	}
}

// TestTerraform: main.tf reads the policies and replaces texts that they contain.
func TestTerraform(t *testing.T) {
	tf := deployed(t, "main.tf")
	for file, texts := range map[string][]string{
		"key-policy.json": {"arn:aws:iam::111122223333:role/hsmsign", "111122223333", "arn:aws:"},
		"iam-policy.json": {"arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"},
		"trust-irsa.json": {
			"oidc.eks.eu-west-1.amazonaws.com/id/EXAMPLED539D4633E53DE1B71EXAMPLE", "system:serviceaccount:hsmsign:hsmsign", "111122223333", "arn:aws:",
		},
	} {
		for _, text := range texts {
			if !strings.Contains(tf, `"`+text) || !strings.Contains(deployed(t, file), text) {
				t.Errorf("main.tf or %s does not contain %q", file, text)
			}
		}
		if !strings.Contains(tf, "/"+file) {
			t.Errorf("main.tf does not read %s", file)
		}
	}
	for _, text := range []string{"prevent_destroy = true", `key_usage                = "SIGN_VERIFY"`} {
		if !strings.Contains(tf, text) {
			t.Errorf("main.tf does not contain %q", text)
		}
	}
}
