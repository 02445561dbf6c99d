package server

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"golang.org/x/net/html"
	"golang.org/x/net/html/atom"

	"hsmsign/internal/testkit"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
	"hsmsign/server/authn"
)

// consoleFixture is an API with a console, and a session of each caller.
type consoleFixture struct {
	*apiFixture
	browser *httptest.Server
	cookies map[string]string // by caller
}

// newConsole starts a console.
func newConsole(t testing.TB) *consoleFixture {
	t.Helper()
	f := newAPIFixture(t)
	f.Server.state.Load().Console = &Console{}
	c := &consoleFixture{f, httptest.NewServer(f.handler(authn.HTTP)), map[string]string{}}
	t.Cleanup(c.browser.Close)
	return c
}

// cookie returns the cookie of a session of a caller, which begins with the first call.
func (f *consoleFixture) cookie(t testing.TB, caller string) string {
	t.Helper()
	if f.cookies[caller] == "" {
		secret := sha256.Sum256([]byte("session of " + caller))
		value := base64.RawURLEncoding.EncodeToString(secret[:])
		found := testkit.Value(f.policy.Caller(caller))(t)
		testkit.OK(t, f.ledger.StartSession(t.Context(), ledger.Session{
			ID: record.SHA256([]byte(value)), Caller: caller, Credential: found.Credentials(f.cfg.Now())[0].Name, How: ledger.SignedInLink,
		}))
		f.cookies[caller] = cookieHTTP + "=" + value
	}
	return f.cookies[caller]
}

// get loads a page as a caller, and checks what every page has to be.
func (f *consoleFixture) get(t *testing.T, as, path string) (answered, *html.Node) {
	t.Helper()
	got := f.fetch(t, as, path)
	return got, parsedPage(t, got)
}

// fetch is get for what is no page.
func (f *consoleFixture) fetch(t testing.TB, as, path string) answered {
	t.Helper()
	return send(t, f.browser, http.MethodGet, path, map[string]string{"Cookie": f.cookie(t, as)}, "")
}

// file is a file of a form.
type file struct{ name, content string }

// post sends a multipart form as a browser does. fields are names and values.
func (f *consoleFixture) post(t *testing.T, as, path string, files []file, fields ...string) (answered, *html.Node) {
	t.Helper()
	var body bytes.Buffer
	form := multipart.NewWriter(&body)
	for i := 0; i+1 < len(fields); i += 2 {
		testkit.OK(t, form.WriteField(fields[i], fields[i+1]))
	}
	for _, one := range files {
		part := testkit.Value(form.CreateFormFile("file", one.name))(t)
		_ = testkit.Value(part.Write([]byte(one.content)))(t)
	}
	testkit.OK(t, form.Close())
	got := send(t, f.browser, http.MethodPost, path, map[string]string{
		"Cookie": f.cookie(t, as), "Content-Type": form.FormDataContentType(), "Sec-Fetch-Site": "same-origin",
	}, body.String())
	return got, parsedPage(t, got)
}

// submit sends the form of a page again, as the button of a value does.
func (f *consoleFixture) submit(t *testing.T, as string, page *html.Node, action string, change map[string]string) (answered, *html.Node) {
	t.Helper()
	forms := elements(page, func(n *html.Node) bool {
		kind, _ := attribute(n, "enctype")
		return n.DataAtom == atom.Form && kind == "multipart/form-data"
	})
	if len(forms) != 1 {
		t.Fatalf("%d forms", len(forms))
	}
	fields := []string{"action", action}
	for _, n := range named(forms[0], atom.Input) {
		name, _ := attribute(n, "name")
		value, _ := attribute(n, "value")
		if other, ok := change[name]; ok {
			value = other
		}
		if kind, _ := attribute(n, "type"); kind != "file" {
			fields = append(fields, name, value)
		}
	}
	path, _ := attribute(forms[0], "action")
	return f.post(t, as, path, nil, fields...)
}

// parsedPage parses an answer and checks its HTML and headers.
func parsedPage(t *testing.T, got answered) *html.Node {
	t.Helper()
	if mediaType := got.header.Get("Content-Type"); mediaType != "text/html; charset=utf-8" {
		t.Fatalf("%s %s: status %d, type %q: %s", got.request.Method, got.request.URL.Path, got.status, mediaType, got.body)
	}
	if policy := got.header.Get("Content-Security-Policy"); !strings.Contains(policy, "default-src 'none'") || strings.Contains(policy, "unsafe") {
		t.Errorf("%s: policy %q", got.request.URL.Path, policy)
	}
	root := testkit.Value(html.Parse(strings.NewReader(string(got.body))))(t)
	for _, defect := range htmlDefects(root) {
		t.Errorf("%s %s: %s", got.request.Method, got.request.URL.Path, defect)
	}
	return root
}

// says checks the status of a page, and that it has texts.
func says(t *testing.T, got answered, page *html.Node, status int, texts ...string) {
	t.Helper()
	shown := text(page)
	if got.status != status {
		t.Errorf("%s %s: status %d, want %d: %s", got.request.Method, got.request.URL.Path, got.status, status, shown)
	}
	for _, want := range texts {
		if !strings.Contains(shown, want) {
			t.Errorf("%s %s does not say %q: %s", got.request.Method, got.request.URL.Path, want, fmt.Sprintf("%.3000s", shown))
		}
	}
}
