package oidc_test

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"hsmsign/internal/testkit"
	"hsmsign/server/authn/oidc"
	"hsmsign/server/authn/oidc/oidctest"
)

// at returns the claims of a token that was issued at a time.
func at(issuer *oidctest.Issuer, now time.Time) map[string]any {
	return oidctest.Claims("generic", issuer.URL, audience, now)
}

// verify returns whether a token of a key is accepted.
func verify(t *testing.T, issuers *oidc.Issuers, issuer *oidctest.Issuer, key oidctest.Key, now time.Time) error {
	t.Helper()
	_, _, err := issuers.Verify(t.Context(), key.Sign(at(issuer, now), nil), now)
	return err
}

// A key that the issuer has added is found by one fetch. Unknown keys, however many, cost one fetch in 10 seconds, and delay
// nobody whose key is known.
func TestRotation(t *testing.T) {
	double := oidctest.New(t, "")
	issuers := open(t, double)
	now, first, second, third := time.Now(), double.Key(), oidctest.NewKey(t, "2", "ES256"), oidctest.NewKey(t, "3", "ES256")
	if err := verify(t, issuers, double, first, now); err != nil {
		t.Fatal(err)
	}
	double.SetKeys(second, first)
	now = now.Add(11 * time.Second)
	for _, key := range []oidctest.Key{second, first} {
		if err := verify(t, issuers, double, key, now); err != nil {
			t.Error(err)
		}
	}
	if n := double.Fetches.Load(); n != 2 {
		t.Errorf("%d fetches", n)
	}
	var all sync.WaitGroup
	for i := range 300 {
		all.Go(func() {
			unknown := second
			unknown.ID = fmt.Sprint("unknown ", i)
			if err := verify(t, issuers, double, unknown, now); err == nil {
				t.Error("an unknown key")
			}
			if err := verify(t, issuers, double, second, now); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := double.Fetches.Load(); n != 2 {
		t.Errorf("%d fetches after a flood", n)
	}
	double.SetKeys(third)
	if err := verify(t, issuers, double, third, now.Add(9*time.Second)); err == nil {
		t.Error("a new key was fetched too early")
	}
	now = now.Add(10 * time.Second)
	if err := verify(t, issuers, double, third, now); err != nil {
		t.Error(err)
	}
	if err := verify(t, issuers, double, second, now); err == nil {
		t.Error("a key that was removed")
	}
}

// A key that the issuer has removed is not used for longer than 15 minutes: the next token after that has the keys fetched in the
// background.
func TestRemovedKey(t *testing.T) {
	double := oidctest.New(t, "")
	issuers := open(t, double)
	now, first := time.Now(), double.Key()
	testkit.OK(t, verify(t, issuers, double, first, now))
	double.SetKeys(oidctest.NewKey(t, "2", "ES256"))
	testkit.OK(t, verify(t, issuers, double, first, now.Add(14*time.Minute)))
	if n := double.Fetches.Load(); n != 1 {
		t.Errorf("%d fetches", n)
	}
	now = now.Add(15 * time.Minute)
	testkit.Until(t, "the removed key is refused", func() bool { return verify(t, issuers, double, first, now) != nil })
}

// An issuer that is down at the start is asked again, but not for each token. One that goes down later is believed for 12 hours.
func TestDown(t *testing.T) {
	double := oidctest.New(t, "")
	double.Down(true)
	var log bytes.Buffer
	issuers := testkit.Value(oidc.New([]oidc.Config{{Name: "one", URL: double.URL, Audience: audience, MaxAge: time.Hour}},
		oidc.Options{Log: slog.New(slog.NewJSONHandler(&log, nil))}, nil))(t)
	now, key := time.Now(), double.Key()
	for range 20 {
		if err := verify(t, issuers, double, key, now); err == nil || !strings.Contains(err.Error(), "the keys of the issuer are not known: discovery: ") || !strings.Contains(err.Error(), "status 503") {
			t.Fatal(err)
		}
	}
	double.Down(false)
	if err := verify(t, issuers, double, key, now.Add(9*time.Second)); err == nil {
		t.Error("it was asked again too early")
	}
	now = now.Add(10 * time.Second)
	testkit.OK(t, verify(t, issuers, double, key, now))
	if n := strings.Count(log.String(), "\n"); n != 2 || !strings.Contains(log.String(), "cannot be fetched") || !strings.Contains(log.String(), "were fetched again") {
		t.Errorf("%s", log.String())
	}
	double.Down(true)
	testkit.OK(t, verify(t, issuers, double, key, now.Add(oidc.KeysOld-time.Second)))
	if err := verify(t, issuers, double, key, now.Add(oidc.KeysOld)); err == nil || !strings.Contains(err.Error(), "are not known") {
		t.Errorf("old keys: %v", err)
	}
	double.Down(false)
	if err := verify(t, issuers, double, key, now.Add(oidc.KeysOld+time.Minute)); err != nil {
		t.Error(err)
	}
}

// Fetch has the keys ready before the first token.
func TestFetch(t *testing.T) {
	double := oidctest.New(t, "")
	issuers := open(t, double)
	issuers.Fetch(time.Now())
	testkit.Until(t, "the keys were fetched", func() bool { return double.Fetches.Load() == 1 })
	testkit.OK(t, verify(t, issuers, double, double.Key(), time.Now()))
	issuers.Fetch(time.Now().Add(time.Minute))
	if n := double.Fetches.Load(); n != 1 {
		t.Errorf("%d fetches", n)
	}
	(*oidc.Issuers)(nil).Fetch(time.Now())
}

// Answers of an issuer that are huge, slow, redirected, insecure or not what they should be.
func TestAnswers(t *testing.T) {
	key := oidctest.NewKey(t, "1", "RS256")
	set := func(keys ...any) string { return string(testkit.Must(json.Marshal(map[string]any{"keys": keys}))) }
	with := func(name string, value any) map[string]any {
		jwk := key.JWK()
		jwk[name] = value
		return jwk
	}
	var many []any
	for range 10_000 {
		many = append(many, map[string]any{"kty": "OKP", "kid": "1"})
	}
	weak := oidctest.Key{ID: "1", Alg: "RS256", Signer: testkit.KeyOf(1024, "weak")}
	elsewhere := oidctest.New(t, "")
	keys := func(answer string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(answer)) }
	}
	for what, tt := range map[string]struct {
		path   string
		answer http.HandlerFunc
		want   string
	}{
		"10,000 keys":    {"/keys", keys(set(many...)), "at most 100 are accepted"},
		"huge":           {"/keys", keys(`{"keys":[],"x":"` + strings.Repeat("a", 1<<20)), "more than 262144 bytes"},
		"deep":           {"/keys", keys(`{"keys":` + strings.Repeat("[", 100_000)), "keys: "},
		"slow":           {"/keys", func(w http.ResponseWriter, r *http.Request) { drip(w, r) }, "deadline exceeded"},
		"slow discovery": {"/.well-known/openid-configuration", func(w http.ResponseWriter, r *http.Request) { drip(w, r) }, "deadline exceeded"},
		"huge discovery": {"/.well-known/openid-configuration", keys(strings.Repeat(" ", 1<<20)), "more than 262144 bytes"},
		"redirected": {"/keys", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL+"/keys", http.StatusFound)
		}, "status 302"},
		"redirected issuer": {"/.well-known/openid-configuration", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, elsewhere.URL, http.StatusFound) }, "status 302"},
		"another issuer":    {"/.well-known/openid-configuration", keys(`{"issuer":"https://other.example","jwks_uri":"` + elsewhere.URL + `/keys"}`), "other.example"},
		"no jwks_uri":       {"/.well-known/openid-configuration", func(w http.ResponseWriter, r *http.Request) { _, _ = fmt.Fprintf(w, `{"issuer":"http://%s"}`, r.Host) }, "no jwks_uri"},
		"keys over http": {"/.well-known/openid-configuration", func(w http.ResponseWriter, r *http.Request) {
			_, _ = fmt.Fprintf(w, `{"issuer":"http://%s","jwks_uri":"http://issuer.example/keys"}`, r.Host)
		}, "not an https URL"},
		"keys in a file": {"/.well-known/openid-configuration", func(w http.ResponseWriter, r *http.Request) {
			_, _ = fmt.Fprintf(w, `{"issuer":"http://%s","jwks_uri":"file:///etc/passwd"}`, r.Host)
		}, "not an https URL"},
		"not JSON":          {"/keys", keys("<html>"), "invalid character"},
		"no keys":           {"/keys", keys(`{}`), "no key that tokens"},
		"a shared key":      {"/keys", keys(set(map[string]any{"kty": "oct", "kid": "1", "k": "AAAA", "alg": "HS256"})), "no key that tokens"},
		"a weak key":        {"/keys", keys(set(weak.JWK())), "no key that tokens"},
		"a key to encrypt":  {"/keys", keys(set(with("use", "enc"))), "no key that tokens"},
		"another algorithm": {"/keys", keys(set(with("alg", "PS256"))), "is not that of the key"},
		"a key without kid": {"/keys", keys(set(with("kid", ""))), "has no key"},
		"a gone page": {"/keys", func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "a secret in an answer", http.StatusNotFound)
		}, "status 404"},
		"one key of several": {"/keys", keys(set(map[string]any{"kty": "unknown"}, 7, key.JWK())), ""},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			double := oidctest.New(t, "")
			double.Answer(func(w http.ResponseWriter, r *http.Request) bool {
				if r.URL.Path == tt.path {
					tt.answer(w, r)
				}
				return r.URL.Path == tt.path
			})
			options := oidc.Options{}
			if strings.Contains(what, "slow") {
				options.Wait = 200 * time.Millisecond
			}
			issuers := testkit.Value(oidc.New([]oidc.Config{{Name: "one", URL: double.URL, Audience: audience, MaxAge: time.Hour}}, options, nil))(t)
			begun := time.Now()
			err := verify(t, issuers, double, key, time.Now())
			if (err == nil) != (tt.want == "") || err != nil && (!strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "a secret")) {
				t.Errorf("%v, want %q", err, tt.want)
			}
			if time.Since(begun) > 10*time.Second {
				t.Error("it took too long")
			}
		})
	}
	t.Cleanup(func() {
		if elsewhere.Fetches.Load() != 0 {
			t.Error("a redirect was followed")
		}
	})
}

// drip writes slowly, until the other side is gone.
func drip(w http.ResponseWriter, r *http.Request) {
	for r.Context().Err() == nil {
		_, _ = w.Write([]byte(" "))
		_ = http.NewResponseController(w).Flush()
		time.Sleep(20 * time.Millisecond)
	}
}

// A request that ends does not wait for the issuer, and few tokens wait at once.
func TestWaiting(t *testing.T) {
	double := oidctest.New(t, "")
	release := make(chan struct{})
	double.Answer(func(_ http.ResponseWriter, r *http.Request) bool {
		select {
		case <-release:
		case <-r.Context().Done():
		}
		return false
	})
	issuers := open(t, double)
	token := double.Sign(claims(double, nil))
	now := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, _, err := issuers.Verify(ctx, token, now); err == nil {
		t.Error("accepted without a key")
	}
	results := make(chan error, 100)
	for range cap(results) {
		go func() {
			_, _, err := issuers.Verify(t.Context(), token, now)
			results <- err
		}()
	}
	for range cap(results) - 32 { // those that do not wait
		if err := <-results; err == nil {
			t.Fatal("accepted without a key")
		}
	}
	close(release)
	for range 32 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
}

// The token for the issuer is read for each request, is sent only to servers that the CA certifies, and is in no error.
func TestTokenFile(t *testing.T) {
	ca, foreign := testkit.NewCA(t, "cluster"), testkit.NewCA(t, "foreign")
	double := oidctest.NewTLS(t, "", ca.Issue(t, "api", nil))
	var sent []string
	double.Answer(func(_ http.ResponseWriter, r *http.Request) bool {
		sent = append(sent, r.Header.Get("Authorization"))
		return false
	})
	cfg := oidc.Config{Name: "cluster", URL: double.URL, Audience: audience, MaxAge: time.Hour, CA: pemOf(ca), TokenFile: "/token"}
	secrets, failure := []string{"first\n", "second", "third", "fourth"}, error(nil)
	read := func(path string) ([]byte, error) {
		if path != "/token" || failure != nil {
			return nil, failure
		}
		next := secrets[0]
		secrets = secrets[1:]
		return []byte(next), nil
	}
	issuers := testkit.Value(oidc.New([]oidc.Config{cfg}, oidc.Options{ReadToken: read}, nil))(t)
	now := time.Now()
	testkit.OK(t, verify(t, issuers, double, double.Key(), now))
	if strings.Join(sent, ",") != "Bearer first,Bearer second" {
		t.Errorf("%q", sent)
	}
	double.Answer(nil)
	unknown := double.Key()
	unknown.ID = "unknown"
	failure = errors.New("no such file")
	if err := verify(t, issuers, double, unknown, now.Add(time.Minute)); err == nil {
		t.Error("an unknown key")
	}
	for _, bad := range []string{"", "two lines\nof secret", "secret \x00", "\xff secret"} {
		failure, secrets = nil, []string{bad}
		one := testkit.Value(oidc.New([]oidc.Config{cfg}, oidc.Options{ReadToken: read}, nil))(t)
		if err := verify(t, one, double, double.Key(), now); err == nil || !strings.Contains(err.Error(), "token-file: it has no token") || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	// An issuer with a certificate of another CA gets nothing.
	evil := oidctest.NewTLS(t, "", foreign.Issue(t, "api", nil))
	evil.Answer(func(_ http.ResponseWriter, r *http.Request) bool {
		t.Errorf("it got %q", r.Header.Get("Authorization"))
		return false
	})
	secrets = []string{"secret", "secret"}
	cfg.URL = evil.URL
	one := testkit.Value(oidc.New([]oidc.Config{cfg}, oidc.Options{ReadToken: read}, nil))(t)
	if err := verify(t, one, evil, evil.Key(), now); err == nil || !strings.Contains(err.Error(), "certificate") || strings.Contains(err.Error(), "secret") {
		t.Errorf("%v", err)
	}
	// Nor does an https issuer have its keys fetched over http.
	plain := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("keys were asked for over http") }))
	defer plain.Close()
	double.Answer(func(w http.ResponseWriter, _ *http.Request) bool {
		_, _ = fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q}`, double.URL, plain.URL)
		return true
	})
	secrets, cfg.URL = []string{"secret", "secret"}, double.URL
	one = testkit.Value(oidc.New([]oidc.Config{cfg}, oidc.Options{ReadToken: read}, nil))(t)
	if err := verify(t, one, double, double.Key(), now); err == nil || !strings.Contains(err.Error(), "not an https URL") {
		t.Errorf("%v", err)
	}
}

func pemOf(ca *testkit.CA) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Cert.Raw})
}

// New keeps the keys of an issuer that is asked in the same way.
func TestReload(t *testing.T) {
	double := oidctest.New(t, "")
	cfg := oidc.Config{Name: "one", URL: double.URL, Audience: audience, MaxAge: time.Hour}
	before := testkit.Value(oidc.New([]oidc.Config{cfg}, oidc.Options{}, nil))(t)
	testkit.OK(t, verify(t, before, double, double.Key(), time.Now()))
	for what, change := range map[string]func(c *oidc.Config){
		"kept: audience":   func(c *oidc.Config) { c.Name, c.MaxAge = "other", time.Minute },
		"another CA":       func(c *oidc.Config) { c.CA = pemOf(testkit.NewCA(t, "x")) },
		"another token":    func(c *oidc.Config) { c.TokenFile = "x" },
		"kept: nothing is": func(*oidc.Config) {},
	} {
		next, fetches := cfg, double.Fetches.Load()
		change(&next)
		after := testkit.Value(oidc.New([]oidc.Config{next}, oidc.Options{ReadToken: func(string) ([]byte, error) { return []byte("t"), nil }}, before))(t)
		testkit.OK(t, verify(t, after, double, double.Key(), time.Now()))
		if kept := double.Fetches.Load() == fetches; kept != strings.HasPrefix(what, "kept") {
			t.Errorf("%s: fetched %v", what, !kept)
		}
	}
	audienceOnly := cfg
	audienceOnly.Audience = "https://other.example"
	after := testkit.Value(oidc.New([]oidc.Config{audienceOnly}, oidc.Options{}, before))(t)
	if err := verify(t, after, double, double.Key(), time.Now()); err == nil || !strings.Contains(err.Error(), "audience") {
		t.Errorf("the audience before: %v", err)
	}
}
