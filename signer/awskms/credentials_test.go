package awskms

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"hsmsign/signer"
	"hsmsign/signer/awskms/awskmstest"
)

func TestCredentials(t *testing.T) {
	private := vendorKey(t)
	for _, tt := range []struct {
		name      string
		env       map[string]string
		query     string
		family    error // nil: it signs
		text, fix string
	}{
		{name: "none", env: map[string]string{"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, family: signer.ErrAuth, text: "no AWS credentials", fix: "AWS_PROFILE"},
		{name: "unknown access key", env: map[string]string{"AWS_ACCESS_KEY_ID": "AKIAUNKNOWN000000000"}, family: signer.ErrAuth, text: "UnrecognizedClientException", fix: "credentials"},
		{name: "wrong secret", env: map[string]string{"AWS_SECRET_ACCESS_KEY": "wrong"}, family: signer.ErrAuth, text: "InvalidSignatureException", fix: "clock"},
		{name: "token of nobody", env: map[string]string{"AWS_SESSION_TOKEN": "token"}, family: signer.ErrAuth, text: "UnrecognizedClientException", fix: "credentials"},
		{name: "no such profile", query: "&profile=absent", family: signer.ErrAuth, text: "absent", fix: "AWS_CONFIG_FILE"},
		{name: "profile", query: "&profile=signing", env: map[string]string{"AWS_SECRET_ACCESS_KEY": "wrong"}},
		{name: "role", query: "&role-arn=arn:aws:iam::111122223333:role/hsmsign"},
		{name: "role without credentials", query: "&role-arn=arn:aws:iam::111122223333:role/hsmsign", family: signer.ErrAuth, text: "no AWS credentials", fix: "AWS_PROFILE",
			env: map[string]string{"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}},
		{name: "role with a wrong secret", query: "&role-arn=arn:aws:iam::111122223333:role/hsmsign", family: signer.ErrAuth, text: "sts:AssumeRole: SignatureDoesNotMatch", fix: "clock",
			env: map[string]string{"AWS_SECRET_ACCESS_KEY": "wrong"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server, reference := start(t, awskmstest.Config{})
			file := filepath.Join(t.TempDir(), "config")
			text := "[profile signing]\naws_access_key_id = " + awskmstest.AccessKeyID + "\naws_secret_access_key = " + awskmstest.SecretAccessKey + "\n"
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			t.Setenv("AWS_CONFIG_FILE", file)
			t.Setenv("AWS_ENDPOINT_URL_STS", server.URL())
			for name, value := range tt.env {
				t.Setenv(name, value)
			}
			key, err := open(t, Options{Policy: quick()}, reference+tt.query)
			if tt.family != nil {
				wantError(t, err, tt.family, tt.text, tt.fix)
				if n := server.Calls("GetPublicKey") + server.Calls("AssumeRole"); n > 1 {
					t.Errorf("asked %d times; credentials are not tried twice", n)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			mustSign(t, key, private, tt.name)
		})
	}
}

// TestRoleFaults: STS refuses for good, or fails and is asked again.
func TestRoleFaults(t *testing.T) {
	server, reference := start(t, awskmstest.Config{})
	t.Setenv("AWS_ENDPOINT_URL_STS", server.URL())
	reference += "&role-arn=arn:aws:iam::111122223333:role/hsmsign"
	script(t, server, "AssumeRole", awskmstest.AccessDenied)
	_, err := open(t, Options{Policy: quick()}, reference)
	wantError(t, err, signer.ErrAuth, "sts:AssumeRole: AccessDenied", "grant sts:AssumeRole")
	script(t, server, "AssumeRole", awskmstest.Internal, awskmstest.Reset, awskmstest.Throttle)
	mustSign(t, mustOpen(t, Options{Policy: quick()}, reference), vendorKey(t), "role")
	stand(t, server, "AssumeRole", awskmstest.Internal)
	policy := quick()
	policy.Total = 500 * time.Millisecond
	_, err = open(t, Options{Policy: policy}, reference)
	wantError(t, err, signer.ErrUnavailable, "", "")
}

// TestSignatureMessage: what a service writes about a wrong signature may quote the request with its session token.
func TestSignatureMessage(t *testing.T) {
	server, reference := start(t, awskmstest.Config{})
	t.Setenv("AWS_SECRET_ACCESS_KEY", "wrong")
	_, err := open(t, Options{Policy: quick()}, reference)
	if err == nil || strings.Contains(err.Error(), "calculated") {
		t.Errorf("the message is shown: %v", err)
	}
	if server.Calls("GetPublicKey") != 1 {
		t.Errorf("asked %d times", server.Calls("GetPublicKey"))
	}
}

// TestPlainHTTP: nothing goes over plain http to another machine, whoever names the endpoint.
func TestPlainHTTP(t *testing.T) {
	environment(t)
	t.Setenv("AWS_ENDPOINT_URL_KMS", "http://192.0.2.1:8080")
	began := time.Now()
	_, err := open(t, Options{}, "awskms:///alias/Vendor?region=eu-west-1")
	wantError(t, err, signer.ErrReference, "plain http", "https")
	if took := time.Since(began); took > time.Second {
		t.Errorf("took %v", took)
	}
	t.Setenv("AWS_ENDPOINT_URL_KMS", "")
	t.Setenv("AWS_ENDPOINT_URL_STS", "http://192.0.2.1:8080")
	_, err = open(t, Options{}, "awskms:///alias/Vendor?region=eu-west-1&role-arn=arn:aws:iam::111122223333:role/x")
	wantError(t, err, signer.ErrReference, "plain http", "https")
}

// TestOtherAnswers: whatever answers in the place of KMS, the call ends in time, with one line that says what it was,
// and no more is read than the bounds let through.
func TestOtherAnswers(t *testing.T) {
	environment(t)
	for _, tt := range []struct {
		name   string
		answer http.HandlerFunc
		family error
		text   string
	}{
		{"a page", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html></html>") }, signer.ErrUnavailable, "damaged"},
		{"nothing", func(http.ResponseWriter, *http.Request) {}, signer.ErrUnavailable, "left out"},
		{"not found", http.NotFound, signer.ErrUnsupported, "status 404"},
		{"elsewhere", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/other", http.StatusTemporaryRedirect)
		}, signer.ErrUnsupported, "status 307"},
		{"a proxy's refusal", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "who are you?", http.StatusForbidden) }, signer.ErrAuth, "status 403"},
		{"a proxy's failure", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "", http.StatusBadGateway) }, signer.ErrUnavailable, "status 502"},
		{"drop by drop", func(w http.ResponseWriter, r *http.Request) { endless(w, r, " ", 20*time.Millisecond) }, signer.ErrUnavailable, "no answer in time"},
		{"without end", func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, `{"KeyId":"`)
			endless(w, r, strings.Repeat("a", 64<<10), 0)
		}, signer.ErrUnavailable, "damaged"},
		{"long headers", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X", strings.Repeat("a", 2*maxHeaders)) }, signer.ErrUnavailable, "headers exceeded"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var sent atomic.Int64
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				// At the beginning of an answer the SDK takes its question back, and net/http hangs up when it has not
				// come to the end of sending it by then. No service is as fast as that.
				_, _ = io.Copy(io.Discard, r.Body)
				time.Sleep(10 * time.Millisecond)
				tt.answer(counted{w, &sent}, r)
			}))
			defer server.Close()
			policy := quick()
			policy.Total, policy.Wait = 300*time.Millisecond, time.Second
			began := time.Now()
			_, err := open(t, Options{Policy: policy}, "awskms:///alias/x?region=eu-west-1&endpoint="+server.URL)
			wantError(t, err, tt.family, tt.text, "")
			if took := time.Since(began); took > policy.Total+500*time.Millisecond {
				t.Errorf("took %v", took)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("more than one line: %q", err)
			}
			if n := sent.Load(); n > 64*maxAnswer { // what the sockets hold is taken too
				t.Errorf("%d bytes were taken", n)
			}
		})
	}
}

// endless writes text again and again until the client leaves.
func endless(w http.ResponseWriter, r *http.Request, text string, pause time.Duration) {
	for r.Context().Err() == nil {
		if _, err := io.WriteString(w, text); err != nil {
			return
		}
		_ = http.NewResponseController(w).Flush()
		time.Sleep(pause)
	}
}

// counted counts what is written.
type counted struct {
	http.ResponseWriter
	sent *atomic.Int64
}

func (c counted) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.sent.Add(int64(n))
	return n, err
}

func (c counted) Unwrap() http.ResponseWriter { return c.ResponseWriter }
