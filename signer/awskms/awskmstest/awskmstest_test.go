package awskmstest

import (
	"bytes"
	"crypto/hmac"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"hsmsign/internal/testkit"
)

func newServer(t *testing.T, config Config) *Server {
	t.Helper()
	s := testkit.Value(NewServer(config))(t)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// withKey returns a server with the golden key under alias/v, and the ARN of the key.
func withKey(t *testing.T) (*Server, string) {
	t.Helper()
	s := newServer(t, Config{})
	return s, testkit.Value(s.AddKey("alias/v", testkit.GoldenKey(t)))(t)
}

// request is a client's request. It is signed here by the steps of the IAM user guide and not by the SDK, so that two
// implementations of Signature Version 4 must agree.
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
	req := testkit.Value(http.NewRequestWithContext(t.Context(), http.MethodPost, s.Endpoint()+"/", strings.NewReader(r.body)))(t)
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
	resp := testkit.Value(http.DefaultClient.Do(req))(t)
	defer func() { _ = resp.Body.Close() }()
	return resp.StatusCode, testkit.Value(io.ReadAll(resp.Body))(t)
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

// TestAuthentication: a request without a valid signature is refused with the error code of KMS.
func TestAuthentication(t *testing.T) {
	s, _ := withKey(t)
	s.AddCredentials(Credentials{AccessKeyID: "ASIASESSION", SecretAccessKey: "s", SessionToken: "tok", Expires: time.Now().Add(time.Hour)})
	s.AddCredentials(Credentials{AccessKeyID: "ASIAENDED", SecretAccessKey: "s", SessionToken: "tok", Expires: time.Now().Add(-time.Hour)})
	header := func(name, value string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set(name, value) }
	}
	for _, tt := range []struct {
		name, code string // code "": it succeeds
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
		{"in the future", "InvalidSignatureException", request{date: time.Now().Add(10 * time.Minute)}},
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

// TestOperations: the answers to well-formed requests.
func TestOperations(t *testing.T) {
	s, arn := withKey(t)
	encrypting := testkit.Value(s.Add(Key{Private: testkit.GoldenKey(t), Usage: EncryptDecrypt}))(t)
	symmetric := testkit.Value(s.Add(Key{}))(t)
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
				t.Error("the request was not counted")
			}
		})
	}
}

// TestSignatures: RSA over the digest, or over the message, which the double hashes.
func TestSignatures(t *testing.T) {
	s, _ := withKey(t)
	private := testkit.GoldenKey(t)
	message := []byte("message")
	for name, scheme := range algorithms() {
		h := scheme.hash.New()
		h.Write(message)
		digest := h.Sum(nil)
		for kind, data := range map[string][]byte{"RAW": message, "DIGEST": digest} {
			body := testkit.Value(json.Marshal(map[string]any{"KeyId": "alias/v", "Message": data, "MessageType": kind, "SigningAlgorithm": name}))(t)
			_, raw := s.raw(t, request{operation: "Sign", body: string(body)})
			var answer struct{ Signature []byte }
			testkit.OK(t, json.Unmarshal(raw, &answer))
			err := rsa.VerifyPKCS1v15(&private.PublicKey, scheme.hash, digest, answer.Signature)
			if scheme.pss {
				err = rsa.VerifyPSS(&private.PublicKey, scheme.hash, digest, answer.Signature, nil)
			}
			if err != nil {
				t.Errorf("%s of %s: %v", name, kind, err)
			}
		}
	}
}

// TestAssumeRole: KMS accepts the session credentials that STS issues.
func TestAssumeRole(t *testing.T) {
	s, _ := withKey(t)
	form := url.Values{"Action": {"AssumeRole"}, "RoleArn": {"arn:aws:iam::111122223333:role/r"}, "RoleSessionName": {"test"}}
	status, body := s.raw(t, request{service: "sts", body: form.Encode()})
	var a assumed
	if err := xml.Unmarshal(body, &a); err != nil || status != http.StatusOK {
		t.Fatalf("%d %s: %v", status, body, err)
	}
	c := a.Result.Credentials
	if _, members := s.do(t, request{operation: "GetPublicKey", body: `{"KeyId":"alias/v"}`, id: c.AccessKeyID, secret: c.SecretAccessKey, token: c.SessionToken}); members["KeySpec"] != "RSA_2048" {
		t.Errorf("%v", members)
	}
	for _, tt := range []struct {
		name, code string
		request    request
	}{
		{"wrong secret", "SignatureDoesNotMatch", request{body: form.Encode(), id: AccessKeyID, secret: "wrong"}},
		{"unknown access key", "InvalidClientTokenId", request{body: form.Encode(), id: "AKIAOTHER", secret: "x"}},
		{"no role", "Validation", request{body: "Action=AssumeRole"}},
		{"lifetime", "Validation", request{body: form.Encode() + "&DurationSeconds=1"}},
	} {
		tt.request.service = "sts"
		status, body := s.raw(t, tt.request)
		var r refused
		if err := xml.Unmarshal(body, &r); err != nil || status < 400 || r.Error.Code != tt.code {
			t.Errorf("%s: %d %s, want %s", tt.name, status, body, tt.code)
		}
	}
}

// TestLimits: a request that is too long is refused, one that hangs ends with the server, and nothing is left running.
func TestLimits(t *testing.T) {
	s := newServer(t, Config{})
	if status, members := s.do(t, request{operation: "Sign", body: strings.Repeat(" ", maxBody+1)}); status != http.StatusBadRequest {
		t.Errorf("%d %v", status, members)
	}
	testkit.OK(t, s.Stand("*", Hang))
	req := testkit.Value(http.NewRequestWithContext(t.Context(), http.MethodPost, s.Endpoint(), strings.NewReader("{}")))(t)
	req.Header.Set("X-Amz-Target", "TrentService.Sign")
	r := request{body: "{}", service: "kms"}
	r.sign(req)
	ended := make(chan error, 1)
	go func() {
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			_ = resp.Body.Close()
		}
		ended <- err
	}()
	testkit.Until(t, "the request arrives", func() bool { return s.Calls("Sign") > 0 })
	testkit.OK(t, s.Close())
	if err := <-ended; err == nil {
		t.Error("a request that hangs is answered by Close")
	}
	if err := s.Close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
	http.DefaultClient.CloseIdleConnections()
	testkit.OK(t, goleak.Find(goleak.IgnoreAnyFunction("net/http.(*conn).closeWriteAndWait"))) // it ends after 500 ms
}

func TestConfig(t *testing.T) {
	if s, err := NewServer(Config{Listen: "no address"}); err == nil {
		_ = s.Close()
		t.Error("it listens on no address")
	}
	s := newServer(t, Config{Region: "us-east-1", Account: "999988887777"})
	arn, err := s.AddKey("alias/v", testkit.GoldenKey(t))
	if err != nil || !strings.HasPrefix(arn, "arn:aws:kms:us-east-1:999988887777:key/") || s.Region() != "us-east-1" {
		t.Errorf("%q, %v", arn, err)
	}
	if _, err := s.AddKey("v", testkit.GoldenKey(t)); err == nil {
		t.Error("an alias without alias/ is accepted")
	}
	if err := s.SetState("no such key", StateEnabled); err == nil {
		t.Error("the state of an unknown key is set")
	}
}
