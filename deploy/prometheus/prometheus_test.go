// Package prometheus contains example alerts about hsmsign serve. The tests run promtool on them.
package prometheus

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"hsmsign/internal/testkit"
)

// promtool returns the path of the program, which make test extracts.
func promtool(t *testing.T) string {
	t.Helper()
	if found, err := exec.LookPath("promtool"); err == nil {
		return found
	}
	found := testkit.Value(filepath.Abs("../../.tools/promtool"))(t)
	if _, err := os.Stat(found); err != nil {
		t.Skip("promtool is missing; make test extracts it from Debian's package prometheus")
	}
	return found
}

func TestAlerts(t *testing.T) {
	for _, args := range [][]string{{"check", "rules", "alerts.yaml"}, {"test", "rules", "alerts_test.yaml"}} {
		if out, err := exec.CommandContext(t.Context(), promtool(t), args...).CombinedOutput(); err != nil { // #nosec G204 -- a test's own arguments
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// Every alert fires in a test, is about one thing and says what to do.
func TestAlertsAreTested(t *testing.T) {
	alerts, tests := string(testkit.Value(os.ReadFile("alerts.yaml"))(t)), string(testkit.Value(os.ReadFile("alerts_test.yaml"))(t))
	var names []string
	for _, part := range strings.Split(alerts, "- alert: ")[1:] {
		name, _, _ := strings.Cut(part, "\n")
		names = append(names, name)
		if !strings.Contains(tests, `exp_samples: [ { labels: '{alertname="`+name+`"}', value: 1 } ]`) {
			t.Errorf("no test in which %s fires", name)
		}
		for _, want := range []string{"summary: \"", "description: \"", "labels: { severity: ", "runbook: \"docs/operations.md#" + strings.ToLower(name) + "\"\n"} {
			if !strings.Contains(part, want) {
				t.Errorf("%s has no %s", name, want)
			}
		}
	}
	if sorted := slices.Compact(slices.Sorted(slices.Values(names))); len(sorted) != len(names) || len(names) < 15 {
		t.Errorf("alerts: %v", names)
	}
	for _, m := range regexp.MustCompile(`alertname="([A-Za-z]+)"`).FindAllStringSubmatch(tests, -1) {
		if !slices.Contains(names, m[1]) {
			t.Errorf("a test is about %s, which does not exist", m[1])
		}
	}
}

// docs/operations.md has a section for each alert, and for no other: what it means, who is hurt, where to look and what to do.
func TestRunbooks(t *testing.T) {
	alerts, doc := string(testkit.Value(os.ReadFile("alerts.yaml"))(t)), string(testkit.Value(os.ReadFile("../../docs/operations.md"))(t))
	var names []string
	for _, m := range regexp.MustCompile(`- alert: (\w+)`).FindAllStringSubmatch(alerts, -1) {
		names = append(names, m[1])
	}
	_, runbooks, ok := strings.Cut(doc, "\n## Alerts\n")
	if !ok {
		t.Fatal("there is no section of alerts")
	}
	var sections []string
	for _, part := range strings.Split(runbooks, "\n### ")[1:] {
		name, text, _ := strings.Cut(part, "\n")
		sections = append(sections, name)
		for _, want := range []string{"Means", "Hurts", "Look", "Do"} {
			if strings.Count(text, "- **"+want+":** ") != 1 {
				t.Errorf("the runbook of %s does not say %q once", name, want)
			}
		}
	}
	if !slices.Equal(names, sections) {
		t.Errorf("alerts %v\nrunbooks %v", names, sections)
	}
}
