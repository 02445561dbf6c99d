package consoletest

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	cdpbrowser "github.com/chromedp/cdproto/browser"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/chromedp"

	"hsmsign/internal/testkit"
)

// click presses what a selector selects, and waits until the page has what another one selects: after a new page, or what the script has
// changed.
func (b *tab) click(selector, until string) {
	b.Helper()
	b.front()
	b.do(chromedp.Click(chromedp.CSS(selector), chromedp.NodeVisible), chromedp.WaitVisible(chromedp.CSS(until)))
}

// download presses a link, and returns the name and the content of the file that the browser stores.
func (b *tab) download(selector string) (name, content string) {
	b.Helper()
	dir := b.TempDir()
	b.do(chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		_, err := cdp.Call(ctx, target, cdpbrowser.SetDownloadBehavior, cdpbrowser.SetDownloadBehaviorParams{
			Behavior: cdpbrowser.SetDownloadBehaviorBehaviorAllow, BrowserContextID: chromedp.FromContext(b.ctx).BrowserContextID, DownloadPath: dir,
		})
		return err
	}), chromedp.Click(chromedp.CSS(selector), chromedp.NodeVisible))
	for end := time.Now().Add(stepWait); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		found := testkit.Value(os.ReadDir(dir))(b)
		if len(found) == 1 && !strings.HasSuffix(found[0].Name(), ".crdownload") && !strings.HasPrefix(found[0].Name(), ".") {
			return found[0].Name(), string(testkit.Value(os.ReadFile(filepath.Join(dir, found[0].Name())))(b))
		}
	}
	b.Fatalf("%s at %s stores no file\n%s", selector, b.where(), b.text())
	return "", ""
}

// testJobs: what administrators do all day, with the script of the console and without any.
func testJobs(t *testing.T, o *office) {
	for _, script := range []bool{true, false} {
		name := map[bool]string{true: "kestrel", false: "lark"}[script]
		t.Run(map[bool]string{true: "with script", false: "without script"}[script], func(t *testing.T) {
			ada, fay := o.tab(t), o.tab(t)
			if !script {
				ada.withoutScript()
				fay.withoutScript()
			}
			o.signInAt(ada, "ada", "/console/sign")
			request := ada.signsCSR(o, name)
			ada.verifies(request, script)
			ada.attaches(o, name)
			o.signInAt(fay, "fay", "/console/pending")
			fay.approves(o, name)
			fay.rejects(o, name)
			ada.searches(name)
			ada.signsOutEverywhere(o)
		})
	}
}

// signsCSR checks a CSR and one that is none, requests the signature, and downloads the request, which it returns.
func (b *tab) signsCSR(o *office, name string) string {
	b.Helper()
	b.fill("#customer", name)
	b.file("#file", name+".csr", csr(name, "The Company "+name))
	b.paste("#csr", "-----BEGIN CERTIFICATE REQUEST-----\nbm90IGEgQ1NS\n-----END CERTIFICATE REQUEST-----\n")
	b.click(`main form button[value="check"]`, `button[value="request"]`)
	b.shows("It can be signed", "The Company "+name, "refused", "What to do")
	if name == "kestrel" {
		b.everyLook("sign-check")
		b.look(wide, light)
	}
	if o.Key.Calls.Load() != o.signatures(b) {
		b.Error("a check has made a signature")
	}
	b.click(`button[value="request"]`, `a[href$=".req"]`)
	b.shows("1 of 2 requested. 1 refused.", "signed for", "identity.apple.com")
	file, content := b.download(`a[href$=".req"]`)
	if strings.TrimSuffix(file, ".req") == file || len(file) != 36 {
		b.Errorf("the name of the download is %q", file)
	}
	proof, text := b.download(`a[href$=".tlog-proof"]`)
	if proof != strings.TrimSuffix(file, ".req")+".tlog-proof" || !strings.HasPrefix(text, "c2sp.org/tlog-proof@") {
		b.Errorf("the receipt %q is %q", proof, text)
	}
	return content
}

// verifies has the console verify a request.
func (b *tab) verifies(request string, script bool) {
	b.Helper()
	b.open("/console/verify")
	b.paste("#request", request)
	b.press(`main form button`)
	b.shows("under a root that this service trusts, and that is not Apple's", "The vendor's signature verifies")
	if script {
		b.everyLook("verify-result")
	}
}

// attaches attaches the push certificate of a customer, after another file that is none.
func (b *tab) attaches(o *office, name string) {
	b.Helper()
	b.open("/console/customers/" + o.id(b, name))
	b.paste("#text", csr(name, "no certificate"))
	b.expect("/console/customers/" + o.id(b, name)) // status 422
	if status := b.press(`form[enctype] button.main`); status < 400 {
		b.Errorf("a CSR was attached: status %d\n%s", status, b.text())
	}
	b.open("/console/customers/" + o.id(b, name))
	b.file("#file", name+".pem", o.push(b, name, today.AddDate(1, 0, 0)))
	if status := b.press(`form[enctype] button.main`); status != http.StatusOK {
		b.Errorf("attach: status %d", status)
	}
	b.shows("com.apple.mgmt.External."+name, "days left")
}

// approves approves a request of the portal.
func (b *tab) approves(o *office, name string) {
	b.Helper()
	id := o.ask(b, name+"-new", csr(name+"-new", "A new company "+name))
	b.open("/console/pending")
	b.press(`a[href="/console/pending/` + id + `"]`)
	b.shows("A new company "+name, "a request of a new customer")
	b.fill("#reason", "called them")
	b.press(`button[value="approve"]`)
	if r := o.request(b, id); r.State != "issued" {
		b.Errorf("the approved request is %s\n%s", r.State, b.text())
	}
	b.shows("issued")
}

// rejects rejects a request of the portal, which needs a reason.
func (b *tab) rejects(o *office, name string) {
	b.Helper()
	id := o.ask(b, name, csr(name+"-key", "The Company "+name))
	b.open("/console/pending/" + id)
	b.shows("The key is a new one")
	b.expect("/console/pending/" + id) // status 400
	if status := b.press(`button[value="reject"]`); status < 400 || o.request(b, id).State != "pending" {
		b.Errorf("rejected without a reason: status %d\n%s", status, b.text())
	}
	b.fill("#reason", "nobody knows of it")
	b.press(`button[value="reject"]`)
	if r := o.request(b, id); r.State != "rejected" {
		b.Errorf("the rejected request is %s\n%s", r.State, b.text())
	}
}

// searches finds the entries of a customer, shows one with its proof, and exports the ledger.
func (b *tab) searches(name string) {
	b.Helper()
	b.open("/console/ledger")
	b.fill("#customer", name)
	b.paste("#kind", "attached")
	b.press(`form[role="search"] button`)
	if b.has("tbody tr") != 1 || !strings.Contains(b.where(), "customer="+name) {
		b.Errorf("the search finds %d rows at %s\n%s", b.has("tbody tr"), b.where(), b.text())
	}
	b.press(`tbody a`)
	b.shows("The checkpoint has a valid signature")
	if file, text := b.download(`a[href$=".tlog-proof"]`); !strings.HasPrefix(file, "entry-") || !strings.HasPrefix(text, "c2sp.org/tlog-proof@") {
		b.Errorf("the proof %q is %q", file, text)
	}
	b.open("/console/ledger")
	if file, text := b.download(`a[href$="ledger.csv"]`); !strings.HasSuffix(file, ".csv") || !strings.Contains(text, name) || strings.Count(text, "\n") < 40 {
		b.Errorf("the export %q is %.300q", file, text)
	}
	b.open("/console/customers?match=" + name)
	if file, text := b.download(`a[href$="due.ics"]`); !strings.HasSuffix(file, ".ics") || !strings.HasPrefix(text, "BEGIN:VCALENDAR") {
		b.Errorf("the calendar %q is %.300q", file, text)
	}
}

// signsOutEverywhere ends the sessions of another browser too.
func (b *tab) signsOutEverywhere(o *office) {
	b.Helper()
	other := o.signIn(b.TB, "ada")
	b.open("/console/me")
	b.press(`button[name="everywhere"]`)
	b.shows("You are signed out")
	if other.open("/console/me"); !strings.Contains(other.where(), "/console/sign-in") {
		b.Errorf("the other browser is still signed in: %s", other.where())
	}
}

// signatures returns how many signatures the ledger has: intents and probes.
func (o *office) signatures(t testing.TB) int64 {
	t.Helper()
	total := int64(0)
	for _, kind := range []string{"intent", "probe"} {
		var list struct{ Items []struct{} }
		o.must(t, "ada", http.MethodGet, "/v1/entries?limit=1000&kind="+kind, nil, &list)
		total += int64(len(list.Items))
	}
	return total
}
