// Package azure contains the configuration with which hsmsign may sign on Azure. The tests check it.
package azure

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hsmsign/internal/testkit"
)

func read(t *testing.T, name string) string {
	t.Helper()
	return string(testkit.Value(os.ReadFile(name))(t))
}

// TestRoles: the roles allow the two requests of a service, and no others.
func TestRoles(t *testing.T) {
	for name, want := range map[string][]string{
		"role.json":            {"Microsoft.KeyVault/vaults/keys/read", "Microsoft.KeyVault/vaults/keys/sign/action"},
		"managedhsm-role.json": {"Microsoft.KeyVault/managedHsm/keys/read/action", "Microsoft.KeyVault/managedHsm/keys/sign/action"},
	} {
		var role map[string]any
		testkit.OK(t, json.Unmarshal([]byte(read(t, name)), &role))
		got := map[string]any{}
		for member, value := range role { // names ignore case
			got[strings.ToLower(member)] = value
		}
		var actions []string
		for _, action := range got["dataactions"].([]any) {
			actions = append(actions, action.(string))
		}
		if diff := cmp.Diff(want, actions); diff != "" {
			t.Errorf("%s (-want +got)\n%s", name, diff)
		}
		for _, empty := range []string{"actions", "notactions", "notdataactions"} {
			if list, ok := got[empty].([]any); !ok || len(list) != 0 {
				t.Errorf("%s: %s is %v", name, empty, got[empty])
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

// TestTerraform: the key is protected, and the grant to the signer is on the key and uses role.json.
func TestTerraform(t *testing.T) {
	text := read(t, "main.tf")
	for head, want := range map[string][]string{
		`resource "azurerm_key_vault" "mdm"`:          {"rbac_authorization_enabled = true", "purge_protection_enabled   = true"},
		`resource "azurerm_key_vault_key" "vendor"`:   {`key_opts     = ["sign", "verify"]`, "prevent_destroy = true", "key_size     = 2048", "= var.key_type"},
		`resource "azurerm_role_definition" "signer"`: {"data_actions = local.role.DataActions"},
		`resource "azurerm_role_assignment" "signer"`: {"= azurerm_key_vault_key.vendor.resource_versionless_id", "azurerm_role_definition.signer", "= local.principal_id"},
		`locals`: {`jsondecode(file("${path.module}/role.json"))`},
		`resource "azurerm_federated_identity_credential" "pods"`: {"system:serviceaccount:${var.aks_namespace}:${var.aks_service_account}"},
	} {
		body := block(t, text, head)
		for _, w := range want {
			if !strings.Contains(body, w) {
				t.Errorf("%s does not contain %s", head, w)
			}
		}
	}
	if n := strings.Count(text, `resource "azurerm_role_assignment"`); n != 2 {
		t.Errorf("%d grants, want that of Terraform and that of the signer", n)
	}
	if !strings.Contains(block(t, read(t, "variables.tf"), `variable "key_type"`), `default     = "RSA-HSM"`) {
		t.Error("the key is not in an HSM by default")
	}
	if strings.Contains(block(t, text, `resource "azurerm_key_vault_key" "vendor"`), "rotation_policy") {
		t.Error("the key rotates")
	}
}
