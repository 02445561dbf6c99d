package oidc_test

import (
	"crypto/hmac"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"maps"
	"strconv"
	"strings"
	"testing"
	"time"

	"hsmsign/internal/testkit"
	"hsmsign/server/authn/oidc"
	"hsmsign/server/authn/oidc/oidctest"
)

const audience = "https://sign.example.com"

// open returns issuers with the double.
func open(t testing.TB, doubles ...*oidctest.Issuer) *oidc.Issuers {
	t.Helper()
	var configs []oidc.Config
	for n, double := range doubles {
		configs = append(configs, oidc.Config{Name: []string{"one", "two"}[n], URL: double.URL, Audience: audience, MaxAge: time.Hour})
	}
	return testkit.Value(oidc.New(configs, oidc.Options{}, nil))(t)
}

// claims returns the claims of a token that is accepted, changed; a nil value removes a claim.
func claims(issuer *oidctest.Issuer, change map[string]any) map[string]any {
	all := oidctest.Claims("generic", issuer.URL, audience, time.Now())
	maps.Copy(all, change)
	for name, value := range change {
		if value == nil {
			delete(all, name)
		}
	}
	return all
}

// Tokens of every algorithm of the list are accepted, with the claims that they have.
func TestAccepted(t *testing.T) {
	double := oidctest.New(t, "/tenant/v2.0")
	issuers := open(t, double)
	var keys []oidctest.Key
	for _, alg := range []string{"RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA"} {
		keys = append(keys, oidctest.NewKey(t, alg, alg))
	}
	double.SetKeys(keys...)
	for _, key := range keys {
		for what, change := range map[string]map[string]any{
			"":                        nil,
			"an audience in a list":   {"aud": []string{audience}},
			"another client's azp":    {"azp": "113774264463038321964"},
			"dates with fractions":    {"iat": float64(time.Now().Unix()) - 0.5},
			"a clock that is early":   {"iat": time.Now().Add(50 * time.Second).Unix(), "nbf": time.Now().Add(50 * time.Second).Unix()},
			"a clock that is late":    {"exp": time.Now().Add(-50 * time.Second).Unix()},
			"a number with 18 digits": {"id": int64(123456789012345678)},
		} {
			name, got, err := issuers.Verify(t.Context(), key.Sign(claims(double, change), nil), time.Now())
			if err != nil || name != "one" || got["sub"] != "service-7" {
				t.Errorf("%s, %s: %q, %v, %v", key.ID, what, name, got, err)
			}
		}
	}
	for _, typ := range []any{nil, "jwt", "at+jwt", "application/at+JWT"} {
		if _, _, err := issuers.Verify(t.Context(), keys[0].Sign(claims(double, nil), map[string]any{"typ": typ}), time.Now()); err != nil {
			t.Errorf("the type %v: %v", typ, err)
		}
	}
	if n := double.Fetches.Load(); n != 1 {
		t.Errorf("the keys were fetched %d times", n)
	}
}

// Each refusal has its own reason, and none repeats the token.
func TestRefused(t *testing.T) {
	double, other := oidctest.New(t, ""), oidctest.New(t, "")
	issuers := open(t, double, other)
	key, foreign, stranger := double.Key(), oidctest.NewKey(t, "foreign", "RS256"), oidctest.NewKey(t, "stranger", "RS256")
	curve := oidctest.NewKey(t, "curve", "ES256")
	double.SetKeys(key, curve)
	other.SetKeys(foreign)
	good := key.Sign(claims(double, nil), nil)
	if _, _, err := issuers.Verify(t.Context(), good, time.Now()); err != nil {
		t.Fatal(err)
	}
	part := strings.Split(good, ".")
	encode := base64.RawURLEncoding.EncodeToString
	with := func(change map[string]any) string { return key.Sign(claims(double, change), nil) }
	header := func(change map[string]any) string { return key.Sign(claims(double, nil), change) }
	as := func(k oidctest.Key, kid string) string {
		return k.Sign(claims(double, nil), map[string]any{"kid": kid})
	}
	now := time.Now().Unix()
	for want, tokens := range map[string][]string{
		"cannot be read": {
			encode([]byte(`{"alg":"none"}`)) + "." + part[1] + ".", encode([]byte(`{"alg":"none","kid":"1"}`)) + "." + part[1] + "." + part[2],
			shared(key, part[1]), header(map[string]any{"alg": "RS1"}), header(map[string]any{"alg": "ES512"}), header(map[string]any{"alg": []string{"RS256"}}),
			"..", "a.b.c", part[0] + "." + part[1], good + ".", good + ".x", "{" + good, `{"payload":"` + part[1] + `","protected":"` + part[0] + `","signature":"` + part[2] + `"}`,
			key.SignText("[]", nil), key.SignText("", nil), key.SignText(`{"iss":"a","iss":"b"}`, nil), key.SignText(`{"a":"`+"\xff"+`"}`, nil), key.SignText(`{} {}`, nil),
			key.SignText(strings.Repeat(`{"a":`, 1000)+"1"+strings.Repeat("}", 1000), nil),
		},
		"at most 12288 are accepted": {strings.Repeat("a", 1<<20), with(map[string]any{"groups": strings.Repeat("a", 12<<10)})},
		"failed to verify signature": {
			part[0] + "." + part[1] + "." + encode([]byte(strings.Repeat("\x01", 256))), part[0] + "." + encode([]byte(`{"iss":"`+double.URL+`","aud":"`+audience+`","iat":`+itoa(now)+`,"exp":`+itoa(now+60)+`}`)) + "." + part[2],
			part[0] + "." + part[1] + ".",
			as(stranger, "1"), as(foreign, "foreign"), as(foreign, "1"), as(curve, "1"), as(key, "curve"), as(key, ""), header(map[string]any{"kid": nil}), header(map[string]any{"alg": "RS512"}),
			stranger.Sign(claims(double, nil), map[string]any{"jwk": stranger.JWK(), "kid": "stranger"}), stranger.Sign(claims(double, nil), map[string]any{"jwk": stranger.JWK(), "kid": "1"}),
			stranger.Sign(claims(double, nil), map[string]any{"jku": other.URL + "/keys", "kid": "foreign"}), header(map[string]any{"crit": []string{"b64"}, "b64": false}),
			header(map[string]any{"crit": []string{"exp"}, "exp": 1}), as(key, strings.Repeat("k", 4000)),
		},
		"of the issuer":                          {with(map[string]any{"iss": "https://evil.example"}), with(map[string]any{"iss": double.URL + "/"}), with(map[string]any{"iss": strings.ToUpper(double.URL)})},
		"without the claim iss":                  {with(map[string]any{"iss": nil}), with(map[string]any{"iss": []string{double.URL}}), with(map[string]any{"iss": nil, "ISS": double.URL})},
		"issuer two: failed to verify signature": {with(map[string]any{"iss": other.URL})},
		"the audience of the token is": {
			with(map[string]any{"aud": "https://other.example"}), with(map[string]any{"aud": nil}), with(map[string]any{"aud": []string{}}), with(map[string]any{"aud": []string{audience, "https://other.example"}}),
			with(map[string]any{"aud": []string{audience, audience}}), with(map[string]any{"aud": audience + "/"}), with(map[string]any{"aud": map[string]any{audience: 1}}), with(map[string]any{"aud": nil, "AUD": audience}),
		},
		"for a sign-in":            {with(map[string]any{"nonce": "n"}), with(map[string]any{"at_hash": "h"}), with(map[string]any{"c_hash": "h"}), with(map[string]any{"azp": audience})},
		"not a bearer token":       {with(map[string]any{"cnf": map[string]any{"jkt": "x"}})},
		"is of the type":           {header(map[string]any{"typ": "logout+jwt"}), header(map[string]any{"typ": "dpop+jwt"}), header(map[string]any{"typ": 7})},
		"the token expired at":     {with(map[string]any{"exp": now - 61}), with(map[string]any{"exp": 1})},
		"no time in the claim exp": {with(map[string]any{"exp": nil}), with(map[string]any{"exp": "9999999999"}), with(map[string]any{"exp": 1e300}), with(map[string]any{"exp": -1})},
		"no time in the claim iat": {with(map[string]any{"iat": nil}), with(map[string]any{"iat": true})},
		"no time in the claim nbf": {with(map[string]any{"nbf": "soon"})},
		"is not valid before":      {with(map[string]any{"nbf": now + 70})},
		"which is in the future":   {with(map[string]any{"iat": now + 70})},
		"and max-age is 1h0m0s":    {with(map[string]any{"iat": now - 3670}), with(map[string]any{"iat": 0})},
	} {
		for n, token := range tokens {
			name, got, err := issuers.Verify(t.Context(), token, time.Now())
			if err == nil || name != "" || got != nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%d: %q, %v, %v; want %q", n, name, got, err, want)
				continue
			}
			if text := err.Error(); len(text) > 600 || len(token) > 100 && (strings.Contains(text, part[2][:40]) || strings.Contains(text, part[1][:40])) {
				t.Errorf("%d: it repeats the token: %s", n, text)
			}
		}
	}
	var none *oidc.Issuers
	if _, _, err := none.Verify(t.Context(), good, time.Now()); err == nil {
		t.Error("a token without issuers")
	}
}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

// shared returns a token that is signed with the public key of an issuer as a shared secret (HS256).
func shared(key oidctest.Key, payload string) string {
	secret := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: testkit.Must(x509.MarshalPKIXPublicKey(key.Public().(*rsa.PublicKey)))})
	text := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"HS256","kid":"1","typ":"JWT"}`)) + "." + payload
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(text))
	return text + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// What New refuses has a fix.
func TestNewRefuses(t *testing.T) {
	for want, configs := range map[string][]oidc.Config{
		"is not an https URL":        {{Name: "a", URL: "http://issuer.example"}},
		"issuer \"%\"":               {{Name: "a", URL: "%"}},
		"another issuer has its URL": {{Name: "a", URL: "https://a"}, {Name: "b", URL: "https://a"}},
		"token-file without ca":      {{Name: "a", URL: "https://a", TokenFile: "token"}},
		"the file has no cert":       {{Name: "a", URL: "https://a", CA: []byte("x")}},
	} {
		if _, err := oidc.New(configs, oidc.Options{}, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
