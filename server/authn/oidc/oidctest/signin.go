package oidctest

import (
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"testing"
	"time"
)

// Secret is that of every client.
const Secret = "secret of the client"

// code is what a code is redeemed for.
type code struct {
	asked  url.Values // of the authorization request
	claims map[string]any
}

// Authorize has a person sign in whose browser was sent to address, and returns where the issuer sends the browser. claims are added to
// those of the ID token, or replace them; nil removes one.
func (i *Issuer) Authorize(t testing.TB, address string, claims map[string]any) *url.URL {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	asked := u.Query()
	u.RawQuery = ""
	if u.String() != i.URL+"/authorize" || asked.Get("response_type") != "code" || asked.Get("code_challenge_method") != "S256" || asked.Get("code_challenge") == "" || asked.Get("state") == "" || asked.Get("nonce") == "" {
		t.Fatalf("not an authorization request with PKCE, state and nonce: %s", address)
	}
	now := time.Now()
	all := map[string]any{"iss": i.URL, "aud": asked.Get("client_id"), "sub": "person-1", "nonce": asked.Get("nonce"), "iat": now.Unix(), "exp": now.Add(time.Hour).Unix()}
	if asked.Has("max_age") {
		all["auth_time"] = now.Unix()
	}
	maps.Copy(all, claims)
	maps.DeleteFunc(all, func(_ string, value any) bool { return value == nil })
	text := rand.Text()
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.codes == nil {
		i.codes = map[string]code{}
	}
	i.codes[text] = code{asked, all}
	back, err := url.Parse(asked.Get("redirect_uri"))
	if err != nil {
		t.Fatal(err)
	}
	back.RawQuery = url.Values{"code": {text}, "state": {asked.Get("state")}, "iss": {i.URL}}.Encode()
	return back
}

// redeem redeems a code once (RFC 6749, section 4.1.3, and RFC 7636, section 4.6).
func (i *Issuer) redeem(r *http.Request) (status int, answer map[string]any) {
	refuse := func(text string) (int, map[string]any) {
		return http.StatusBadRequest, map[string]any{"error": text}
	}
	if r.Method != http.MethodPost || r.ParseForm() != nil || r.PostForm.Get("grant_type") != "authorization_code" {
		return refuse("unsupported_grant_type")
	}
	i.mu.Lock()
	found, ok := i.codes[r.PostForm.Get("code")]
	delete(i.codes, r.PostForm.Get("code"))
	i.mu.Unlock()
	id, secret, _ := r.BasicAuth()
	if plain, err := url.QueryUnescape(secret); err != nil || plain != Secret {
		return refuse("invalid_client")
	}
	challenge := sha256.Sum256([]byte(r.PostForm.Get("code_verifier")))
	if !ok || id != found.asked.Get("client_id") || r.PostForm.Get("redirect_uri") != found.asked.Get("redirect_uri") || encode(challenge[:]) != found.asked.Get("code_challenge") {
		return refuse("invalid_grant")
	}
	return http.StatusOK, map[string]any{"access_token": fmt.Sprint("opaque-", rand.Text()), "token_type": "Bearer", "id_token": i.Sign(found.claims)}
}
