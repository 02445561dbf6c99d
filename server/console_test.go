package server_test

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"hsmsign/agent/policy"
	"hsmsign/api"
	"hsmsign/internal/servicekit"
	"hsmsign/internal/testkit"
	"hsmsign/ledger"
	"hsmsign/server"
	"hsmsign/server/authn/oidc"
	"hsmsign/server/authn/oidc/oidctest"
)

// browser is a browser with cookies that follows no redirect. Its forms are those of the service's own pages.
type browser struct {
	*http.Client
	base string
}

// newBrowser returns a browser at the TLS listener, with a client certificate or none.
func newBrowser(t *testing.T, s *servicekit.Service, cert *tls.Certificate) *browser {
	t.Helper()
	client := s.Client(t, cert)
	client.Jar = testkit.Value(cookiejar.New(nil))(t)
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &browser{client, s.URL}
}

func (b *browser) get(t *testing.T, path string, headers ...string) servicekit.Answer {
	t.Helper()
	return servicekit.Do(t, b.Client, "", "GET", b.base+path, "", append(headers, "Sec-Fetch-Site", "none")...)
}

func (b *browser) post(t *testing.T, path string, form url.Values, headers ...string) servicekit.Answer {
	t.Helper()
	return servicekit.Do(t, b.Client, "", "POST", b.base+path, form.Encode(), append([]string{"Content-Type", "application/x-www-form-urlencoded", "Sec-Fetch-Site", "same-origin"}, headers...)...)
}

// signedIn returns whether a page is shown to the browser, and not the sign-in. The page does not exist.
func (b *browser) signedIn(t *testing.T) bool {
	t.Helper()
	return b.get(t, "/console/nothing").StatusCode == http.StatusNotFound
}

// withConsole returns options with the console, and a caller for the Unix user of the test.
func withConsole() servicekit.Options {
	return servicekit.Options{Console: true, Callers: map[string]policy.CallerConfig{"local": {Role: "admin", Person: "bo", UID: []int{os.Getuid()}}}}
}

// link returns the path of a link for the Unix user of the test.
func link(t *testing.T, s *servicekit.Service) string {
	t.Helper()
	a := servicekit.Do(t, s.UnixClient(t), "", "POST", "http://localhost/v1/console/login", "")
	wanted(t, "a link", a, 200, "")
	u := testkit.Value(url.Parse(decoded[api.ConsoleLogin](t, a.Body).URL))(t)
	return u.Path
}

var hiddenToken = regexp.MustCompile(`name="token" value="([^"]+)"`)

// signInByLink signs in as the Unix user of the test.
func (b *browser) signInByLink(t *testing.T, s *servicekit.Service) servicekit.Answer {
	t.Helper()
	page := b.get(t, link(t, s))
	found := hiddenToken.FindStringSubmatch(page.Body)
	if page.StatusCode != 200 || found == nil {
		t.Fatalf("%d: %s", page.StatusCode, page.Body)
	}
	return b.post(t, "/console/sign-in/link", url.Values{"token": {found[1]}})
}

// A link signs its Unix user in once. To look at it redeems nothing, and a second browser is refused.
func TestConsoleLink(t *testing.T) {
	s := servicekit.Start(t, withConsole())
	b := newBrowser(t, s, nil)
	path := link(t, s)
	for range 3 {
		if a := b.get(t, path); a.StatusCode != 200 || a.Header.Get("Set-Cookie") != "" {
			t.Fatalf("%d, %v", a.StatusCode, a.Header)
		}
	}
	form := url.Values{"token": {path[strings.LastIndex(path, "/")+1:]}}
	a := b.post(t, "/console/sign-in/link", form)
	if a.StatusCode != 303 || a.Header.Get("Location") != "/console/" || !b.signedIn(t) {
		t.Fatalf("%d %s", a.StatusCode, a.Body)
	}
	other := newBrowser(t, s, nil)
	if a := other.post(t, "/console/sign-in/link", form); a.StatusCode != 401 || other.signedIn(t) || !strings.Contains(a.Body, "the link was used") {
		t.Errorf("used twice: %d %s", a.StatusCode, a.Body)
	}
	if strings.Contains(s.Log(), form.Get("token")) {
		t.Error("the log has the token of the link")
	}
	wanted(t, "over TLS", servicekit.Do(t, s.Client(t, &s.Cert), "", "POST", s.URL+"/v1/console/login", ""), 403, "console.link")
}

// cookies returns the cookies of the browser, by name.
func (b *browser) cookies(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, c := range b.Jar.Cookies(testkit.Value(url.Parse(b.base))(t)) {
		all[c.Name] = c.Value
	}
	return all
}

// A session begins with a new id, belongs to the console alone, and ends by sign-out, here and everywhere.
func TestConsoleSession(t *testing.T) {
	s := servicekit.Start(t, withConsole())
	b := newBrowser(t, s, nil)
	planted := strings.Repeat("A", 43)
	b.Jar.SetCookies(testkit.Value(url.Parse(s.URL))(t), []*http.Cookie{{Name: "__Host-hsmsign", Value: planted, Path: "/", Secure: true}})
	a := b.signInByLink(t, s)
	value := b.cookies(t)["__Host-hsmsign"]
	if a.StatusCode != 303 || value == planted || len(value) != 43 {
		t.Fatalf("%d: the session has the id %q", a.StatusCode, value)
	}
	if set := a.Header.Get("Set-Cookie"); set != "__Host-hsmsign="+value+"; Path=/; HttpOnly; Secure; SameSite=Lax" {
		t.Errorf("the cookie %q", set)
	}
	stored := testkit.Value(s.Ledger.Sessions(t.Context(), "local"))(t)
	if len(stored) != 1 || strings.Contains(stored[0].ID.String(), value) || stored[0].How != ledger.SignedInLink {
		t.Errorf("%+v", stored)
	}
	client := s.Client(t, nil)
	cookie := []string{"Cookie", "__Host-hsmsign=" + value, "Sec-Fetch-Site", "same-origin"}
	ask := func(method, path string, headers ...string) int {
		t.Helper()
		client.CheckRedirect = b.CheckRedirect
		return servicekit.Do(t, client, "", method, s.URL+path, "", headers...).StatusCode
	}
	for what, tt := range map[string]struct {
		path    string
		headers []string
		want    int
	}{
		"the console":      {"/console/nothing", cookie, 404},
		"the API":          {"/v1/me", cookie, 401},
		"a bearer token":   {"/console/nothing", []string{"Authorization", "Bearer " + s.Tokens["backend"]}, 303},
		"both":             {"/console/nothing", append([]string{"Authorization", "Bearer " + s.Tokens["backend"]}, cookie...), 303},
		"the name of HTTP": {"/console/nothing", []string{"Cookie", "hsmsign-loopback=" + value}, 303},
		"two cookies":      {"/console/nothing", []string{"Cookie", "__Host-hsmsign=" + value + "; __Host-hsmsign=" + planted}, 303},
		"another cookie":   {"/console/nothing", []string{"Cookie", "__Host-hsmsign=" + planted}, 303},
		"no cookie":        {"/console/nothing", nil, 303},
		"another Host":     {"/console/nothing", append([]string{"Host", "evil.example"}, cookie...), 400},
	} {
		if got := ask("GET", tt.path, tt.headers...); got != tt.want {
			t.Errorf("%s: %d, want %d", what, got, tt.want)
		}
	}
	form := url.Values{}
	for what, headers := range map[string][]string{
		"another site": {"Sec-Fetch-Site", "cross-site"}, "a sister of the site": {"Sec-Fetch-Site", "same-site"}, "nothing said": {"Sec-Fetch-Site", ""},
		"another Origin": {"Sec-Fetch-Site", "", "Origin", "https://evil.example"}, "no Origin": {"Sec-Fetch-Site", "", "Origin", "null"},
	} {
		if a := b.post(t, "/console/sign-out", form, headers...); a.StatusCode != 403 || !strings.Contains(a.Body, "another web site") || !b.signedIn(t) {
			t.Errorf("%s: %d", what, a.StatusCode)
		}
	}
	second := newBrowser(t, s, nil)
	second.signInByLink(t, s)
	if a := b.post(t, "/console/sign-out", form); a.StatusCode != 200 || b.cookies(t)["__Host-hsmsign"] != "" || !second.signedIn(t) {
		t.Errorf("sign out: %d", a.StatusCode)
	}
	if got := ask("GET", "/console/nothing", cookie...); got != 303 {
		t.Errorf("the cookie after the sign-out: %d", got)
	}
	third := newBrowser(t, s, nil)
	third.signInByLink(t, s)
	if a := third.post(t, "/console/sign-out", url.Values{"everywhere": {"1"}}); a.StatusCode != 200 || second.signedIn(t) || third.signedIn(t) {
		t.Errorf("sign out everywhere: %d", a.StatusCode)
	}
	// A form that was sent without a session says what to do, and leaves the page to Back.
	if a := third.post(t, "/console/sign-out", form); a.StatusCode != 401 || !strings.Contains(a.Body, "Sign in in another tab") || a.Header.Get("Location") != "" || a.Header.Get("WWW-Authenticate") != "" {
		t.Errorf("expired: %d %s", a.StatusCode, a.Body)
	}
	if a := third.get(t, "/console/pending/1?x=%3C1"); a.Header.Get("Location") != "/console/sign-in?back=%2Fconsole%2Fpending%2F1%3Fx%3D%253C1" {
		t.Errorf("a page without a session: %v", a.Header)
	}
	if strings.Contains(s.Log(), value) {
		t.Error("the log has the cookie")
	}
}

// Every answer of the console has the headers that keep other sites and scripts away.
func TestConsoleHeaders(t *testing.T) {
	s := servicekit.Start(t, withConsole())
	b := newBrowser(t, s, nil)
	for _, path := range []string{"/", "/console", "/console/", "/console/sign-in", "/console/nothing", "/console/sign-in/oidc?issuer=x", "/console/callback/x", "/console/sign-in/link/x"} {
		header := b.get(t, path).Header
		for name, want := range map[string]string{
			"Content-Security-Policy":    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
			"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin", "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store",
		} {
			if header.Get(name) != want {
				t.Errorf("%s: %s is %q", path, name, header.Get(name))
			}
		}
	}
	if a := servicekit.Do(t, s.UnixClient(t), "", "GET", "http://localhost/console/sign-in", ""); a.StatusCode != 404 || a.Header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("at the Unix socket: %d", a.StatusCode)
	}
	off := servicekit.Start(t, servicekit.Options{})
	for _, path := range []string{"/", "/console/", "/console/sign-in"} {
		wanted(t, "without console: "+path, servicekit.Do(t, off.Client(t, &off.Cert), "", "GET", off.URL+path, ""), 404, "")
	}
}

// A client certificate signs in by POST, and the session is worth nothing on a connection without it. Its caller, its credential
// and its role are those of now.
func TestConsoleCertificate(t *testing.T) {
	s := servicekit.Start(t, withConsole())
	b := newBrowser(t, s, &s.Cert)
	if a := b.get(t, "/console/sign-in"); b.signedIn(t) || !strings.Contains(a.Body, "client certificate") {
		t.Error("the certificate alone is a session")
	}
	form := url.Values{"back": {"/console/customers?sort=name"}}
	if a := b.post(t, "/console/sign-in/certificate", form, "Sec-Fetch-Site", "cross-site"); a.StatusCode != 403 || b.signedIn(t) {
		t.Errorf("from another site: %d", a.StatusCode)
	}
	if a := b.post(t, "/console/sign-in/certificate", form); a.StatusCode != 303 || a.Header.Get("Location") != "/console/customers?sort=name" || !b.signedIn(t) {
		t.Fatalf("%d %s", a.StatusCode, a.Body)
	}
	silent := newBrowser(t, s, &s.Cert)
	if a := silent.post(t, "/console/sign-in/certificate", form, "Sec-Fetch-Site", ""); a.StatusCode != 403 || silent.signedIn(t) {
		t.Errorf("from nobody knows where: %d", a.StatusCode)
	}
	bare := newBrowser(t, s, nil)
	if a := bare.post(t, "/console/sign-in/certificate", form); a.StatusCode != 401 || bare.signedIn(t) {
		t.Errorf("without a certificate: %d", a.StatusCode)
	}
	other := s.CA.Issue(t, "other", nil)
	for name, cert := range map[string]*tls.Certificate{"none": nil, "another one": &other} {
		thief := newBrowser(t, s, cert)
		thief.Jar = b.Jar
		if thief.signedIn(t) {
			t.Errorf("the cookie with the certificate %s", name)
		}
	}
	if !b.signedIn(t) {
		t.Error("the session has ended")
	}
	ada := s.Callers["ada"]
	reload := func(change func(c *policy.CallerConfig)) {
		changed := ada
		change(&changed)
		s.Callers["ada"] = changed
		testkit.OK(t, s.Server.Reload(t.Context(), true))
	}
	reload(func(c *policy.CallerConfig) { c.From = []string{"192.0.2.0/24"} })
	if b.signedIn(t) {
		t.Error("from another network")
	}
	reload(func(c *policy.CallerConfig) { c.Role = "reader" })
	if !b.signedIn(t) {
		t.Error("with another role")
	}
	reload(func(c *policy.CallerConfig) { c.ClientCert.SPKI = []string{servicekit.Pin(other)} })
	if b.signedIn(t) || len(testkit.Value(s.Ledger.Sessions(t.Context(), "ada"))(t)) != 0 {
		t.Error("with another certificate in the configuration")
	}
	reload(func(*policy.CallerConfig) {})
	if b.signedIn(t) {
		t.Error("a session that had ended is back")
	}
	b.post(t, "/console/sign-in/certificate", form)
	delete(s.Callers, "ada")
	testkit.OK(t, s.Server.Reload(t.Context(), true))
	if b.signedIn(t) || len(testkit.Value(s.Ledger.Sessions(t.Context(), ""))(t)) != 0 {
		t.Error("without the caller")
	}
	s.Callers["ada"] = ada
}

// people returns options with an issuer at which the caller "person" signs in.
func people(double *oidctest.Issuer) servicekit.Options {
	options := withConsole()
	options.Issuers = map[string]policy.OIDCIssuer{"people": {URL: double.URL, Audience: "https://sign.example.com", Kind: "generic"}}
	options.Callers["person"] = policy.CallerConfig{Role: "reader", Person: "ada", OIDC: policy.OIDCConfig{Issuer: "people", Claims: map[string]string{"sub": "person-1"}}}
	options.ConsoleOIDC = []oidc.ClientConfig{{Issuer: "people", ClientID: "console", Secret: func() (string, error) { return oidctest.Secret, nil }}}
	return options
}

// begin sends the browser to the provider, and returns the address.
func (b *browser) begin(t *testing.T, query string) string {
	t.Helper()
	a := b.get(t, "/console/sign-in/oidc?issuer=people"+query)
	if a.StatusCode != 303 {
		t.Fatalf("%d %s", a.StatusCode, a.Body)
	}
	return a.Header.Get("Location")
}

// A provider signs people in who are callers. Its answer is accepted once, and by the browser that began.
func TestConsoleOIDC(t *testing.T) {
	double := oidctest.New(t, "")
	var later atomic.Int64 // how much the clock of the service is ahead: few requests of strangers are logged in one second
	options := people(double)
	options.Change = func(cfg *server.Config) {
		cfg.Now = func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
	}
	s := servicekit.Start(t, options)
	b := newBrowser(t, s, nil)
	answer := func(u *url.URL) string { return u.RequestURI() }
	back := double.Authorize(t, b.begin(t, "&back=/console/customers"), nil)
	if back.Scheme+"://"+back.Host != s.URL || back.Path != "/console/callback/people" {
		t.Fatalf("the provider sends the browser to %s", back)
	}
	other := newBrowser(t, s, nil)
	other.begin(t, "")
	if a := other.get(t, answer(back)); a.StatusCode != 401 || other.signedIn(t) || !strings.Contains(s.Log(), "sign-in of this browser") {
		t.Errorf("another browser: %d", a.StatusCode)
	}
	cookies := b.Jar.Cookies(back)
	if a := b.get(t, answer(back), "Sec-Fetch-Site", "cross-site"); a.StatusCode != 303 || a.Header.Get("Location") != "/console/customers" || !b.signedIn(t) {
		t.Fatalf("%d %s\n%s", a.StatusCode, a.Body, s.Log())
	}
	again := newBrowser(t, s, nil)
	again.Jar.SetCookies(back, []*http.Cookie{{Name: cookies[0].Name, Value: cookies[0].Value, Path: "/", Secure: true}})
	if a := again.get(t, answer(back)); a.StatusCode != 401 || again.signedIn(t) {
		t.Errorf("the answer again: %d", a.StatusCode)
	}
	// The same sign-in with another code.
	first := newBrowser(t, s, nil)
	address := first.begin(t, "")
	kept := first.Jar.Cookies(back)
	if a := first.get(t, answer(double.Authorize(t, address, nil))); a.StatusCode != 303 {
		t.Fatalf("%d", a.StatusCode)
	}
	first.Jar.SetCookies(back, []*http.Cookie{{Name: kept[0].Name, Value: kept[0].Value, Path: "/", Secure: true}})
	if a := first.get(t, answer(double.Authorize(t, address, nil))); a.StatusCode != 401 || !strings.Contains(s.Log(), "the sign-in was used already") {
		t.Errorf("another code for the same sign-in: %d", a.StatusCode)
	}
	for what, tt := range map[string]struct {
		claims map[string]any
		change func(u *url.URL)
		reason string
	}{
		"nobody":           {claims: map[string]any{"sub": "person-2"}, reason: "no caller has the sub"},
		"refused":          {change: func(u *url.URL) { u.RawQuery += "&error=access_denied" }, reason: "access_denied"},
		"another issuer":   {change: func(u *url.URL) { u.Path = "/console/callback/other" }, reason: "the answer of the issuer"},
		"a token for bots": {claims: map[string]any{"aud": "https://sign.example.com"}, reason: "the audience of the ID token"},
	} {
		later.Add(int64(time.Second))
		b := newBrowser(t, s, nil)
		back := double.Authorize(t, b.begin(t, ""), tt.claims)
		if tt.change != nil {
			tt.change(back)
		}
		a := b.get(t, answer(back))
		if a.StatusCode != 401 || b.signedIn(t) || !strings.Contains(a.Body, "you were not signed in") || strings.Contains(a.Body, tt.reason) {
			t.Errorf("%s: %d %s", what, a.StatusCode, a.Body)
		}
		testkit.Until(t, "the log has the reason: "+tt.reason, func() bool { return strings.Contains(s.Log(), tt.reason) })
	}
	double.Down(true)
	if a := b.get(t, answer(double.Authorize(t, b.begin(t, ""), nil))); a.StatusCode != 503 || strings.Contains(a.Body, double.URL) {
		t.Errorf("the provider is down: %d", a.StatusCode)
	}
	double.Down(false)
	if !b.signedIn(t) {
		t.Error("a sign-in that failed has ended the session")
	}
	if strings.Contains(s.Log(), oidctest.Secret) {
		t.Error("the log has the secret of the client")
	}
}

// A session ends when nobody uses it for half an hour.
func TestConsoleIdle(t *testing.T) {
	var later atomic.Int64
	options := withConsole()
	options.Ledger = func(cfg *ledger.Config) {
		cfg.Now = func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
	}
	s := servicekit.Start(t, options)
	b := newBrowser(t, s, nil)
	b.signInByLink(t, s)
	for i, want := range []bool{true, true, false} {
		later.Add(int64(29*time.Minute + time.Duration(i/2)*2*time.Minute))
		if b.signedIn(t) != want {
			t.Errorf("request %d: want a session: %v", i, want)
		}
	}
}

// Strangers are slowed down before the ledger is asked.
func TestConsoleRate(t *testing.T) {
	s := servicekit.Start(t, withConsole())
	b := newBrowser(t, s, nil)
	limited := 0
	for i := range 80 {
		a := servicekit.Do(t, b.Client, "", "GET", s.URL+"/console/nothing", "", "Cookie", fmt.Sprintf("__Host-hsmsign=%042dA", i))
		if a.StatusCode == 429 && a.Header.Get("Retry-After") == "1" {
			limited++
		}
	}
	if limited == 0 {
		t.Error("80 guessed cookies were looked up")
	}
	if a := b.post(t, "/console/sign-in/link", url.Values{"token": {"x"}}); a.StatusCode != 429 {
		t.Errorf("a sign-in: %d", a.StatusCode)
	}
	wanted(t, "the API meanwhile", servicekit.Do(t, s.Client(t, nil), s.Tokens["acme"], "GET", s.URL+"/v1/me", ""), 200, "")
}
