// Package vault contains the policies with which hsmsign may sign in Vault. The tests check them.
package vault

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hsmsign/internal/testkit"
)

// rules returns one line for each rule of a policy.
func rules(t *testing.T, name string) []string {
	t.Helper()
	text := string(testkit.Value(os.ReadFile(name))(t))
	var lines []string
	for _, m := range regexp.MustCompile(`(?ms)^path "([^"]+)" \{\n(.*?)^\}$`).FindAllStringSubmatch(text, -1) {
		body := regexp.MustCompile(`\s+`).ReplaceAllString(strings.ReplaceAll(m[2], "\n", " "), " ")
		lines = append(lines, fmt.Sprintf("%s:%s", m[1], strings.TrimRight(body, " ")))
	}
	if strings.Count(text, "\npath ") != len(lines) {
		t.Errorf("%s: a rule has another form", name)
	}
	return lines
}

// TestPolicies: the policies allow the requests of package signer/vault and no others.
func TestPolicies(t *testing.T) {
	for name, want := range map[string][]string{
		"sign.hcl": {
			`transit/keys/mdm-vendor: capabilities = ["read"]`,
			`transit/sign/mdm-vendor/sha2-256: capabilities = ["update"] required_parameters = ["input", "prehashed", "signature_algorithm", "key_version"] ` +
				`allowed_parameters = { "input" = [] "prehashed" = [true] "signature_algorithm" = ["pkcs1v15"] "key_version" = [] }`,
			`auth/token/lookup-self: capabilities = ["read"]`,
			`auth/token/renew-self: capabilities = ["update"]`,
		},
		"manage.hcl": {
			`transit/keys: capabilities = ["list"]`,
			`transit/keys/+: capabilities = ["create", "read", "update"] allowed_parameters = { "type" = ["rsa-2048", "rsa-3072", "rsa-4096"] ` +
				`"exportable" = [false] "allow_plaintext_backup" = [false] "derived" = [false] }`,
			`auth/token/lookup-self: capabilities = ["read"]`,
		},
	} {
		if diff := cmp.Diff(want, rules(t, name)); diff != "" {
			t.Errorf("%s (-want +got)\n%s", name, diff)
		}
	}
}
