package server_test

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"hsmsign/agent/policy"
	"hsmsign/api"
	"hsmsign/internal/servicekit"
	"hsmsign/internal/testkit"
	"hsmsign/server"
	"hsmsign/server/authn/oidc/oidctest"
)

// A job of a repository has a CSR signed with the token of its issuer. Whoever is not that job is told what every stranger is told;
// the log has the reason, and no token.
func TestOIDC(t *testing.T) {
	const audience = "https://sign.example.com"
	double := oidctest.New(t, "")
	double.Down(true) // at the start
	release := policy.CallerConfig{Role: "acme", Owners: []string{"ada"}, Customer: "acme", OIDC: policy.OIDCConfig{
		Issuer: "github", Claims: map[string]string{"repository_id": "74", "repository_owner_id": "65", "ref": "refs/heads/main"},
	}}
	var later atomic.Int64 // how much the clock of the service is ahead
	s := servicekit.Start(t, servicekit.Options{
		Change: func(cfg *server.Config) {
			cfg.Now = func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
		},
		Callers: map[string]policy.CallerConfig{"release": release},
		Issuers: map[string]policy.OIDCIssuer{"github": {URL: double.URL, Audience: audience, Kind: "github"}},
	})
	client, csr := s.Client(t, nil), servicekit.CSR(testkit.Key("customer"))
	token := func(change map[string]any) string {
		claims := oidctest.Claims("github", double.URL, audience, time.Now())
		for name, value := range change {
			claims[name] = value
		}
		return double.Sign(claims)
	}
	sign := func(token string) servicekit.Answer {
		return servicekit.Do(t, client, token, "POST", s.URL+"/v1/requests", csr)
	}
	wanted(t, "the issuer is down", sign(token(nil)), 401, "")
	wanted(t, "a token of hsmsign meanwhile", servicekit.Do(t, client, s.Tokens["acme"], "GET", s.URL+"/v1/me", ""), 200, "")
	double.Down(false)
	later.Store(int64(10 * time.Second))
	a := sign(token(nil))
	wanted(t, "the issuer is there again", a, 200, "")
	first := a.Body
	me := decoded[api.Me](t, servicekit.Do(t, client, token(nil), "GET", s.URL+"/v1/me", "").Body)
	if me.Caller != "release" || !strings.HasPrefix(me.Credential, "oidc github ") || me.Customer != "acme" {
		t.Errorf("%+v", me)
	}
	if a := servicekit.Do(t, client, s.Tokens["acme"], "POST", s.URL+"/v1/requests", csr); a.Body != first {
		t.Errorf("another answer: %s", a.Body)
	}
	nobody := servicekit.Do(t, client, "", "GET", s.URL+"/v1/me", "").Body
	cut := func(body string) string { return body[:strings.Index(body, "request_id")] }
	stranger := oidctest.NewKey(t, "stranger", "RS256")
	for what, tt := range map[string]struct{ token, reason string }{
		"a repository that was made again": {token(map[string]any{"repository_id": "99"}), `no caller has the repository_id \"99\"`},
		"another branch":                   {token(map[string]any{"ref": "refs/heads/fork"}), `the token has \"refs/heads/fork\"`},
		"an expired token":                 {token(map[string]any{"exp": 1}), "the token expired at"},
		"a token for another service":      {token(map[string]any{"aud": "https://other.example"}), "the audience of the token is"},
		"another signature":                {stranger.Sign(oidctest.Claims("github", double.URL, audience, time.Now()), map[string]any{"kid": "1"}), "failed to verify signature"},
		"an unknown key":                   {stranger.Sign(oidctest.Claims("github", double.URL, audience, time.Now()), nil), `the issuer has no key \"stranger\"`},
		"a line of the log":                {token(map[string]any{"iss": "x\"}\n{\"level\":\"FORGED\"}"}), "which is not in the configuration"},
	} {
		later.Add(int64(time.Second)) // few requests of strangers are logged in one second
		a := servicekit.Do(t, client, tt.token, "GET", s.URL+"/v1/me", "")
		wanted(t, what, a, 401, "")
		if cut(a.Body) != cut(nobody) {
			t.Errorf("%s: it is told more than a stranger: %s", what, a.Body)
		}
		testkit.Until(t, "the log has the reason: "+tt.reason, func() bool { return strings.Contains(s.Log(), tt.reason) })
		if strings.Contains(s.Log(), tt.token[len(tt.token)-100:]) {
			t.Errorf("%s: the log has the token", what)
		}
	}
	if strings.Contains(s.Log(), "\n{\"level\":\"FORGED\"}") {
		t.Error("a forged line")
	}
	wanted(t, "from another web site", servicekit.Do(t, client, token(nil), "POST", s.URL+"/v1/requests", csr, "Sec-Fetch-Site", "cross-site"), 403, "server.cross-origin")
	// A megabyte does not reach the check.
	if a := servicekit.Do(t, client, strings.Repeat("a", 1<<20)+".b.c", "GET", s.HTTP+"/v1/me", ""); a.StatusCode != 431 {
		t.Errorf("a token of a megabyte: %d", a.StatusCode)
	}
	// After a reload without the caller its token is refused.
	delete(s.Callers, "release")
	testkit.OK(t, s.Server.Reload(t.Context(), true))
	wanted(t, "a caller that was removed", sign(token(nil)), 401, "")
}
