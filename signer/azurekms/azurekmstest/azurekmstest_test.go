package azurekmstest

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"hsmsign/internal/testkit"
)

// client is a client of a double, with a token.
type client struct {
	*http.Client
	server *Server
	token  string
}

func newClient(t *testing.T, config Config) *client {
	t.Helper()
	s := testkit.Value(NewServer(config))(t)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(s.CA())
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}
	t.Cleanup(func() { transport.CloseIdleConnections(); _ = s.Close() })
	c := &client{Client: &http.Client{Transport: transport}, server: s}
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {ClientID}, "client_secret": {ClientSecret}, "scope": {resource + "/.default"}}
	_, answer := c.do(t, http.MethodPost, TenantID+"/oauth2/v2.0/token", form.Encode())
	c.token, _ = answer["access_token"].(string)
	return c
}

// do sends a request and returns the status and the members of the answer.
func (c *client) do(t *testing.T, method, path, body string) (int, map[string]any) {
	t.Helper()
	if !strings.Contains(path, "?") && strings.HasPrefix(path, "keys") {
		path += "?api-version=7.4"
	}
	req := testkit.Value(http.NewRequestWithContext(t.Context(), method, "https://"+c.server.Address()+"/"+path, strings.NewReader(body)))(t)
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp := testkit.Value(c.Do(req))(t)
	defer func() { _ = resp.Body.Close() }()
	var members map[string]any
	if text := testkit.Value(io.ReadAll(resp.Body))(t); json.Unmarshal(text, &members) != nil {
		t.Fatalf("%s %s: %s", method, path, text)
	}
	if challenge := resp.Header.Get("WWW-Authenticate"); (resp.StatusCode == http.StatusUnauthorized && strings.HasPrefix(path, "keys")) != strings.Contains(challenge, TenantID) {
		t.Errorf("%s: status %d with the challenge %q", path, resp.StatusCode, challenge)
	}
	return resp.StatusCode, members
}

// TestSign: the form of a signature by the REST API.
func TestSign(t *testing.T) {
	c := newClient(t, Config{})
	path := testkit.Value(c.server.AddKey("vendor", testkit.GoldenKey(t)))(t)
	digest := sha256.Sum256([]byte("message"))
	value := base64.RawURLEncoding.EncodeToString(digest[:])
	status, answer := c.do(t, http.MethodPost, path+"/sign", `{"alg": "RS256", "value": "`+value+`"}`)
	text, _ := answer["value"].(string)
	sig := testkit.Value(base64.RawURLEncoding.DecodeString(text))(t)
	if err := rsa.VerifyPKCS1v15(&testkit.GoldenKey(t).PublicKey, crypto.SHA256, digest[:], sig); err != nil || status != 200 || answer["kid"] != "https://"+c.server.Address()+"/"+path {
		t.Errorf("%v; status %d, %v", err, status, answer)
	}
	for body, want := range map[string]int{
		`{"alg": "RS1", "value": "` + value + `"}`: 400, `{"alg": "RS512", "value": "` + value + `"}`: 400, `{"alg": "RS256", "value": "?"}`: 400, `{`: 400,
	} {
		if status, answer := c.do(t, http.MethodPost, path+"/sign", body); status != want {
			t.Errorf("%s: status %d, %v", body, status, answer)
		}
	}
	if status, _ := c.do(t, http.MethodPost, "keys/none/"+strings.Repeat("0", 32)+"/sign", "{}"); status != 404 {
		t.Errorf("status %d", status)
	}
	log := c.server.Log()
	if last := log[len(log)-1]; last.Operation != "Sign" || last.Name != "none" || last.Status != 404 || last.ID == "" {
		t.Errorf("%+v", last)
	}
}

// TestTokens: a request without a valid token is answered with a challenge, and only the right secret gets a token.
func TestTokens(t *testing.T) {
	c := newClient(t, Config{})
	path := testkit.Value(c.server.AddKey("vendor", testkit.GoldenKey(t)))(t)
	if status, _ := c.do(t, http.MethodGet, path, ""); status != 200 {
		t.Errorf("status %d", status)
	}
	c.server.RevokeTokens()
	if status, answer := c.do(t, http.MethodGet, path, ""); status != 401 {
		t.Errorf("status %d, %v", status, answer)
	}
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {ClientID}, "client_secret": {ClientSecret}, "scope": {resource + "/.default"}}
	for name, value := range map[string]string{"grant_type": "password", "client_id": "other", "client_secret": "wrong", "scope": "https://graph.microsoft.com/.default"} {
		wrong := url.Values{}
		for k, v := range form {
			wrong[k] = v
		}
		wrong[name] = []string{value}
		if status, answer := c.do(t, http.MethodPost, TenantID+"/oauth2/v2.0/token", wrong.Encode()); status != 401 || answer["access_token"] != nil {
			t.Errorf("%s: status %d, %v", name, status, answer)
		}
	}
	if n, m := c.server.Tokens(), c.server.Challenges(); n != 1 || m != 1 || c.server.Calls("*") != 1 {
		t.Errorf("%d tokens, %d challenges, %d requests", n, m, c.server.Calls("*"))
	}
}

// TestKeys: versions, pages, and the creation of a key.
func TestKeys(t *testing.T) {
	c := newClient(t, Config{PageSize: 2})
	for range 3 {
		testkit.Value(c.server.AddKey("vendor", testkit.GoldenKey(t)))(t)
	}
	newest := testkit.Value(c.server.Add(Key{Name: "Vendor", Private: testkit.Key("other"), HSM: true, Disabled: true, Expires: time.Unix(1, 0)}))(t)
	_, answer := c.do(t, http.MethodGet, "keys/vendor", "")
	key, attributes := answer["key"].(map[string]any), answer["attributes"].(map[string]any)
	if key["kid"] != "https://"+c.server.Address()+"/"+newest || key["kty"] != "RSA-HSM" || attributes["enabled"] != false || attributes["exp"] != 1.0 {
		t.Errorf("%v", answer)
	}
	path, entries := "keys/vendor/versions", 0
	for path != "" {
		_, page := c.do(t, http.MethodGet, path, "")
		entries += len(page["value"].([]any))
		next, _ := page["nextLink"].(string)
		_, path, _ = strings.Cut(next, c.server.Address()+"/")
	}
	if entries != 4 {
		t.Errorf("%d versions", entries)
	}
	status, answer := c.do(t, http.MethodPost, "keys/new/create", `{"kty": "RSA-HSM", "key_size": 2048, "key_ops": ["sign"], "attributes": {"exportable": true}}`)
	if key := answer["key"].(map[string]any); status != 200 || key["kty"] != "RSA-HSM" || answer["attributes"].(map[string]any)["exportable"] != true {
		t.Errorf("%d, %v", status, answer)
	}
	for path, want := range map[string]int{"keys/none": 404, "secrets/x": 404, "keys?api-version=7.4&$skiptoken=9": 400} {
		if status, _ := c.do(t, http.MethodGet, path, ""); status != want {
			t.Errorf("%s: status %d", path, status)
		}
	}
	if status, _ := c.do(t, http.MethodPost, "keys/x/create", `{"kty": "EC"}`); status != 400 {
		t.Errorf("status %d", status)
	}
	if _, err := c.server.Add(Key{Name: "a_b"}); err == nil {
		t.Error("a name with an underscore")
	}
	if c.server.Change("keys/none/1", func(*Key) {}) == nil || c.server.Stand("Sing", OK) == nil || c.server.Script("Sign", "strange") == nil {
		t.Error("an unknown key, operation or fault")
	}
}
