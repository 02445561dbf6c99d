package oidc_test

import (
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"

	"hsmsign/internal/testkit"
	"hsmsign/server/authn/oidc"
	"hsmsign/server/authn/oidc/oidctest"
)

const redirect = "http://127.0.0.1/callback"

// newSignIn returns a sign-in with its secrets.
func newSignIn(again bool) oidc.SignIn {
	return oidc.SignIn{State: "state-1", Nonce: "nonce-1", Verifier: strings.Repeat("verifier", 6), Redirect: redirect, Again: again}
}

func newClient(t *testing.T, issuer, secret string) *oidc.Client {
	t.Helper()
	all := testkit.Value(oidc.New([]oidc.Config{{Name: "people", URL: issuer, Audience: audience, MaxAge: time.Hour}}, oidc.Options{Wait: 2 * time.Second}, nil))(t)
	return testkit.Value(all.Client(oidc.ClientConfig{Issuer: "people", ClientID: "console", Secret: func() (string, error) { return secret, nil }}))(t)
}

// testSignIn signs a person in at zitadel's provider. Its answer is accepted once, and with the secrets of the same sign-in alone.
func testSignIn(t *testing.T, issuer string) {
	c, ctx, now := newClient(t, issuer, "secret"), t.Context(), time.Now()
	for _, again := range []bool{false, true} {
		s := newSignIn(again)
		answer := authorize(t, issuer, testkit.Value(c.URL(ctx, s, now))(t)).Query()
		claims, signedIn, err := c.Redeem(ctx, s, answer, now)
		if err != nil || claims["sub"] != "id1" || now.Sub(signedIn).Abs() > time.Minute {
			t.Fatalf("again %v: %v, %v, %v", again, claims, signedIn, err)
		}
		if _, _, err := c.Redeem(ctx, s, answer, now); err == nil || !strings.Contains(err.Error(), "does not redeem the code") {
			t.Errorf("a code that was used: %v", err)
		}
	}
	for what, change := range map[string]func(s *oidc.SignIn){
		"verifier": func(s *oidc.SignIn) { s.Verifier += "x" }, "nonce": func(s *oidc.SignIn) { s.Nonce = "other" }, "state": func(s *oidc.SignIn) { s.State = "other" },
	} {
		s := newSignIn(false)
		answer := authorize(t, issuer, testkit.Value(c.URL(ctx, s, now))(t)).Query()
		change(&s)
		if claims, _, err := c.Redeem(ctx, s, answer, now); err == nil {
			t.Errorf("another %s: %v", what, claims)
		}
	}
	s := newSignIn(false)
	answer := authorize(t, issuer, testkit.Value(c.URL(ctx, s, now))(t)).Query()
	if _, _, err := newClient(t, issuer, "wrong").Redeem(ctx, s, answer, now); err == nil || strings.Contains(err.Error(), "wrong") {
		t.Errorf("a wrong secret: %v", err)
	}
}

// Each claim of an ID token is checked, and each parameter of the answer.
func TestSignInRefused(t *testing.T) {
	double := oidctest.New(t, "")
	c, ctx, now := newClient(t, double.URL, oidctest.Secret), t.Context(), time.Now()
	at := func(d time.Duration) int64 { return now.Add(d).Unix() }
	for what, tt := range map[string]struct {
		claims map[string]any
		answer func(url.Values)
		again  bool
		want   string // "": accepted
	}{
		"accepted":                      {},
		"again":                         {again: true},
		"again, and the person is away": {again: true, claims: map[string]any{"auth_time": at(-7 * time.Minute)}, want: "claim auth_time"},
		"again, and nobody says when":   {again: true, claims: map[string]any{"auth_time": nil}, want: "claim auth_time"},
		"a time that is none":           {claims: map[string]any{"auth_time": "noon"}, want: "no time in the claim auth_time"},
		"another issuer":                {claims: map[string]any{"iss": "https://other.example"}, want: "of the issuer"},
		"another audience":              {claims: map[string]any{"aud": audience}, want: "the audience of the ID token"},
		"several audiences":             {claims: map[string]any{"aud": []string{"console", "other"}}, want: "the audience of the ID token"},
		"one audience in a list":        {claims: map[string]any{"aud": []string{"console"}}},
		"another client":                {claims: map[string]any{"azp": "other"}, want: "issued to the client"},
		"another nonce":                 {claims: map[string]any{"nonce": "other"}, want: "the nonce"},
		"no nonce":                      {claims: map[string]any{"nonce": nil}, want: "the nonce"},
		"expired":                       {claims: map[string]any{"exp": at(-2 * time.Minute)}, want: "expired"},
		"old":                           {claims: map[string]any{"iat": at(-time.Hour)}, want: "max-age"},
		"another state":                 {answer: func(v url.Values) { v.Set("state", "other") }, want: "sign-in of this browser"},
		"no state":                      {answer: func(v url.Values) { v.Del("state") }, want: "sign-in of this browser"},
		"the answer of another":         {answer: func(v url.Values) { v.Set("iss", "https://other.example") }, want: "that of the issuer"},
		"an answer that names nobody":   {answer: func(v url.Values) { v.Del("iss") }, want: "that of the issuer"},
		"two codes":                     {answer: func(v url.Values) { v.Add("code", "other") }, want: `"code" 2 times`},
		"no code":                       {answer: func(v url.Values) { v.Del("code") }, want: "has no code"},
		"another code":                  {answer: func(v url.Values) { v.Set("code", "other") }, want: `does not redeem the code: "invalid_grant"`},
		"refused":                       {answer: func(v url.Values) { v.Set("error", "access_denied") }, want: `refuses the sign-in: "access_denied"`},
		"an error of megabytes":         {answer: func(v url.Values) { v.Set("error", strings.Repeat("x", 1<<20)) }, want: "refuses the sign-in"},
	} {
		t.Run(what, func(t *testing.T) {
			s := newSignIn(tt.again)
			answer := double.Authorize(t, testkit.Value(c.URL(ctx, s, now))(t), tt.claims).Query()
			if tt.answer != nil {
				tt.answer(answer)
			}
			_, _, err := c.Redeem(ctx, s, answer, now)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want) || len(err.Error()) > 512) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
	// A key of somebody else.
	s := newSignIn(false)
	answer := double.Authorize(t, testkit.Value(c.URL(ctx, s, now))(t), nil).Query()
	double.SetKeys(oidctest.NewKey(t, "1", "ES256"))
	if _, _, err := c.Redeem(ctx, s, answer, now); err == nil || !strings.Contains(err.Error(), "failed to verify signature") {
		t.Errorf("another key: %v", err)
	}
}

// An issuer that does not answer is an error of its own kind, before the sign-in and after it; the next one succeeds.
func TestSignInDown(t *testing.T) {
	double := oidctest.New(t, "")
	double.Down(true)
	c, ctx, now := newClient(t, double.URL, oidctest.Secret), t.Context(), time.Now()
	s := newSignIn(false)
	if _, err := c.URL(ctx, s, now); !errors.Is(err, oidc.ErrProvider) {
		t.Errorf("down: %v", err)
	}
	double.Down(false)
	now = now.Add(11 * time.Second)
	answer := double.Authorize(t, testkit.Value(c.URL(ctx, s, now))(t), nil).Query()
	double.Down(true)
	if _, _, err := c.Redeem(ctx, s, answer, now); !errors.Is(err, oidc.ErrProvider) || strings.Contains(err.Error(), answer.Get("code")) {
		t.Errorf("down after the sign-in: %v", err)
	}
	double.Down(false)
	if _, _, err := c.Redeem(ctx, s, answer, now); err != nil {
		t.Errorf("there again: %v", err)
	}
}
