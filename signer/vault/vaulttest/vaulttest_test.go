package vaulttest

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"hsmsign/internal/testkit"
)

func newServer(t *testing.T) *Server {
	t.Helper()
	s := testkit.Value(NewServer(Config{}))(t)
	t.Cleanup(func() { _ = s.Close(); http.DefaultClient.CloseIdleConnections() })
	testkit.Value(s.AddKey("vendor", testkit.GoldenKey(t)))(t)
	return s
}

// do sends a request and returns the status and the members of the answer.
func (s *Server) do(t *testing.T, method, path, body string, header ...string) (int, map[string]any) {
	t.Helper()
	req := testkit.Value(http.NewRequestWithContext(t.Context(), method, "http://"+s.Address()+"/v1/"+path, strings.NewReader(body)))(t)
	req.Header.Set("X-Vault-Token", Token)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp := testkit.Value(http.DefaultClient.Do(req))(t)
	defer func() { _ = resp.Body.Close() }()
	var members map[string]any
	if text := testkit.Value(io.ReadAll(resp.Body))(t); json.Unmarshal(text, &members) != nil {
		t.Fatalf("%s %s: %s", method, path, text)
	}
	return resp.StatusCode, members
}

// TestSign: the parameters of a signature have the meaning and the defaults of Vault's documentation.
func TestSign(t *testing.T) {
	s := newServer(t)
	public, message := &testkit.GoldenKey(t).PublicKey, []byte("message")
	digest := sha256.Sum256(message)
	raw, hashed := base64.StdEncoding.EncodeToString(message), base64.StdEncoding.EncodeToString(digest[:])
	pkcs := func(sig []byte) error { return rsa.VerifyPKCS1v15(public, crypto.SHA256, digest[:], sig) }
	pss := func(sig []byte) error { return rsa.VerifyPSS(public, crypto.SHA256, digest[:], sig, nil) }
	for _, tt := range []struct {
		path, body string
		verify     func([]byte) error
		status     int
		message    string
	}{
		{"transit/sign/vendor", `{"input": "` + raw + `"}`, pss, 200, ""},
		{"transit/sign/vendor/sha2-256", `{"input": "` + raw + `", "signature_algorithm": "pkcs1v15"}`, pkcs, 200, ""},
		{"transit/sign/vendor/sha2-256", `{"input": "` + hashed + `", "prehashed": true, "signature_algorithm": "pkcs1v15", "key_version": 1}`, pkcs, 200, ""},
		{"transit/sign/vendor/sha2-256", `{"input": "` + hashed + `", "prehashed": true, "key_version": 0}`, pss, 200, ""}, // 0 is the newest version
		{"transit/sign/vendor/md5", `{"input": "` + raw + `"}`, nil, 400, `invalid hash algorithm "md5"`},
		{"transit/sign/vendor", `{"input": "?"}`, nil, 400, "unable to decode input as base64"},
		{"transit/sign/vendor", `{"input": "` + raw + `", "prehashed": true}`, nil, 500, ""},
		{"transit/sign/vendor", `{"input": "` + raw + `", "key_version": 2}`, nil, 400, "higher than the latest"},
		{"transit/sign/vendor", `{"input": "` + raw + `", "key_version": -1}`, nil, 400, "negative"},
		{"transit/sign/none", `{"input": "` + raw + `"}`, nil, 400, "signing key not found"},
		{"transit/sign/vendor", `{`, nil, 400, "failed to parse JSON input"},
		{"transit/other/vendor", `{}`, nil, 404, "no handler for route"},
	} {
		status, members := s.do(t, http.MethodPost, tt.path, tt.body)
		text, _ := json.Marshal(members["errors"])
		if status != tt.status || !strings.Contains(string(text), strings.ReplaceAll(tt.message, `"`, `\"`)) {
			t.Errorf("%s %s: status %d, %s", tt.path, tt.body, status, text)
		}
		if tt.verify == nil {
			continue
		}
		data := members["data"].(map[string]any)
		encoded, ok := strings.CutPrefix(data["signature"].(string), "vault:v1:")
		if err := tt.verify(testkit.Value(base64.StdEncoding.DecodeString(encoded))(t)); err != nil || !ok || members["request_id"] == "" {
			t.Errorf("%s %s: %v, %v", tt.path, tt.body, err, members)
		}
	}
}

// TestTokens: a request needs a valid token of its namespace; a login issues one, and a renewal extends it to its maximum.
func TestTokens(t *testing.T) {
	s := newServer(t)
	s.AddToken("ended", "", Lease{TTL: time.Nanosecond})
	s.AddToken("tenant", "mdm", Lease{TTL: time.Hour, MaxTTL: 90 * time.Minute, Renewable: true})
	s.AddAppRole(Role{Name: "r", Secret: "s", Lease: Lease{TTL: time.Hour}})
	for _, tt := range []struct {
		token, namespace string
		status           int
	}{{"", "", 400}, {"unknown", "", 403}, {"ended", "", 403}, {"tenant", "", 403}, {"tenant", "mdm", 200}, {Token, "mdm", 403}} {
		if status, members := s.do(t, http.MethodGet, "auth/token/lookup-self", "", "X-Vault-Token", tt.token, "X-Vault-Namespace", tt.namespace); status != tt.status {
			t.Errorf("%+v: status %d, %v", tt, status, members)
		}
	}
	status, members := s.do(t, http.MethodPost, "auth/token/renew-self", "{}", "X-Vault-Token", "tenant", "X-Vault-Namespace", "mdm")
	if auth := members["auth"].(map[string]any); status != 200 || auth["lease_duration"] != 3600.0 || auth["client_token"] != "tenant" {
		t.Errorf("%d, %v", status, members)
	}
	status, members = s.do(t, http.MethodPost, "auth/approle/login", `{"role_id": "r", "secret_id": "s"}`, "X-Vault-Token", "")
	token, _ := members["auth"].(map[string]any)["client_token"].(string)
	if status != 200 || !strings.HasPrefix(token, loginPrefix) {
		t.Errorf("%d, %v", status, members)
	}
	if status, _ := s.do(t, http.MethodPost, "auth/token/renew-self", "{}", "X-Vault-Token", token); status != 400 {
		t.Errorf("a token that cannot be renewed: status %d", status)
	}
	s.Revoke("")
	if status, _ := s.do(t, http.MethodGet, "auth/token/lookup-self", "", "X-Vault-Token", token); status != 403 {
		t.Errorf("a revoked token: status %d", status)
	}
	for _, body := range []string{`{"role_id": "r", "secret_id": "x"}`, `{"role_id": "x", "secret_id": "s"}`, `{}`} {
		if status, _ := s.do(t, http.MethodPost, "auth/approle/login", body); status != 400 {
			t.Errorf("%s: status %d", body, status)
		}
	}
}

// TestKeys: a key is created once, and read back with a version for each of its keys.
func TestKeys(t *testing.T) {
	s := newServer(t)
	testkit.Value(s.AddKey("vendor", testkit.Key("other")))(t)
	_, members := s.do(t, http.MethodGet, "transit/keys/vendor", "")
	data := members["data"].(map[string]any)
	if data["type"] != "rsa-2048" || data["latest_version"] != 2.0 || len(data["keys"].(map[string]any)) != 2 || data["exportable"] != false {
		t.Errorf("%v", data)
	}
	status, members := s.do(t, http.MethodPost, "transit/keys/new", `{"type": "rsa-2048", "exportable": true}`)
	if data := members["data"].(map[string]any); status != 200 || members["warnings"] != nil || data["type"] != "rsa-2048" || data["exportable"] != true {
		t.Errorf("%d, %v", status, members)
	}
	status, members = s.do(t, http.MethodPost, "transit/keys/new", `{"type": "rsa-3072"}`)
	if data := members["data"].(map[string]any); status != 200 || members["warnings"] == nil || data["type"] != "rsa-2048" {
		t.Errorf("%d, %v", status, members)
	}
	for path, want := range map[string]int{"transit/keys/none": 404, "none/keys/vendor": 404, "none/keys?list=true": 404, "transit/keys?list=true": 200, "sys/health": 200, "transit": 404} {
		if status, members := s.do(t, http.MethodGet, path, ""); status != want {
			t.Errorf("%s: status %d, %v", path, status, members)
		}
	}
	if status, _ := s.do(t, http.MethodPost, "transit/keys/x", `{"type": "dsa"}`); status != 400 {
		t.Errorf("status %d", status)
	}
	if _, err := s.Add(Key{Name: "a/b"}); err == nil {
		t.Error("a name with a slash")
	}
	if s.SetMinimum("none", 1) == nil || s.Stand("Sing", OK) == nil || s.Script("Sign", "strange") == nil {
		t.Error("an unknown key, operation or fault")
	}
	testkit.OK(t, s.Stand("Sign", Delay(time.Millisecond)))
	if status, _ := s.do(t, http.MethodPost, "transit/sign/vendor", `{"input": ""}`); status != 200 {
		t.Errorf("status %d", status)
	}
	log := s.Log()
	if last := log[len(log)-1]; last.Operation != "Sign" || last.Path != "transit/sign/vendor" || last.Status != 200 || last.Fault != Delay(time.Millisecond) {
		t.Errorf("%+v", last)
	}
}

// TestLimits: a request that is too long is refused, and the log is limited.
func TestLimits(t *testing.T) {
	s := newServer(t)
	if status, _ := s.do(t, http.MethodPost, "transit/sign/vendor", `{"input": "`+string(bytes.Repeat([]byte("A"), maxBody))+`"}`); status != 400 {
		t.Errorf("status %d", status)
	}
	for range maxLog + 1 {
		s.record(call{}, nil)
	}
	if n := len(s.Log()); n != maxLog {
		t.Errorf("%d entries", n)
	}
}
