package awskms

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"hsmsign/internal/signerkit"
	"hsmsign/internal/testkit"
	"hsmsign/signer"
	"hsmsign/signer/awskms/awskmstest"
)

// TestFaults: the family and the hint of each answer of KMS to a signature, and whether it is retried.
func TestFaults(t *testing.T) {
	server, reference := start(t, awskmstest.Config{})
	key := mustOpen(t, quick(), reference, nil)
	for _, tt := range []struct {
		fault     awskmstest.Fault
		family    error // nil: the retry succeeds
		text, fix string
	}{
		{fault: awskmstest.Throttle},
		{fault: awskmstest.Internal},
		{fault: awskmstest.Unavailable},
		{fault: awskmstest.BadGateway},
		{fault: awskmstest.Reset},
		{fault: awskmstest.Truncate},
		{fault: awskmstest.Empty},
		{fault: "DependencyTimeoutException"},
		{awskmstest.ShortSignature, signer.ErrBadSignature, "returned 255 bytes", ""},
		{awskmstest.OtherKey, signer.ErrBadKey, "KMS answered for", ""},
		{awskmstest.Denied, signer.ErrAuth, "kms:Sign", "grant kms:Sign"},
		{awskmstest.Expired, signer.ErrAuth, "expired", "new credentials"},
		{"UnrecognizedClientException", signer.ErrAuth, "invalid", "credentials"},
		{"MissingAuthenticationTokenException", signer.ErrAuth, "Missing", "credentials"},
		{"InvalidSignatureException", signer.ErrAuth, "InvalidSignature", "clock"},
		{awskmstest.Disabled, signer.ErrBadKey, "disabled", "kms:EnableKey"},
		{"KMSInvalidStateException", signer.ErrBadKey, "pending deletion", "kms:CancelKeyDeletion"},
		{"InvalidKeyUsageException", signer.ErrBadKey, "usage", "SIGN_VERIFY"},
		{"NotFoundException", signer.ErrKeyNotFound, "not found", "eu-west-1"},
		{"LimitExceededException", signer.ErrUnsupported, "quota", "Service Quotas"},
		{"ValidationException", signer.ErrReference, "validation", ""},
	} {
		t.Run(string(tt.fault), func(t *testing.T) {
			testkit.OK(t, server.Script("Sign", tt.fault))
			before, want := server.Calls("Sign"), 1
			if tt.family == nil {
				want = 2
				signerkit.MustSign(t, key)
			} else {
				signerkit.WantError(t, signerkit.Sign(t, key), tt.family, tt.text, tt.fix)
			}
			if n := server.Calls("Sign") - before; n != want {
				t.Errorf("%d requests, want %d", n, want)
			}
		})
	}
}

// TestExpiry: session credentials that expire after Open fail the next signature at once, without a secret in the error.
func TestExpiry(t *testing.T) {
	server, reference := start(t, awskmstest.Config{})
	session := awskmstest.Credentials{AccessKeyID: "ASIAEXAMPLE0000000000", SecretAccessKey: "session-secret", SessionToken: "session-token-value", Expires: time.Now().Add(time.Hour)}
	server.AddCredentials(session)
	t.Setenv("AWS_ACCESS_KEY_ID", session.AccessKeyID)
	t.Setenv("AWS_SECRET_ACCESS_KEY", session.SecretAccessKey)
	t.Setenv("AWS_SESSION_TOKEN", session.SessionToken)
	key := mustOpen(t, quick(), reference, &testkit.GoldenKey(t).PublicKey)
	signerkit.MustSign(t, key)
	server.Expire(session.AccessKeyID)
	err := signerkit.Sign(t, key)
	signerkit.WantError(t, err, signer.ErrAuth, "ExpiredTokenException", "new credentials")
	if text := fmt.Sprintf("%+v", err); strings.Contains(text, session.SecretAccessKey) || strings.Contains(text, session.SessionToken) {
		t.Errorf("the error contains a secret: %s", text)
	}
	if n := server.Calls("*"); n != 2 {
		t.Errorf("%d requests; expired credentials must not be tried twice", n)
	}
}

// TestPlainHTTP: no request is sent over plain HTTP to another machine, whatever sets the endpoint.
func TestPlainHTTP(t *testing.T) {
	environment(t)
	t.Setenv("AWS_ENDPOINT_URL_KMS", "http://192.0.2.1:8080")
	_, err := open(t, quick(), "awskms:///alias/Vendor?region=eu-west-1", nil)
	signerkit.WantError(t, err, signer.ErrReference, "plain http", "https")
	t.Setenv("AWS_ENDPOINT_URL_KMS", "")
	t.Setenv("AWS_ENDPOINT_URL_STS", "http://192.0.2.1:8080")
	_, err = open(t, quick(), "awskms:///alias/Vendor?region=eu-west-1&role-arn=arn:aws:iam::111122223333:role/x", nil)
	signerkit.WantError(t, err, signer.ErrReference, "plain http", "https")
}

// TestOtherAnswers: whatever answers instead of KMS, the call ends in time with an error of one line, and it reads no
// more than the limits allow.
func TestOtherAnswers(t *testing.T) {
	environment(t)
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "who are you?", code) }
	}
	for _, tt := range []struct {
		name   string
		answer http.HandlerFunc
		family error
		text   string
	}{
		{"page", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html></html>") }, signer.ErrUnavailable, "damaged"},
		{"nothing", func(http.ResponseWriter, *http.Request) {}, signer.ErrUnavailable, "returned no key type"},
		{"not found", status(http.StatusNotFound), signer.ErrUnsupported, "status 404"},
		{"redirect", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/other", http.StatusTemporaryRedirect)
		}, signer.ErrUnsupported, "status 307"},
		{"refusal of a proxy", status(http.StatusForbidden), signer.ErrAuth, "status 403"},
		{"failure of a proxy", status(http.StatusBadGateway), signer.ErrUnavailable, "status 502"},
		{"slow", func(w http.ResponseWriter, r *http.Request) { endless(w, r, " ", 20*time.Millisecond) }, signer.ErrUnavailable, "no answer in time"},
		{"endless", func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, `{"KeyId":"`)
			endless(w, r, strings.Repeat("a", 64<<10), 0)
		}, signer.ErrUnavailable, "damaged"},
		{"long headers", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X", strings.Repeat("a", 2*maxHeaders)) }, signer.ErrUnavailable, "headers exceeded"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			handler, sent := signerkit.Counted(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				// When an answer begins the SDK closes the body of its request, and net/http hangs up if it has not sent
				// all of it by then. No service answers as fast as this one.
				_, _ = io.Copy(io.Discard, r.Body)
				time.Sleep(10 * time.Millisecond)
				tt.answer(w, r)
			}))
			server := httptest.NewServer(handler)
			defer server.Close()
			opts := quick()
			opts.Policy.Timeout, opts.Policy.RetryDelay = 500*time.Millisecond, 2*time.Second // one attempt
			began := time.Now()
			_, err := open(t, opts, "awskms:///alias/x?region=eu-west-1&endpoint="+server.URL, nil)
			signerkit.WantError(t, err, tt.family, tt.text, "")
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("took %v", took)
			}
			if n := sent.Load(); n > 64*maxAnswer { // including what the sockets buffer
				t.Errorf("%d bytes were read", n)
			}
		})
	}
	t.Run("nothing listens", func(t *testing.T) {
		opts := quick()
		opts.Policy.Timeout = 200 * time.Millisecond
		_, err := open(t, opts, "awskms:///alias/x?region=eu-west-1&endpoint=http://127.0.0.1:1", nil)
		signerkit.WantError(t, err, signer.ErrUnavailable, "connection refused", "region")
	})
}

// endless writes text repeatedly until the client leaves.
func endless(w http.ResponseWriter, r *http.Request, text string, pause time.Duration) {
	for r.Context().Err() == nil {
		if _, err := io.WriteString(w, text); err != nil {
			return
		}
		_ = http.NewResponseController(w).Flush()
		time.Sleep(pause)
	}
}
