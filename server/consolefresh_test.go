package server

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"hsmsign/agent/policy"
	"hsmsign/internal/testkit"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
	"hsmsign/server/authn"
)

// TestFresh: what demands a fresh sign-in refuses one of 5 minutes ago, and one by a link where it approves.
func TestFresh(t *testing.T) {
	f := newAPIFixture(t)
	now := time.Now()
	for what, tt := range map[string]struct {
		how      string
		age      time.Duration
		demanded freshness
		rule     string
	}{
		"any time":             {ledger.SignedInLink, time.Hour, freshAny, ""},
		"just now":             {ledger.SignedInOIDC, 5*time.Minute - time.Second, freshStrong, ""},
		"5 minutes ago":        {ledger.SignedInOIDC, 5 * time.Minute, freshStrong, ruleFresh},
		"recently":             {ledger.SignedInLink, time.Minute, freshRecent, ""},
		"a link":               {ledger.SignedInLink, 0, freshStrong, ruleLink},
		"a certificate, hours": {ledger.SignedInCertificate, 2 * time.Hour, freshRecent, ruleFresh},
	} {
		c := &call{Server: f.Server, signed: &ledger.Session{How: tt.how, SignedIn: now.Add(-tt.age), Read: now}}
		if err := c.isFresh(tt.demanded); (err == nil) != (tt.rule == "") || err != nil && !strings.Contains(c.problem(err).Rule, tt.rule) {
			t.Errorf("%s: %v, want the rule %q", what, err, tt.rule)
		}
	}
	if err := (&call{}).isFresh(freshStrong); err != nil {
		t.Errorf("a credential that is not a session: %v", err)
	}
}

// TestFreshRoutes: the routes that approve, change customers and attach demand a fresh sign-in, also of a page that asks in process.
func TestFreshRoutes(t *testing.T) {
	f := newAPIFixture(t)
	want := map[string]freshness{
		"POST /v1/requests/{id}/approve": freshStrong, "POST /v1/requests/{id}/reject": freshStrong, "POST /v1/customers": freshRecent,
		"PATCH /v1/customers/{id}": freshRecent, "POST /v1/customers/{id}/push-certificates": freshRecent,
	}
	for _, rt := range routes() {
		if rt.fresh != want[rt.pattern] {
			t.Errorf("%s demands %d, want %d", rt.pattern, rt.fresh, want[rt.pattern])
		}
		if rt.fresh == freshAny {
			continue
		}
		method, path, _ := strings.Cut(rt.pattern, " ")
		caller := testkit.Value(f.policy.Caller("ops"))(t)
		w := httptest.NewRecorder()
		r := httptest.NewRequest(method, strings.ReplaceAll(path, "{id}", strings.Repeat("a", 32)), http.NoBody)
		c := &call{Server: f.Server, w: w, r: r, state: f.Server.state.Load(), begun: time.Now(), signed: &ledger.Session{How: ledger.SignedInOIDC, Read: time.Now()}}
		c.known(policy.Credential{Caller: caller, Name: "oidc people 0"}, channelConsole)
		if err := c.admit(c.find()); err == nil || c.problem(err).Rule != ruleFresh {
			t.Errorf("%s with an old sign-in: %v", rt.pattern, err)
		}
	}
}

// TestLoopbackCookie: on HTTP to a loopback address the cookie has its own name and no Secure, and that of TLS is not accepted.
func TestLoopbackCookie(t *testing.T) {
	f := newAPIFixture(t)
	secret := make([]byte, secretBytes)
	_, _ = rand.Read(secret)
	value := base64.RawURLEncoding.EncodeToString(secret)
	testkit.OK(t, f.ledger.StartSession(t.Context(), ledger.Session{ID: record.SHA256([]byte(value)), Caller: "ops", Credential: "uid 1002", How: ledger.SignedInLink}))
	for name, want := range map[string]bool{cookieHTTP: true, cookieTLS: false} {
		r := httptest.NewRequest("GET", "/console/", http.NoBody).WithContext(context.Background())
		r.AddCookie(&http.Cookie{Name: name, Value: value})
		c := &call{Server: f.Server, w: httptest.NewRecorder(), r: r, state: f.Server.state.Load(), begun: time.Now(), conn: authn.NewConnection(authn.HTTP, "127.0.0.1:1", nil)}
		if s, err := c.session(); (err == nil) != want || want && (s.Caller != "ops" || c.who.Channel != channelConsole || c.who.Rules != c.cred.Caller) {
			t.Errorf("%s: %v", name, err)
		}
	}
	c := &call{Server: f.Server, w: httptest.NewRecorder(), conn: authn.Connection{Kind: authn.HTTP}}
	c.setCookie(false, "x", 0)
	if got := c.w.Header().Get("Set-Cookie"); got != cookieHTTP+"=x; Path=/; HttpOnly; SameSite=Lax" {
		t.Errorf("the cookie %q", got)
	}
}

// FuzzBackPath: whatever a browser sends, it comes back to a page of the console, which is no sign-in.
func FuzzBackPath(f *testing.F) {
	for _, text := range []string{"", "/console/", "/console/customers?sort=name", "//evil.example/console/", "https://evil.example/console/", `/\evil.example`, "/console/../v1/me", "/console/%2e%2e/", "/console//x", "javascript:alert(1)", "/console/sign-in", "/console/\r\nX: y", "/v1/me", "/console/x#y"} {
		f.Add(text)
	}
	base := testkit.Must(http.NewRequest(http.MethodGet, "https://sign.example.com/console/callback/x", http.NoBody)).URL
	f.Fuzz(func(t *testing.T, text string) {
		back := backPath(text)
		u, err := base.Parse(back)
		if err != nil || u.Scheme != "https" || u.Host != base.Host || !strings.HasPrefix(u.Path, consolePath) || strings.HasPrefix(u.Path, "/console/sign-") || strings.HasPrefix(u.Path, "/console/callback") ||
			strings.ContainsAny(back, "\r\n\\<>\"' ") || len(back) > maxBack || backPath(back) != back {
			t.Errorf("%q leads to %q", text, back)
		}
	})
}

// FuzzLogin: a cookie that is read is that of a sign-in, with a path of the console; what encode writes is read as it was.
func FuzzLogin(f *testing.F) {
	f.Add(login{Secret: make([]byte, secretBytes), Issuer: "people", Back: consolePath, Begun: 1}.encode())
	f.Add("")
	f.Add(base64.RawURLEncoding.EncodeToString([]byte(`{"secret":"","back":"//evil.example"}`)))
	f.Fuzz(func(t *testing.T, value string) {
		l, err := decodeLogin(value)
		if err != nil {
			return
		}
		if len(l.Secret) != secretBytes || backPath(l.Back) != l.Back {
			t.Errorf("%+v", l)
		}
		if again, err := decodeLogin(l.encode()); err != nil || again.Issuer != l.Issuer || again.Begun != l.Begun {
			t.Errorf("%+v, again %+v, %v", l, again, err)
		}
	})
}
