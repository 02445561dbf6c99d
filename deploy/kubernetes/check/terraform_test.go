package check

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/hcl/v2/hclwrite"
)

// terraform is the folder of a module, by name.
func terraform(name string) string { return filepath.Join("..", "..", "terraform", name) }

// module is what a Terraform module declares and what it names, as addresses: var.x, local.x, data.TYPE.NAME, TYPE.NAME.
type module struct {
	declared map[string]bool
	named    map[string]bool
	required map[string]bool // variables without a default
}

// parseModule reads the .tf files of a folder; problems are those that need no provider.
func parseModule(files map[string][]byte) (m *module, problems []string) {
	m = &module{declared: map[string]bool{}, named: map[string]bool{}, required: map[string]bool{}}
	for name, text := range files {
		file, diagnostics := hclsyntax.ParseConfig(text, name, hcl.InitialPos)
		if diagnostics.HasErrors() {
			problems = append(problems, diagnostics.Error())
			continue
		}
		if !bytes.Equal(hclwrite.Format(text), text) {
			problems = append(problems, name+" is not formatted as terraform fmt does it")
		}
		body := file.Body.(*hclsyntax.Body)
		for _, block := range body.Blocks {
			m.declare(block)
		}
		_ = hclsyntax.VisitAll(body, func(node hclsyntax.Node) hcl.Diagnostics {
			if e, ok := node.(*hclsyntax.ScopeTraversalExpr); ok {
				m.named[address(e.Traversal)] = true
			}
			return nil
		})
	}
	for name := range m.named {
		root, _, ok := strings.Cut(name, ".")
		if ok && root != "path" && root != "each" && !m.declared[name] {
			problems = append(problems, name+" is not declared")
		}
	}
	for name := range m.declared {
		if kind, _, _ := strings.Cut(name, "."); (kind == "var" || kind == "local") && !m.named[name] && !strings.HasPrefix(name, "output.") {
			problems = append(problems, name+" is not used")
		}
	}
	return m, problems
}

func (m *module) declare(block *hclsyntax.Block) {
	switch block.Type {
	case "variable":
		m.declared["var."+block.Labels[0]] = true
		if block.Body.Attributes["default"] == nil {
			m.required[block.Labels[0]] = true
		}
	case "locals":
		for name := range block.Body.Attributes {
			m.declared["local."+name] = true
		}
	case "data":
		m.declared["data."+strings.Join(block.Labels, ".")] = true
	case "resource":
		m.declared[strings.Join(block.Labels, ".")] = true
	case "output":
		m.declared["output."+block.Labels[0]] = true
	default:
		m.declared[block.Type] = true
	}
}

// address returns what a traversal names: the first two steps, three of data. A name alone, as a type or true, is returned as it is.
func address(t hcl.Traversal) string {
	steps := []string{t.RootName()}
	want := 2
	if t.RootName() == "data" {
		want = 3
	}
	for _, step := range t[1:] {
		if attribute, ok := step.(hcl.TraverseAttr); ok && len(steps) < want {
			steps = append(steps, attribute.Name)
		}
	}
	return strings.Join(steps, ".")
}

func readModule(t *testing.T, name string) map[string][]byte {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(terraform(name), "*.tf"))
	if err != nil || len(paths) < 4 {
		t.Fatalf("%v: %v", paths, err)
	}
	files := map[string][]byte{}
	for _, path := range paths {
		if files[filepath.Base(path)], err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// TestTerraform: the modules parse, are formatted, and name only what they declare. Account and region (project and location) have no
// default, no provider is configured, and README.md has every variable and output and a call with all that is required.
func TestTerraform(t *testing.T) {
	for name, required := range map[string][]string{
		"aws": {"account", "region"}, "gcp": {"location", "project"}, "azure": {"location", "resource_group", "subscription_id", "tenant_id", "vault"},
	} {
		m, problems := parseModule(readModule(t, name))
		for _, p := range problems {
			t.Errorf("%s: %s", name, p)
		}
		if m.declared["provider"] {
			t.Errorf("%s: a module that configures a provider cannot be called with count or for_each", name)
		}
		readme, err := os.ReadFile(filepath.Join(terraform(name), "README.md"))
		if err != nil {
			t.Fatal(err)
		}
		for declared := range m.declared {
			kind, word, _ := strings.Cut(declared, ".")
			if (kind == "var" || kind == "output") && !strings.Contains(string(readme), "`"+word+"`") {
				t.Errorf("%s/README.md does not have %s", name, word)
			}
		}
		call := regexp.MustCompile("(?s)```hcl\n(.*?)```").FindSubmatch(readme)
		if call == nil {
			t.Fatalf("%s/README.md has no example", name)
		}
		arguments, err := moduleCall(call[1])
		if err != nil {
			t.Fatalf("%s/README.md: %v", name, err)
		}
		for _, want := range required {
			if !m.required[want] || !slices.Contains(arguments, want) {
				t.Errorf("%s: %s has a default, or the example does not have it", name, want)
			}
		}
		for _, argument := range arguments {
			if argument != "source" && !m.declared["var."+argument] {
				t.Errorf("%s/README.md: the module has no variable %s", name, argument)
			}
		}
	}
}

// moduleCall returns the arguments of the module block in a text.
func moduleCall(text []byte) (arguments []string, err error) {
	file, diagnostics := hclsyntax.ParseConfig(text, "README.md", hcl.InitialPos)
	if diagnostics.HasErrors() || !bytes.Equal(hclwrite.Format(text), text) {
		return nil, fmt.Errorf("not HCL, or not formatted: %w", diagnostics)
	}
	for _, block := range file.Body.(*hclsyntax.Body).Blocks {
		if block.Type == "module" {
			for name := range block.Body.Attributes {
				arguments = append(arguments, name)
			}
		}
	}
	return arguments, nil
}

// TestTerraformDamage: what is misspelled in a module is found.
func TestTerraformDamage(t *testing.T) {
	for name, list := range map[string][][3]string{
		"aws": {
			{"main.tf", "var.role}", "var.roel}"}, {"main.tf", "data.aws_partition.current.", "data.aws_partitions.current."}, {"main.tf", "local.irsa_policy", "local.policy"},
			{"outputs.tf", "aws_iam_role.signer", "aws_iam_role.hsmsign"}, {"main.tf", "depends_on = [aws_iam_role.signer]", "depends_on = [aws_iam_roles.signer]"},
			{"main.tf", "  name          = ", "  name = "}, {"variables.tf", "variable \"alias\" {", "variable \"alias\" "}, {"variables.tf", "variable \"alias\"", "variable \"aliases\""},
		},
		"gcp": {
			{"main.tf", "google_service_account.hsmsign[0]", "google_service_account.signer[0]"}, {"main.tf", "var.gke_namespace", "var.namespace"},
			{"outputs.tf", "local.signer", "local.signers"}, {"variables.tf", "condition     = var.signer", "condition     = var.member"},
		},
		"azure": {
			{"main.tf", "azurerm_user_assigned_identity.hsmsign[0].id", "azurerm_user_assigned_identity.signer[0].id"}, {"main.tf", "var.aks_namespace", "var.namespace"},
			{"outputs.tf", "azurerm_key_vault_key.vendor.version", "azurerm_key_vault_keys.vendor.version"}, {"main.tf", "data.azurerm_client_config.current", "data.azurerm_client.current"},
		},
	} {
		for _, d := range list {
			files := readModule(t, name)
			before := files[d[0]]
			files[d[0]] = []byte(strings.Replace(string(before), d[1], d[2], 1))
			if _, problems := parseModule(files); bytes.Equal(before, files[d[0]]) || len(problems) == 0 {
				t.Errorf("%s/%s: %q instead of %q is accepted", name, d[0], d[2], d[1])
			}
		}
	}
}

// TestSameIdentity: the modules give the service account of the manifests the right to sign.
func TestSameIdentity(t *testing.T) {
	for name, variables := range map[string][2]string{"aws": {"namespace", "service_account"}, "gcp": {"gke_namespace", "gke_service_account"}, "azure": {"aks_namespace", "aks_service_account"}} {
		text := string(readModule(t, name)["variables.tf"])
		for _, variable := range variables {
			_, block, _ := strings.Cut(text, "variable \""+variable+"\" {\n")
			block, _, _ = strings.Cut(block, "\n}")
			if !regexp.MustCompile(`default +="? *"hsmsign"`).MatchString(strings.ReplaceAll(block, "= \"", "=\"")) {
				t.Errorf("%s: the default of %s is not hsmsign", name, variable)
			}
		}
	}
}
