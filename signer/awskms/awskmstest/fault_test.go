package awskmstest

import (
	"crypto/x509"
	"encoding/json"
	"encoding/xml"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// TestFaultOrder: scripts go before what stands, the narrow before the wide, and one request takes one fault.
func TestFaultOrder(t *testing.T) {
	s := newServer(t, Config{})
	if _, err := s.AddKey("alias/v", newKey(t)); err != nil {
		t.Fatal(err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(s.Stand("*", Internal))
	must(s.Stand("*@us-east-1", KeyUnavailable))
	must(s.Script("GetPublicKey", Throttle, OK, AccessDenied))
	must(s.Script("*", "DisabledException"))
	ask := func(region string) string {
		_, members := s.do(t, request{operation: "GetPublicKey", body: `{"KeyId":"alias/v"}`, region: region})
		code, _ := members["__type"].(string)
		return code
	}
	for i, want := range []string{"ThrottlingException", "", "AccessDeniedException", "DisabledException", "KMSInternalException", "KMSInternalException"} {
		if got := ask(""); got != want {
			t.Errorf("request %d: %q, want %q", i, got, want)
		}
	}
	if got := ask("us-east-1"); got != "KeyUnavailableException" {
		t.Errorf("us-east-1: %q", got)
	}
	must(s.Stand("*", OK))
	if got := ask(""); got != "" {
		t.Errorf("well again: %q", got)
	}
	for _, wrong := range []Fault{"", "no such fault", "delay=soon"} {
		if s.Script("Sign", OK, wrong) == nil || s.Stand("Sign", wrong) == nil {
			t.Errorf("fault %q is taken", wrong)
		}
	}
}

// TestAssumeRole: the session credentials that STS gives out are good for KMS.
func TestAssumeRole(t *testing.T) {
	s := newServer(t, Config{})
	if _, err := s.AddKey("alias/v", newKey(t)); err != nil {
		t.Fatal(err)
	}
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

// TestBounds: a request that is too long is refused, and one that hangs ends with the server.
func TestBounds(t *testing.T) {
	s := newServer(t, Config{})
	if status, members := s.do(t, request{operation: "Sign", body: strings.Repeat(" ", maxBody+1)}); status != http.StatusBadRequest {
		t.Errorf("%d %v", status, members)
	}
	if err := s.Stand("*", Hang); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL(), strings.NewReader("{}"))
		if err != nil {
			ended <- err
			return
		}
		req.Header.Set("X-Amz-Target", "TrentService.Sign")
		r := request{body: "{}", service: "kms"}
		r.sign(req)
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			err = resp.Body.Close()
		}
		ended <- err
	}()
	for s.Calls("Sign") < 1 {
		time.Sleep(time.Millisecond)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	select {
	case err := <-ended:
		if err == nil {
			t.Error("the request that hung was answered by Close")
		}
	case <-time.After(5 * time.Second):
		t.Error("the request hangs after Close")
	}
	if err := s.Close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
	http.DefaultClient.CloseIdleConnections()
	var leaked error
	for range 20 { // net/http keeps a refused connection for half a second
		if leaked = goleak.Find(); leaked == nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Error(leaked)
}

func TestConfig(t *testing.T) {
	if s, err := NewServer(Config{Listen: "no address"}); err == nil {
		_ = s.Close()
		t.Error("it listens on no address")
	}
	s := newServer(t, Config{Region: "us-east-1", Account: "999988887777"})
	arn, err := s.AddKey("alias/v", newKey(t))
	if err != nil || !strings.HasPrefix(arn, "arn:aws:kms:us-east-1:999988887777:key/") {
		t.Errorf("%q, %v", arn, err)
	}
	if _, err := s.AddKey("v", newKey(t)); err == nil {
		t.Error("an alias without alias/ is taken")
	}
	if _, err := x509.ParsePKIXPublicKey(s.publicKey(t)); err != nil {
		t.Error(err)
	}
}

func (s *Server) publicKey(t *testing.T) []byte {
	t.Helper()
	_, raw := s.raw(t, request{operation: "GetPublicKey", body: `{"KeyId":"alias/v"}`, region: s.Region()})
	var answer struct{ PublicKey []byte }
	if err := json.Unmarshal(raw, &answer); err != nil {
		t.Fatal(err)
	}
	return answer.PublicKey
}
