// Package gcp contains the configuration with which hsmsign may sign on Google Cloud. The tests check it.
package gcp

import (
	"encoding/json"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"hsmsign/internal/testkit"

	"github.com/google/go-cmp/cmp"
)

func read(t *testing.T, name string) string {
	t.Helper()
	text := testkit.Value(os.ReadFile(name))(t)
	return string(text)
}

func strict(t *testing.T, name string, into any) {
	t.Helper()
	dec := json.NewDecoder(strings.NewReader(read(t, name)))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// minimal returns all permissions that signing needs.
func minimal() []string {
	return []string{"cloudkms.cryptoKeyVersions.useToSign", "cloudkms.cryptoKeyVersions.viewPublicKey"}
}

func TestRole(t *testing.T) {
	var role struct {
		Title, Description, Stage string
		IncludedPermissions       []string
	}
	strict(t, "role.json", &role)
	if diff := cmp.Diff(minimal(), role.IncludedPermissions); diff != "" {
		t.Errorf("role.json (-want +got):\n%s", diff)
	}
}

func TestKeyPolicy(t *testing.T) {
	var policy struct {
		Version  int
		Bindings []struct {
			Role    string
			Members []string
		}
	}
	strict(t, "key-policy.json", &policy)
	if len(policy.Bindings) != 1 || policy.Bindings[0].Role != "projects/PROJECT_ID/roles/hsmsignSigner" {
		t.Errorf("bindings: %+v", policy.Bindings)
	}
	for _, b := range policy.Bindings {
		for _, m := range b.Members {
			if !strings.HasPrefix(m, "serviceAccount:") {
				t.Errorf("member %q", m)
			}
		}
	}
}

// block returns the body of a top-level block.
func block(t *testing.T, text, head string) string {
	t.Helper()
	_, rest, ok := strings.Cut(text, head+" {\n")
	body, _, end := strings.Cut(rest, "\n}")
	if !ok || !end {
		t.Fatalf("no block %s", head)
	}
	return body
}

func TestTerraform(t *testing.T) {
	text := read(t, "main.tf")
	permissions := regexp.MustCompile(`"(cloudkms\.[a-zA-Z]+\.[a-zA-Z*]+)"`).FindAllStringSubmatch(block(t, text, `resource "google_project_iam_custom_role" "signer"`), -1)
	var got []string
	for _, p := range permissions {
		got = append(got, p[1])
	}
	if diff := cmp.Diff(minimal(), got); diff != "" {
		t.Errorf("custom role (-want +got):\n%s", diff)
	}
	key := block(t, text, `resource "google_kms_crypto_key" "vendor"`)
	for _, want := range []string{`= "ASYMMETRIC_SIGN"`, "prevent_destroy = true", `= "2592000s"`, "= var.protection_level"} {
		if !strings.Contains(key, want) {
			t.Errorf("the key has no %s", want)
		}
	}
	variables := read(t, "variables.tf")
	for name, want := range map[string]string{"protection_level": `default     = "HSM"`} {
		if !strings.Contains(block(t, variables, `variable "`+name+`"`), want) {
			t.Errorf("variable %s does not contain %s", name, want)
		}
	}
	// The grant is on the key: no binding of a project, folder, organization or key ring.
	kinds := regexp.MustCompile(`resource "(google_[a-z_]+_iam_(?:member|binding|policy))"`).FindAllStringSubmatch(text, -1)
	if !slices.EqualFunc(kinds, []string{"google_kms_crypto_key_iam_member"}, func(m []string, want string) bool { return m[1] == want }) {
		t.Errorf("grants: %v", kinds)
	}
}

// TestTerraformIsFormatted checks both clouds.
func TestTerraformIsFormatted(t *testing.T) {
	terraform, err := exec.LookPath("terraform")
	if err != nil {
		t.Skip("terraform is not installed")
	}
	if out, err := exec.CommandContext(t.Context(), terraform, "fmt", "-check", "-diff", "-recursive", "..").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
