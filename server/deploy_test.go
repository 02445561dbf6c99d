package server_test

import (
	"encoding/json"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"hsmsign/internal/servicekit"
	"hsmsign/internal/testkit"
)

// series matches the names of metrics in PromQL.
var series = regexp.MustCompile(`\b(hsmsign|process|go)_[a-z0-9_]+\b`)

// exposed returns the names and labels of the metrics of a service that has them all, with the series of histograms.
func exposed(t *testing.T) map[string]map[string]bool {
	t.Helper()
	s, _ := full(t)
	servicekit.Do(t, s.Client(t, nil), s.Tokens["backend"], "POST", s.URL+"/v1/requests?customer=acme", servicekit.CSR(testkit.Key("deploy")))
	all := map[string]map[string]bool{}
	testkit.Until(t, "all metrics", func() bool {
		found, families := scrape(t, s)
		for name, family := range families {
			labels := map[string]bool{"job": true, "instance": true, "le": true}
			for _, m := range family.GetMetric() {
				for _, l := range m.GetLabel() {
					labels[l.GetName()] = true
				}
				if m.GetHistogram() != nil {
					for _, suffix := range []string{"_bucket", "_sum", "_count"} {
						all[name+suffix] = labels
					}
				}
			}
			all[name] = labels
		}
		return found["hsmsign_ready"] == 1 && all["hsmsign_due"] != nil && all["hsmsign_ledger_cosigned_entries"] != nil && all["hsmsign_stage_seconds"] != nil
	})
	return all
}

// label matches a label in a selector or a grouping.
var label = regexp.MustCompile(`([a-z]+) *(?:=~|!~|!=|=)"|by \(([a-z, ]+)\)`)

// The dashboard and the alerts use only metrics and labels that the service exposes, and every metric of the service is in one of
// them or in the documentation.
func TestDeploy(t *testing.T) {
	all := exposed(t)
	dashboard, alerts := testkit.Value(os.ReadFile("../deploy/grafana/hsmsign.json"))(t), testkit.Value(os.ReadFile("../deploy/prometheus/alerts.yaml"))(t)
	var parsed struct {
		Panels []struct {
			Title, Type, Description string
			Targets                  []struct{ Expr string }
		}
	}
	testkit.OK(t, json.Unmarshal(dashboard, &parsed))
	var exprs []string
	for _, p := range parsed.Panels {
		if p.Type != "row" && (p.Description == "" || len(p.Targets) == 0) {
			t.Errorf("panel %q says nothing", p.Title)
		}
		for _, target := range p.Targets {
			exprs = append(exprs, target.Expr)
		}
	}
	for line := range strings.Lines(string(alerts)) {
		if _, expr, ok := strings.Cut(line, " expr: "); ok {
			exprs = append(exprs, expr)
		}
	}
	used := map[string]bool{}
	for _, expr := range exprs {
		names := series.FindAllString(expr, -1)
		labels := map[string]bool{"job": true, "instance": true} // of Prometheus, and of up
		for _, name := range names {
			used[name] = true
			if all[name] == nil {
				t.Errorf("%s is not a metric of the service: %s", name, expr)
			}
			maps.Copy(labels, all[name])
		}
		for _, m := range label.FindAllStringSubmatch(expr, -1) {
			for _, l := range strings.Split(m[1]+m[2], ", ") {
				if !labels[l] {
					t.Errorf("%s is not a label of %v: %s", l, names, expr)
				}
			}
		}
	}
	if len(exprs) < 40 || len(used) < 25 {
		t.Fatalf("%d expressions with %d metrics", len(exprs), len(used))
	}
	docs := string(testkit.Value(os.ReadFile("../docs/service.md"))(t))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if base := regexp.MustCompile(`_(bucket|sum|count)$`).ReplaceAllString(name, ""); strings.HasPrefix(name, "hsmsign_") && !strings.Contains(docs, "`"+base+"`") {
			t.Errorf("docs/service.md does not have %s", base)
		}
	}
	for _, m := range regexp.MustCompile("`(hsmsign_[a-z_]+)`").FindAllStringSubmatch(docs, -1) {
		if all[m[1]] == nil {
			t.Errorf("docs/service.md has %s, which is not a metric of the service", m[1])
		}
	}
}
