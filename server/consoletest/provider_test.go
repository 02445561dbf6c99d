package consoletest

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"hsmsign/server/authn/oidc/oidctest"
)

// provider is an OpenID Connect provider whose only page signs in the person that a test has set, as a provider does that remembers its
// user. It accepts the authorization code flow with PKCE only, and a code once. Its name is localhost, that of the console is 127.0.0.1:
// another site, as a real provider is.
type provider struct {
	*oidctest.Issuer
	url string
	now func() time.Time

	mu     sync.Mutex
	person string
	codes  map[string]url.Values // from code to the request for it
	wrong  []string              // what a client did wrong
}

const (
	clientID     = "hsmsign-console"
	clientSecret = "a secret of the client"
)

// newProvider starts a provider.
func newProvider(t testing.TB, now func() time.Time) *provider {
	t.Helper()
	p := &provider{Issuer: oidctest.New(t, ""), now: now, codes: map[string]url.Values{}}
	p.url = strings.Replace(p.URL, "127.0.0.1", "localhost", 1)
	p.URL = p.url
	p.Answer(p.answer)
	t.Cleanup(func() {
		for _, text := range p.wrong {
			t.Errorf("the provider refused: %s", text)
		}
	})
	return p
}

// signsIn sets who sits before the browser.
func (p *provider) signsIn(person string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.person = person
}

// answer answers what an issuer of tokens has not.
func (p *provider) answer(w http.ResponseWriter, r *http.Request) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		reply(w, map[string]any{
			"issuer": p.url, "jwks_uri": p.url + "/keys", "authorization_endpoint": p.url + "/authorize", "token_endpoint": p.url + "/token",
			"response_types_supported": []string{"code"}, "subject_types_supported": []string{"public"}, "id_token_signing_alg_values_supported": []string{"RS256"},
			"code_challenge_methods_supported": []string{"S256"}, "authorization_response_iss_parameter_supported": true,
		})
	case "/authorize":
		p.authorize(w, r)
	case "/token":
		p.token(w, r)
	default:
		return false
	}
	return true
}

func reply(w http.ResponseWriter, shape any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(shape) // the other side may be gone
}

// refuse notes what a client did wrong.
func (p *provider) refuse(w http.ResponseWriter, what string) {
	p.wrong = append(p.wrong, what)
	http.Error(w, what, http.StatusBadRequest)
}

// authorize sends the browser back with a code.
func (p *provider) authorize(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if q.Get("response_type") != "code" || q.Get("client_id") != clientID || q.Get("code_challenge_method") != "S256" || q.Get("code_challenge") == "" ||
		q.Get("state") == "" || q.Get("nonce") == "" || !strings.Contains(" "+q.Get("scope")+" ", " openid ") {
		p.refuse(w, "authorize "+r.URL.RawQuery)
		return
	}
	q.Set("person", p.person)
	code := base64.RawURLEncoding.EncodeToString([]byte(q.Get("state") + "/" + p.person))
	p.codes[code] = q
	http.Redirect(w, r, q.Get("redirect_uri")+"?"+url.Values{"code": {code}, "state": {q.Get("state")}, "iss": {p.url}}.Encode(), http.StatusFound)
}

// token exchanges a code for an ID token.
func (p *provider) token(w http.ResponseWriter, r *http.Request) {
	code := r.PostFormValue("code")
	q, known := p.codes[code]
	delete(p.codes, code)
	id, secret, basic := r.BasicAuth()
	if !basic {
		id, secret = r.PostFormValue("client_id"), r.PostFormValue("client_secret")
	} else {
		id, _ = url.QueryUnescape(id) // RFC 6749, 2.3.1
		secret, _ = url.QueryUnescape(secret)
	}
	challenge := sha256.Sum256([]byte(r.PostFormValue("code_verifier")))
	if !known || id != clientID || secret != clientSecret || r.PostFormValue("redirect_uri") != q.Get("redirect_uri") ||
		base64.RawURLEncoding.EncodeToString(challenge[:]) != q.Get("code_challenge") {
		p.refuse(w, "token for "+code)
		return
	}
	now := p.now()
	reply(w, map[string]any{"access_token": "none", "token_type": "Bearer", "expires_in": 60, "id_token": p.Sign(map[string]any{
		"iss": p.url, "aud": clientID, "sub": q.Get("person"), "nonce": q.Get("nonce"), "iat": now.Unix(), "exp": now.Add(time.Minute).Unix(), "auth_time": now.Unix(),
	})})
}
