package consoletest

import (
	"crypto/x509/pkix"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"hsmsign/internal/testkit"
)

// evil serves a page of another origin: over https it is the same site as the console, so the browser sends the console's cookie with what
// the page posts; over http it is another site.
func evil(t testing.TB, secure bool, page string) string {
	t.Helper()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = w.Write([]byte(`<!doctype html><html lang="en"><head><title>evil</title><link rel="icon" href="data:,"></head><body>` + page)) // the browser may be gone
	}))
	if secure {
		server.StartTLS()
	} else {
		server.Start()
	}
	t.Cleanup(server.Close)
	return server.URL
}

// testForgery: a page of another origin has the browser of an administrator post a form. Nothing happens, and the session goes on.
func testForgery(t *testing.T, o *office) {
	before := len(o.entries(t))
	customer := o.id(t, "dune-hotels")
	forms := map[string]string{
		"/console/sign-out":                        `<input name="where" value="everywhere">`,
		"/console/sign":                            `<input name="customer" value="mallory"><input name="action" value="check"><textarea name="csr">` + csr("mallory", "Mallory") + `</textarea>`,
		"/console/customers/" + customer:           `<textarea name="text">` + o.push(t, "dune-hotels", today.AddDate(2, 0, 0)) + `</textarea>`,
		"/console/customers/" + customer + "/edit": `<input name="name" value="dune-hotels"><input name="account" value="mallory@mallory.example">`,
	}
	for _, secure := range []bool{true, false} {
		for path, fields := range forms {
			site := evil(t, secure, `<form method="post" enctype="multipart/form-data" action="`+o.URL+path+`">`+fields+`<button>Win a prize</button></form>`)
			b := newTab(t, o.URL, o.provider.url, site)
			b.expect("BounceTrackingIssue", path, "GenericIssue") // the refusal, and how this form is made
			o.signInAt(b, "ada", "/console/me")
			if b.open(site); b.press("button") < 400 {
				t.Errorf("https %t: the form of another origin for %s is accepted: %s", secure, path, b.text())
			}
			if b.open("/console/me"); b.where() != o.URL+"/console/me" {
				t.Errorf("https %t: after the form for %s the session has ended", secure, path)
			}
		}
	}
	if after := len(o.entries(t)); after != before {
		t.Errorf("%d entries became %d", before, after)
	}
}

// entries returns the entries of the ledger but those of probes.
func (o *office) entries(t testing.TB) (all []string) {
	t.Helper()
	var list struct{ Items []struct{ Kind string } }
	o.must(t, "ada", http.MethodGet, "/v1/entries?limit=1000", nil, &list)
	for _, e := range list.Items {
		if e.Kind != "probe" {
			all = append(all, e.Kind)
		}
	}
	return all
}

// testFraming: no page of the console is shown within a page of another origin, nor of its own.
func testFraming(t *testing.T, o *office) {
	site := evil(t, true, `<iframe title="f" width="800" height="600" src="`+o.URL+`/console/pending"></iframe>`)
	b := newTab(t, o.URL, o.provider.url, site)
	b.expect("BounceTrackingIssue", "frame-ancestors", "ContentSecurityPolicyIssue", "BlockedByResponseIssue", "chrome-error")
	o.signInAt(b, "fay", "/console/pending")
	b.open(site)
	testkit.Eventually(t, "the browser refuses to frame the console", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return strings.Contains(strings.Join(b.defects, "\n"), "frame-ancestors")
	})
}

// testFixation: a session that somebody else has planted in the browser is not the one that a person signs in to, and ends.
func testFixation(t *testing.T, o *office) {
	mallory := o.signIn(t, "bo")
	planted := mallory.cookies()
	if len(planted) != 1 || !strings.HasPrefix(planted[0].Name, "__Host-") || !planted[0].Secure || !planted[0].HTTPOnly || planted[0].SameSite == "" || planted[0].SameSite == "None" {
		t.Fatalf("the cookies of a session: %+v", planted)
	}
	victim := o.tab(t)
	victim.open("/console/sign-in")
	victim.setCookies(planted)
	o.provider.signsIn("ada")
	victim.open("/console/sign-in")
	victim.press(`a[href*="/console/sign-in/oidc"]`)
	if now := victim.cookies(); len(now) != 1 || now[0].Value == planted[0].Value {
		t.Errorf("the cookie is the one that was planted: %+v", now)
	}
	victim.open("/console/me")
	victim.shows("ada (administrator)")
	if mallory.open("/console/me"); !strings.Contains(mallory.where(), "/console/sign-in") {
		t.Errorf("the planted session goes on: %s", mallory.text())
	}
}

// testExpired: a session ends while somebody fills in a form. The answer says what to do, and what was typed is not lost.
func testExpired(t *testing.T, o *office) {
	b := o.signIn(t, "ada")
	b.open("/console/sign")
	b.fill("#customer", "dune-hotels")
	b.fill("#csr", csr("dune-hotels", "Dune Hotels"))
	o.clock.set(o.clock.now().Add(31*time.Minute), true)
	b.expect(o.URL + "/console/sign") // status 401
	if status := b.press(`main form button[value="check"]`); status != http.StatusUnauthorized {
		t.Fatalf("without a session: status %d\n%s", status, b.text())
	}
	b.everyLook("session-ended")
	b.look(wide, light)
	b.shows("Sign in in another tab", "Submit it again")
	if b.has(`a[target="_blank"][href^="/console/sign-in"]`) != 1 {
		t.Errorf("no link to sign in in another tab:\n%s", b.text())
	}
	o.otherTab(b, "ada")
	if _, err := chromedp.RunResponse(b.ctx, chromedp.NavigateBack()); err != nil {
		t.Fatal(err)
	}
	if got := value(b, chromedp.Value(chromedp.CSS("#csr"))); !strings.Contains(got, "BEGIN CERTIFICATE REQUEST") {
		t.Fatalf("after Back the form has %q", got)
	}
	if status := b.press(`main form button[value="check"]`); status != http.StatusOK {
		t.Errorf("submitted again: status %d\n%s", status, b.text())
	}
}

// otherTab signs a person in in another tab of the same browser.
func (o *office) otherTab(b *tab, person string) {
	b.Helper()
	ctx, cancel := chromedp.NewContext(browser.ctx, chromedp.WithExistingBrowserContext(chromedp.FromContext(b.ctx).BrowserContextID))
	defer cancel()
	other := &tab{TB: b.TB, ctx: ctx, home: b.home}
	other.ignoreCertificates()
	o.signInAt(other, person, "/console/")
}

// testHostile: a subject of a stranger, with markup, marks that change the direction of text, terminal codes and 46 KiB, almost as much as a CSR file may have, is shown as text
// on each page that has it, and nothing of it runs.
func testHostile(t *testing.T, o *office) {
	const markup = `"><script>window.owned=1</script><img src=x onerror="window.owned=1">`
	hostile := csrOf("hostile", pkix.Name{
		CommonName: markup, Organization: []string{"moc.elppa\u202e\u2066\u200b \x1b[31mred"}, Locality: []string{strings.Repeat("lángo ", 6600)},
		Province: []string{"{{.}}'; alert(1) //"},
	})
	id := o.ask(t, "hostile", hostile)
	ada, fay := o.signIn(t, "ada"), o.signIn(t, "fay")
	fay.look(narrow, dark)
	fay.open("/console/pending/" + id)
	fay.harmless("approval", markup)
	fay.fill("#reason", markup+" \u202e")
	fay.press(`button[value="approve"]`)
	fay.harmless("approved", markup)
	ada.open("/console/sign")
	ada.fill("#customer", "hostile")
	ada.paste("#csr", hostile)
	ada.click(`main form button[value="check"]`, `button[value="request"]`)
	ada.harmless("check", markup)
	ada.click(`button[value="request"]`, `a[href$=".req"]`)
	ada.harmless("result", markup)
	ada.open("/console/requests/" + id)
	ada.harmless("request", markup)
	ada.open("/console/verify")
	ada.paste("#request", o.request(t, id).Request)
	ada.press("main form button")
	ada.harmless("verify", markup)
	ada.open("/console/ledger?customer=hostile&kind=issued")
	ada.press("tbody a")
	ada.harmless("entry", "")
	ada.open("/console/ledger?actor=" + url.QueryEscape(markup))
	ada.harmless("search", "")
}

// harmless fails the test unless the page shows a text as text, and nothing of it has run.
func (b *tab) harmless(what, shown string) {
	b.Helper()
	// A long text is clipped, and all of it is in an element that opens.
	if all := value(b, chromedp.Evaluate[string]("document.body.textContent")); !strings.Contains(all, shown) {
		b.Errorf("%s: does not show %q", what, shown)
	}
	if value(b, chromedp.Evaluate[bool](`window.owned !== undefined || document.querySelector("main script, main img, main [onerror]") !== null`)) {
		b.Errorf("%s: the text of a stranger has become a part of the page", what)
	}
	for _, invisible := range []string{"\u202e", "\u2066", "\u200b", "\x1b"} {
		if strings.Contains(b.text(), invisible) {
			b.Errorf("%s: shows %+q, which nobody sees", what, invisible)
		}
	}
	if got, width := value(b, chromedp.Evaluate[int64]("document.documentElement.scrollWidth")), value(b, chromedp.Evaluate[int64]("window.innerWidth")); got > width {
		b.Errorf("%s: the page is %d pixels wide, the window %d", what, got, width)
	}
	b.audit("hostile " + what)
}
