package consoletest

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// axeSource is axe-core, which make deps downloads and checks.
var axeSource = sync.OnceValues(func() (string, error) {
	found, err := filepath.Glob("../../.tools/axe-core-*.min.js")
	if err != nil || len(found) == 0 {
		return "", fmt.Errorf("there is no .tools/axe-core-*.min.js: run make test")
	}
	source, err := os.ReadFile(found[len(found)-1])
	return string(source), err
})

// audit has axe-core check the page that the tab shows. Every violation fails the test.
func (b *tab) audit(what string) {
	b.Helper()
	for _, v := range b.violations() {
		b.Errorf("%s: %s", what, v)
	}
}

// violation is what axe-core reports.
type violation struct {
	ID, Help string
	Nodes    []struct{ HTML, FailureSummary string }
}

func (v violation) String() string {
	var text strings.Builder
	fmt.Fprintf(&text, "%s: %s", v.ID, v.Help)
	for _, n := range v.Nodes {
		fmt.Fprintf(&text, "\n  %s\n    %s", n.HTML, strings.ReplaceAll(n.FailureSummary, "\n", "\n    "))
	}
	return text.String()
}

// violations returns what axe-core finds, of WCAG 2.2 A and AA and of the best practices.
func (b *tab) violations() (all []violation) {
	b.Helper()
	source, err := axeSource()
	if err != nil {
		b.Fatal(err)
	}
	if value(b, chromedp.Evaluate[string]("typeof axe")) != "object" {
		value(b, chromedp.Evaluate[bool](source+"\n;true"))
	}
	const run = `axe.run(document, {resultTypes: ["violations"]}).then(r => JSON.stringify(r.violations))`
	report := value(b, chromedp.Evaluate[string](run, func(p *runtime.EvaluateParams) { yes := true; p.AwaitPromise = &yes }))
	if err := json.Unmarshal([]byte(report), &all); err != nil {
		b.Fatalf("%v: %s", err, report)
	}
	return all
}

// TestHarness: what the tests rely on finds the defects that it is for.
func TestHarness(t *testing.T) {
	site := serveHTML(t, map[string]string{
		"/bad": `<!doctype html><html><head><title>bad</title></head><body><img src="/none.png"><script>console.error("own"); throw new Error("thrown")</script>
			<p style="color:#999;background:#aaa">hard to read</p></body></html>`,
		"/csp":   `<!doctype html><html lang=en><head><title>csp</title></head><body><p style="color:red">a</p></body></html>`,
		"/other": `<!doctype html><html lang=en><head><title>other</title></head><body><img alt="" src="http://192.0.2.1/x.png"></body></html>`,
	})
	b := newTab(t, site)
	b.expect("") // all of them
	b.open("/bad")
	found := fmt.Sprint(b.violations())
	for _, id := range []string{"html-has-lang", "image-alt", "color-contrast"} {
		if !strings.Contains(found, id) {
			t.Errorf("axe-core does not find %s: %s", id, found)
		}
	}
	b.open("/csp")
	b.open("/other")
	b.mu.Lock()
	all := strings.Join(b.defects, "\n")
	b.mu.Unlock()
	for _, want := range []string{`console.error: [{"type":"string","value":"own"}]`, "thrown", "Content Security Policy", "ContentSecurityPolicyIssue", "request to another host: \"http://192.0.2.1/x.png\""} {
		if !strings.Contains(all, want) {
			t.Errorf("the tab does not report %q:\n%s", want, all)
		}
	}
}
