package awskms

import (
	"errors"
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
	key := signerkit.MustOpen(t, Backend(quick()), reference, nil)
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

// TestCheckID: an answer for a key of another region is final; a damaged one is retried.
func TestCheckID(t *testing.T) {
	c, id := &regionClient{region: "eu-west-1"}, "alias/x"
	c.id.Store(&id)
	for _, tt := range []struct {
		answered string
		want     error
	}{
		{"", signer.ErrUnavailable},
		{"damaged", signer.ErrUnavailable},
		{"arn:aws:kms:eu-west-1:111122223333:alias/x", signer.ErrUnavailable},
		{strings.Replace(testARN, "eu-west-1", "us-east-1", 1), signer.ErrReference},
		{testARN, nil},
		{testARN, nil},
		{strings.Replace(testARN, "1234abcd-", "5678abcd-", 1), signer.ErrBadKey},
	} {
		if err := c.checkID(&tt.answered); !errors.Is(err, tt.want) {
			t.Errorf("%q: %v, want %v", tt.answered, err, tt.want)
		}
	}
}

// TestPlainHTTP: no request is sent over plain HTTP to another machine, whatever sets the endpoint.
func TestPlainHTTP(t *testing.T) {
	environment(t)
	t.Setenv("AWS_ENDPOINT_URL_KMS", "http://192.0.2.1:8080")
	_, err := signerkit.Open(t, Backend(quick()), "awskms:///alias/Vendor?region=eu-west-1", nil)
	signerkit.WantError(t, err, signer.ErrReference, "plain http", "https")
	t.Setenv("AWS_ENDPOINT_URL_KMS", "")
	t.Setenv("AWS_ENDPOINT_URL_STS", "http://192.0.2.1:8080")
	_, err = signerkit.Open(t, Backend(quick()), "awskms:///alias/Vendor?region=eu-west-1&role-arn=arn:aws:iam::111122223333:role/x", nil)
	signerkit.WantError(t, err, signer.ErrReference, "plain http", "https")
}

// TestOtherAnswers: whatever answers instead of KMS, the call ends in time with an error of one line, and it reads no
// more than the limits allow.
func TestOtherAnswers(t *testing.T) {
	environment(t)
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "who are you?", code) }
	}
	opts := quick()
	opts.Policy.Timeout, opts.Policy.RetryDelay = 500*time.Millisecond, 2*time.Second // one attempt
	at := func(s *httptest.Server) string { return "awskms:///alias/x?region=eu-west-1&endpoint=" + s.URL }
	signerkit.OtherAnswers(t, Backend(opts), 64*maxAnswer, at, []signerkit.OtherAnswer{ // the sockets buffer some of it
		{Name: "page", Answer: func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html></html>") }, Family: signer.ErrUnavailable, Text: "damaged"},
		{Name: "nothing", Answer: func(http.ResponseWriter, *http.Request) {}, Family: signer.ErrUnavailable, Text: "returned no key type"},
		{Name: "not found", Answer: status(http.StatusNotFound), Family: signer.ErrUnsupported, Text: "status 404"},
		{Name: "redirect", Answer: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/other", http.StatusTemporaryRedirect)
		}, Family: signer.ErrUnsupported, Text: "status 307"},
		{Name: "refusal of a proxy", Answer: status(http.StatusForbidden), Family: signer.ErrAuth, Text: "status 403"},
		{Name: "failure of a proxy", Answer: status(http.StatusBadGateway), Family: signer.ErrUnavailable, Text: "status 502"},
		{Name: "slow", Answer: func(w http.ResponseWriter, r *http.Request) { signerkit.Endless(w, r, " ", 20*time.Millisecond) }, Family: signer.ErrUnavailable, Text: "no answer in time"},
		{Name: "endless", Answer: func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, `{"KeyId":"`)
			signerkit.Endless(w, r, strings.Repeat("a", 64<<10), 0)
		}, Family: signer.ErrUnavailable, Text: "damaged"},
		{Name: "long headers", Answer: func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X", strings.Repeat("a", 2*maxHeaders)) }, Family: signer.ErrUnavailable, Text: "headers exceeded"},
	}...)
	server := httptest.NewServer(nil)
	server.Close()
	_, err := signerkit.Open(t, Backend(opts), at(server), nil)
	signerkit.WantError(t, err, signer.ErrUnavailable, "connection refused", "region")
}
