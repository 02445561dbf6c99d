package server

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"
	"golang.org/x/net/html/atom"

	"hsmsign/api"
	"hsmsign/internal/testkit"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
	"hsmsign/server/authn/oidc"
)

// newRecords starts a console where a person has just signed in other than by a link: only such a session may approve.
func newRecords(t *testing.T) *consoleFixture {
	t.Helper()
	f := newConsole(t)
	f.Server.state.Load().Console = &Console{Providers: map[string]*oidc.Client{"uid": {}}} // the part of the credential that names the provider
	for _, caller := range []string{"ops", "auditor", "fay", "gus", "ada", "careful", "robot", "backend", "acme-ops"} {
		f.session(t, caller, f.cfg.Now())
	}
	return f
}

// session starts a session of a caller who signed in with a provider at a time.
func (f *consoleFixture) session(t *testing.T, caller string, signedIn time.Time) {
	t.Helper()
	value := base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%-11s%21d", caller, signedIn.UnixNano()))
	found := testkit.Value(f.policy.Caller(caller))(t)
	testkit.OK(t, f.ledger.StartSession(t.Context(), ledger.Session{
		ID: record.SHA256([]byte(value)), Caller: caller, Credential: found.Credentials(f.cfg.Now())[0].Name, How: ledger.SignedInOIDC, SignedIn: signedIn,
	}))
	f.cookies[caller] = cookieHTTP + "=" + value
}

// sendForm sends a form, and does not go where the answer leads to.
func (f *consoleFixture) sendForm(t *testing.T, as, path string, form url.Values) answered {
	t.Helper()
	return f.sendBody(t, as, path, "application/x-www-form-urlencoded", form.Encode())
}

func (f *consoleFixture) sendBody(t *testing.T, as, path, mediaType, body string) answered {
	t.Helper()
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	r := testkit.Value(http.NewRequestWithContext(t.Context(), http.MethodPost, f.browser.URL+path, strings.NewReader(body)))(t)
	for name, value := range map[string]string{"Cookie": f.cookie(t, as), "Content-Type": mediaType, "Sec-Fetch-Site": "same-origin"} {
		r.Header.Set(name, value)
	}
	answer := testkit.Value(client.Do(r))(t)
	defer func() { _ = answer.Body.Close() }()
	return answered{r, []byte(body), answer.StatusCode, answer.Header, testkit.Value(io.ReadAll(answer.Body))(t)}
}

// follow loads the page that a form led to.
func (f *consoleFixture) follow(t *testing.T, as string, got answered) *html.Node {
	t.Helper()
	if got.status != http.StatusSeeOther {
		t.Fatalf("%s: %d %s", got.request.URL.Path, got.status, got.body)
	}
	next, root := f.get(t, as, got.header.Get("Location"))
	if next.status != http.StatusOK {
		t.Fatalf("%s: %d", got.header.Get("Location"), next.status)
	}
	return root
}

// fields returns what the form with an action has, as a browser would send it.
func fields(t *testing.T, root *html.Node, action string) url.Values {
	t.Helper()
	for _, form := range named(root, atom.Form) {
		if to, _ := attribute(form, "action"); to != action {
			continue
		}
		values := url.Values{}
		for _, n := range named(form, atom.Input, atom.Textarea) {
			name, _ := attribute(n, "name")
			value, _ := attribute(n, "value")
			if n.DataAtom == atom.Textarea && n.FirstChild != nil {
				value = n.FirstChild.Data
			}
			values.Set(name, value)
		}
		return values
	}
	t.Fatalf("no form with the action %q", action)
	return nil
}

// hasForm returns whether a page has a form that posts to a path.
func hasForm(root *html.Node, action string) bool {
	return slices.ContainsFunc(named(root, atom.Form), func(n *html.Node) bool {
		to, _ := attribute(n, "action")
		return to == action
	})
}

// subjectCSR returns a CSR with a subject, as PEM.
func subjectCSR(t *testing.T, key, subject string) string {
	t.Helper()
	template := &x509.CertificateRequest{Subject: pkix.Name{CommonName: subject}}
	der := testkit.Value(x509.CreateCertificateRequest(rand.Reader, template, testkit.Key(key)))(t)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

// askFor asks for a signature that others must approve, and returns the id of the request.
func (f *apiFixture) askFor(t *testing.T, uid int, customer, csr string) string {
	t.Helper()
	var got api.SignResult
	if status := f.as(t, uid, "POST", "/v1/requests?customer="+url.QueryEscape(customer), csr, &got); status != http.StatusAccepted {
		t.Fatalf("%d %+v", status, got)
	}
	return got.RequestID
}

// TestConsolePending: people decide about what the page has shown, with the difference to the previous CSR, and the API's rules apply.
func TestConsolePending(t *testing.T) {
	f := newRecords(t)
	for _, key := range []string{"acme", "bolt"} {
		if status := f.as(t, backend, "POST", "/v1/requests?customer="+key, newCSR(key), nil); status != http.StatusOK {
			t.Fatal(status)
		}
	}
	id := f.askFor(t, careful, "acme", subjectCSR(t, "acme 2", hostile+strings.Repeat("<b>A</b>", 3000)))
	path := "/console/pending/" + id
	for as, want := range map[string]bool{"fay": true, "ops": false, "auditor": false, "careful": false, "acme-ops": false, "robot": false, "ada": false} {
		got, root := f.get(t, as, path)
		if got.status != http.StatusOK || hasForm(root, path) != want {
			t.Errorf("%s: status %d, may decide: %v, want %v", as, got.status, hasForm(root, path), want)
		}
		harmless(t, got, root)
		says(t, got, root, http.StatusOK, "U+202E", "U+001B", "The subject and the key changed", "<script>alert(1)</script>")
	}
	if _, root := f.get(t, "ada", path); !strings.Contains(text(root), "You own the machine that asked for it") {
		t.Error("an owner is not told why it may not decide")
	}
	if got, root := f.get(t, "fay", "/console/pending"); got.status != http.StatusOK || !slices.Contains(links(root), path) {
		t.Errorf("the list: %d %s", got.status, text(root))
	}
	if got, _ := f.get(t, "fay", path+"0"); got.status != http.StatusNotFound {
		t.Errorf("an unknown id: %d", got.status)
	}

	_, root := f.get(t, "fay", path)
	form := fields(t, root, path)
	form.Set("action", "reject")
	if got := f.sendForm(t, "fay", path, form); got.status != http.StatusBadRequest || !strings.Contains(text(parsedPage(t, got)), "reason") {
		t.Errorf("a rejection without a reason: %d %s", got.status, got.body)
	}
	form.Set("action", "approve")
	changed := url.Values{"csr": {strings.Repeat("a", 64)}, "customer": {"acme"}, "action": {"approve"}, "reason": {"I typed this"}}
	if got := f.sendForm(t, "fay", path, changed); got.status != http.StatusConflict || fields(t, parsedPage(t, got), path).Get("reason") != "I typed this" {
		t.Errorf("another CSR than the one that waits: %d", got.status)
	}
	for as, want := range map[string]int{"ada": http.StatusForbidden, "careful": http.StatusForbidden, "ops": http.StatusForbidden, "robot": http.StatusForbidden} {
		if got := f.sendForm(t, as, path, form); got.status != want || !strings.Contains(text(parsedPage(t, got)), "Rule") {
			t.Errorf("%s sends the form: %d", as, got.status)
		}
	}
	if got := f.sendForm(t, "fay", path, url.Values{"action": {"sign"}}); got.status != http.StatusBadRequest {
		t.Errorf("another action: %d", got.status)
	}
	form.Set("reason", "known by phone")
	recent := f.cookies["fay"]
	delete(f.cookies, "fay") // the next session began with a link
	if got := f.sendForm(t, "fay", path, form); got.status != http.StatusForbidden || fields(t, parsedPage(t, got), path).Get("reason") != "known by phone" || !strings.Contains(string(got.body), ruleLink) {
		t.Errorf("a session that began with a link: %d %s", got.status, got.body)
	}
	f.cookies["fay"] = recent
	if root := f.follow(t, "fay", f.sendForm(t, "fay", path, form)); !strings.Contains(text(root), "Your approval is recorded.") || !strings.Contains(text(root), "known by phone") || hasForm(root, path) {
		t.Errorf("after the approval: %s", text(root))
	}
	if r := f.state(t, careful, id); r.State != "issued" {
		t.Errorf("the last approval does not issue: %+v", r)
	}
}

// TestConsoleRejects: a first CSR is said to be one, and a rejection ends it.
func TestConsoleRejects(t *testing.T) {
	f := newRecords(t)
	id := f.ask(t, careful, "acme")
	path := "/console/pending/" + id
	_, root := f.get(t, "gus", path)
	if !strings.Contains(text(root), "No CSR of this customer was signed before") {
		t.Error(text(root))
	}
	form := fields(t, root, path)
	form.Set("action", "reject")
	form.Set("reason", "not asked for")
	if root := f.follow(t, "gus", f.sendForm(t, "gus", path, form)); !strings.Contains(text(root), "Your rejection is recorded.") || hasForm(root, path) {
		t.Errorf("after the rejection: %s", text(root))
	}
	if r := f.state(t, careful, id); r.State != "rejected" {
		t.Errorf("%+v", r)
	}
	// The end of a freeze is approved on the same page.
	order := api.FreezeOrder{Scope: "all", Reason: "<b>a test</b>"}
	var asked api.Request
	f.as(t, careful, "POST", "/v1/freeze", order, nil)
	f.as(t, careful, "POST", "/v1/unfreeze", order, &asked)
	path = "/console/pending/" + asked.ID
	_, root = f.get(t, "fay", path)
	if !strings.Contains(text(root), "the end of a freeze") || !strings.Contains(text(root), "<b>a test</b>") {
		t.Error(text(root))
	}
	form = fields(t, root, path)
	form.Set("action", "approve")
	f.follow(t, "fay", f.sendForm(t, "fay", path, form))
	if r := f.state(t, careful, asked.ID); r.State != "unfrozen" {
		t.Errorf("%+v", r)
	}
}

// TestConsoleLedger: entries are searched, shown with their proof, and downloaded, each by who may.
func TestConsoleLedger(t *testing.T) {
	f := newRecords(t)
	var signed api.SignResult
	f.as(t, backend, "POST", "/v1/requests?customer=acme&receipt=1", newCSR("acme"), &signed)
	f.as(t, backend, "POST", "/v1/requests?customer=bolt", newCSR("bolt"), nil)
	rows := func(as, search string) int {
		t.Helper()
		got, root := f.get(t, as, "/console/ledger"+search)
		if got.status != http.StatusOK {
			t.Fatalf("%s as %s: %d", search, as, got.status)
		}
		return max(len(named(root, atom.Tr))-1, 0)
	}
	today := time.Now().UTC().Format(time.DateOnly)
	for search, want := range map[string]int{
		"": 8, "?customer=acme": 3, "?kind=issued": 2, "?request=" + signed.RequestID: 2, "?actor=backend&customer=bolt": 3, "?sha256=" + strings.ToUpper(signed.CSRSHA256): 2,
		"?until=" + today: 8, "?until=2020-01-01": 0, "?actor=nobody": 0,
	} {
		if got := rows("ops", search); got != want {
			t.Errorf("%q: %d entries, want %d", search, got, want)
		}
	}
	if got := rows("auditor", ""); got != 3 {
		t.Errorf("a reader of acme sees %d entries", got)
	}
	for search, want := range map[string]int{"?request=nonsense": 400, "?customer=nobody": 404, "?until=soon": 400} {
		got, root := f.get(t, "ops", "/console/ledger"+search)
		name, value, _ := strings.Cut(search[1:], "=")
		if got.status != want || fields(t, root, "/console/ledger").Get(name) != value {
			t.Errorf("%s: %d", search, got.status)
		}
	}
	if got := f.fetch(t, "ops", "/console/ledger?entry=%2E%2E%2Fme"); got.status != http.StatusNotFound {
		t.Errorf("an entry that is a path: %d", got.status)
	}
	if _, root := f.get(t, "ops", "/console/ledger"); !strings.Contains(text(root), "No witness is configured") || !strings.Contains(text(root), "example.com/mdm") {
		t.Errorf("the state of the ledger: %s", text(root))
	}
	f.entriesOfLedger(t, signed)
}

// entriesOfLedger: pages of entries, and downloads.
func (f *consoleFixture) entriesOfLedger(t *testing.T, signed api.SignResult) {
	t.Helper()
	_, root := f.get(t, "ops", "/console/ledger?kind=issued&customer=acme")
	path := ""
	for _, link := range links(root) {
		if strings.HasPrefix(link, "/console/ledger/") {
			path = link
		}
	}
	for as, want := range map[string]int{"ops": 200, "auditor": 200, "backend": 403, "fay": 403} {
		got, root := f.get(t, as, path)
		if got.status != want {
			t.Errorf("%s as %s: %d, want %d", path, as, got.status, want)
		}
		if want == 200 && (!strings.Contains(text(root), "lead to the root of a checkpoint") || !strings.Contains(text(root), "No witness has cosigned") || !strings.Contains(text(root), signed.CSRSHA256)) {
			t.Errorf("%s: %s", path, text(root))
		}
	}
	if got, _ := f.get(t, "auditor", "/console/ledger/0"); got.status != http.StatusNotFound {
		t.Errorf("an entry about no customer: %d", got.status)
	}
	number := strings.TrimPrefix(path, "/console/ledger/")
	for file, want := range map[string]struct{ name, begins string }{
		"entries/" + number + ".tlog-proof": {"entry-" + number + ".tlog-proof", "c2sp.org/tlog-proof"}, "ledger/ledger.csv": {"ledger.csv", "entry,time,kind"},
		"ledger/ledger.jsonl": {"ledger.jsonl", `{"index":0`}, "ledger/checkpoint.txt": {"checkpoint.txt", "example.com/mdm\n"},
	} {
		got := f.fetch(t, "ops", "/console/download/"+file)
		if got.status != 200 || got.header.Get("Content-Disposition") != `attachment; filename="`+want.name+`"` || !strings.HasPrefix(string(got.body), want.begins) {
			t.Errorf("%s: %d %v %.80s", file, got.status, got.header, got.body)
		}
		if got, _ := f.get(t, "backend", "/console/download/"+file); got.status != http.StatusForbidden {
			t.Errorf("%s as a signer: %d", file, got.status)
		}
		if _, ok := strings.CutPrefix(file, "entries/"); ok {
			testkit.Value(ledger.CheckProof(got.body, f.config.Verifier))(t)
		}
	}
	for _, file := range []string{"entries/1", "entries/x.tlog-proof", "ledger/other.csv", "customers/x.ics", "customers/due"} {
		if got, _ := f.get(t, "ops", "/console/download/"+file); got.status != http.StatusNotFound {
			t.Errorf("%s: %d", file, got.status)
		}
	}
}
