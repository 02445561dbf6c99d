package awskmstest

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

func newServer(t *testing.T, config Config) *Server {
	t.Helper()
	s, err := NewServer(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func newKey(t *testing.T) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// request is a client's request, signed here by the steps of the IAM user guide and not by the SDK, so that two
// readings of Signature Version 4 have to agree.
type request struct {
	operation, region, service string
	body                       string
	id, secret, token          string
	date                       time.Time
	unsigned                   bool
	change                     func(*http.Request) // after signing
}

func (s *Server) do(t *testing.T, r request) (int, map[string]any) {
	t.Helper()
	status, body := s.raw(t, r)
	var members map[string]any
	if len(body) > 0 {
		if err := json.Unmarshal(body, &members); err != nil {
			t.Fatalf("%s: %v", body, err)
		}
	}
	return status, members
}

func (s *Server) raw(t *testing.T, r request) (int, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL()+"/", strings.NewReader(r.body))
	if err != nil {
		t.Fatal(err)
	}
	if r.service == "sts" {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	} else {
		r.service = "kms"
		req.Header.Set("Content-Type", "application/x-amz-json-1.1")
		req.Header.Set("X-Amz-Target", "TrentService."+r.operation)
	}
	if !r.unsigned {
		r.sign(req)
	}
	if r.change != nil {
		r.change(req)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, body
}

func (r *request) sign(req *http.Request) {
	if r.id == "" {
		r.id, r.secret = AccessKeyID, SecretAccessKey
	}
	if r.region == "" {
		r.region = "eu-west-1"
	}
	if r.date.IsZero() {
		r.date = time.Now()
	}
	at := r.date.UTC().Format("20060102T150405Z")
	req.Header.Set("X-Amz-Date", at)
	names, lines := "content-type;host;x-amz-date", "content-type:"+req.Header.Get("Content-Type")+"\nhost:"+req.URL.Host+"\nx-amz-date:"+at+"\n"
	if r.token != "" {
		req.Header.Set("X-Amz-Security-Token", r.token)
		names, lines = names+";x-amz-security-token", lines+"x-amz-security-token:"+r.token+"\n"
	}
	if target := req.Header.Get("X-Amz-Target"); target != "" {
		names, lines = names+";x-amz-target", lines+"x-amz-target:"+target+"\n"
	}
	sum := func(text string) string { h := sha256.Sum256([]byte(text)); return hex.EncodeToString(h[:]) }
	mac := func(key []byte, text string) []byte {
		h := hmac.New(sha256.New, key)
		h.Write([]byte(text))
		return h.Sum(nil)
	}
	scope := at[:8] + "/" + r.region + "/" + r.service + "/aws4_request"
	text := "AWS4-HMAC-SHA256\n" + at + "\n" + scope + "\n" + sum("POST\n/\n\n"+lines+"\n"+names+"\n"+sum(r.body))
	key := mac(mac(mac(mac([]byte("AWS4"+r.secret), at[:8]), r.region), r.service), "aws4_request")
	req.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential="+r.id+"/"+scope+", SignedHeaders="+names+", Signature="+hex.EncodeToString(mac(key, text)))
}

// TestAuthentication: a request that is not properly signed is refused with the code that KMS has for it.
func TestAuthentication(t *testing.T) {
	s := newServer(t, Config{})
	if _, err := s.AddKey("alias/v", newKey(t)); err != nil {
		t.Fatal(err)
	}
	s.AddCredentials(Credentials{AccessKeyID: "ASIASESSION", SecretAccessKey: "s", SessionToken: "tok", Expires: time.Now().Add(time.Hour)})
	s.AddCredentials(Credentials{AccessKeyID: "ASIAENDED", SecretAccessKey: "s", SessionToken: "tok", Expires: time.Now().Add(-time.Hour)})
	header := func(name, value string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set(name, value) }
	}
	for _, tt := range []struct {
		name, code string // code "": it is answered
		request    request
	}{
		{"signed", "", request{}},
		{"session", "", request{id: "ASIASESSION", secret: "s", token: "tok"}},
		{"not signed", "MissingAuthenticationTokenException", request{unsigned: true}},
		{"another scheme", "IncompleteSignatureException", request{change: header("Authorization", "Basic dGVzdDp0ZXN0")}},
		{"half a header", "IncompleteSignatureException", request{change: header("Authorization", "AWS4-HMAC-SHA256 Credential=x")}},
		{"unknown access key", "UnrecognizedClientException", request{id: "AKIAOTHER", secret: SecretAccessKey}},
		{"wrong secret", "InvalidSignatureException", request{id: AccessKeyID, secret: "wrong"}},
		{"wrong token", "UnrecognizedClientException", request{id: "ASIASESSION", secret: "s", token: "other"}},
		{"no token", "UnrecognizedClientException", request{id: "ASIASESSION", secret: "s"}},
		{"expired", "ExpiredTokenException", request{id: "ASIAENDED", secret: "s", token: "tok"}},
		{"old", "InvalidSignatureException", request{date: time.Now().Add(-10 * time.Minute)}},
		{"of the future", "InvalidSignatureException", request{date: time.Now().Add(10 * time.Minute)}},
		{"for another operation", "InvalidSignatureException", request{change: header("X-Amz-Target", "TrentService.CreateKey")}},
		{"another body", "InvalidSignatureException", request{change: func(r *http.Request) {
			body := []byte(`{"KeyId":"alias/w"}`)
			r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		}}},
		{"token that is not signed", "InvalidSignatureException", request{id: "ASIASESSION", secret: "s", change: header("X-Amz-Security-Token", "tok")}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := tt.request
			r.operation, r.body = "GetPublicKey", `{"KeyId":"alias/v"}`
			status, members := s.do(t, r)
			if tt.code == "" {
				if status != http.StatusOK || members["KeySpec"] != "RSA_2048" {
					t.Errorf("%d %v", status, members)
				}
				return
			}
			if status != http.StatusBadRequest || members["__type"] != tt.code || members["PublicKey"] != nil {
				t.Errorf("%d %v, want %s", status, members, tt.code)
			}
		})
	}
	s.Expire("ASIASESSION")
	if _, members := s.do(t, request{operation: "GetPublicKey", id: "ASIASESSION", secret: "s", token: "tok"}); members["__type"] != "ExpiredTokenException" {
		t.Errorf("after Expire: %v", members)
	}
}

// TestOperations: what is answered to requests that are right in form.
func TestOperations(t *testing.T) {
	s := newServer(t, Config{})
	arn, err := s.AddKey("alias/v", newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	encrypting, err := s.Add(Key{Private: newKey(t), Usage: EncryptDecrypt})
	if err != nil {
		t.Fatal(err)
	}
	symmetric, err := s.Add(Key{})
	if err != nil {
		t.Fatal(err)
	}
	const sign = `{"KeyId":"%","Message":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","MessageType":"DIGEST","SigningAlgorithm":"RSASSA_PKCS1_V1_5_SHA_256"}`
	signWith := func(from, to string) string {
		return strings.Replace(strings.Replace(sign, "%", "alias/v", 1), from, to, 1)
	}
	for _, tt := range []struct{ name, operation, body, region, code string }{
		{"signature", "Sign", signWith("", ""), "", ""},
		{"by ARN", "GetPublicKey", `{"KeyId":"` + arn + `"}`, "", ""},
		{"unknown key", "GetPublicKey", `{"KeyId":"alias/w"}`, "", "NotFoundException"},
		{"case of an alias", "GetPublicKey", `{"KeyId":"alias/V"}`, "", "NotFoundException"},
		{"another region", "GetPublicKey", `{"KeyId":"alias/v"}`, "us-east-1", "NotFoundException"},
		{"ARN in another region", "GetPublicKey", `{"KeyId":"` + arn + `"}`, "us-east-1", "NotFoundException"},
		{"no key", "GetPublicKey", `{}`, "", "ValidationException"},
		{"symmetric", "GetPublicKey", `{"KeyId":"` + symmetric + `"}`, "", "UnsupportedOperationException"},
		{"short digest", "Sign", signWith("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "AAAA"), "", "ValidationException"},
		{"no message", "Sign", signWith("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", ""), "", "ValidationException"},
		{"SHA-1", "Sign", signWith("SHA_256", "SHA_1"), "", "ValidationException"},
		{"message type", "Sign", signWith("DIGEST", "HASH"), "", "ValidationException"},
		{"wrong usage", "Sign", signWith("alias/v", encrypting), "", "InvalidKeyUsageException"},
		{"not JSON", "Sign", `{`, "", "SerializationException"},
		{"unknown operation", "Decrypt", `{}`, "", "UnknownOperationException"},
		{"alias taken", "CreateAlias", `{"AliasName":"alias/v","TargetKeyId":"` + arn + `"}`, "", "AlreadyExistsException"},
		{"alias of Amazon", "CreateAlias", `{"AliasName":"alias/aws/v","TargetKeyId":"` + arn + `"}`, "", "InvalidAliasNameException"},
		{"marker", "ListKeys", `{"Marker":"x"}`, "", "InvalidMarkerException"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := s.Calls(tt.operation)
			status, members := s.do(t, request{operation: tt.operation, body: tt.body, region: tt.region})
			got, _ := members["__type"].(string)
			if got != tt.code || (status == http.StatusOK) != (tt.code == "") {
				t.Errorf("%d %v, want %q", status, members, tt.code)
			}
			if s.Calls(tt.operation) != before+1 {
				t.Error("it was not counted")
			}
		})
	}
	for state, code := range map[string]string{Disabled: "DisabledException", PendingDeletion: "KMSInvalidStateException", PendingImport: "KMSInvalidStateException", Enabled: ""} {
		s.SetState(arn, state)
		_, members := s.do(t, request{operation: "Sign", body: signWith("", "")})
		if got, _ := members["__type"].(string); got != code {
			t.Errorf("%s: %v, want %q", state, members, code)
		}
	}
}

// TestSignatures: RSA over the digest, or over the message that is hashed here.
func TestSignatures(t *testing.T) {
	s := newServer(t, Config{})
	private := newKey(t)
	if _, err := s.AddKey("alias/v", private); err != nil {
		t.Fatal(err)
	}
	message := []byte("message")
	for name, scheme := range algorithms() {
		h := scheme.hash.New()
		h.Write(message)
		digest := h.Sum(nil)
		for kind, data := range map[string][]byte{"RAW": message, "DIGEST": digest} {
			body, err := json.Marshal(map[string]any{"KeyId": "alias/v", "Message": data, "MessageType": kind, "SigningAlgorithm": name})
			if err != nil {
				t.Fatal(err)
			}
			_, raw := s.raw(t, request{operation: "Sign", body: string(body)})
			var answer struct{ Signature []byte }
			if err := json.Unmarshal(raw, &answer); err != nil {
				t.Fatal(err)
			}
			if scheme.pss {
				err = rsa.VerifyPSS(&private.PublicKey, scheme.hash, digest, answer.Signature, nil)
			} else {
				err = rsa.VerifyPKCS1v15(&private.PublicKey, scheme.hash, digest, answer.Signature)
			}
			if err != nil {
				t.Errorf("%s of %s: %v", name, kind, err)
			}
		}
	}
}
