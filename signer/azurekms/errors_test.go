package azurekms

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"hsmsign/internal/signerkit"
	"hsmsign/internal/testkit"
	"hsmsign/signer"
	"hsmsign/signer/azurekms/azurekmstest"
	"hsmsign/signer/kms"
)

// TestFaults: the family and the hint of each answer of Key Vault to a signature, and how many requests it costs.
func TestFaults(t *testing.T) {
	server, reference := start(t, azurekmstest.Config{})
	key := signerkit.MustOpen(t, Backend(quick()), reference, nil)
	for _, tt := range []struct {
		fault     azurekmstest.Fault
		family    error // nil: the retry succeeds
		text, fix string
	}{
		{fault: azurekmstest.Throttle},
		{fault: azurekmstest.Internal},
		{fault: azurekmstest.Unavailable},
		{fault: azurekmstest.BadGateway},
		{fault: azurekmstest.Reset},
		{fault: azurekmstest.Lost},
		{fault: azurekmstest.Truncate},
		{fault: azurekmstest.Empty},
		{fault: azurekmstest.Huge},
		{fault: azurekmstest.NoKey},
		{fault: azurekmstest.Expired}, // the SDK answers the challenge
		{azurekmstest.ShortSignature, signer.ErrBadSignature, "returned 255 bytes", ""},
		{azurekmstest.OtherKey, signer.ErrBadKey, "the service answered for", ""},
		{azurekmstest.Denied, signer.ErrAuth, "Forbidden (ForbiddenByRbac): Caller is not authorized", "role of deploy/terraform/azure"},
		{azurekmstest.Firewall, signer.ErrAuth, "ForbiddenByFirewall", "network rules"},
		{azurekmstest.NoChallenge, signer.ErrAuth, "not from Azure Key Vault", "host is that of your vault"},
		{azurekmstest.Disabled, signer.ErrBadKey, "KeyDisabled", "enable the version"},
		{azurekmstest.NotFound, signer.ErrKeyNotFound, "KeyNotFound", "key list"},
		{azurekmstest.BadParameter, signer.ErrBadKey, "not permitted on this key", "RSA key for signing"},
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
	testkit.OK(t, server.Script("Sign", azurekmstest.FlipBit))
	if err := signerkit.Sign(t, key); err == nil || !strings.Contains(err.Error(), "does not verify") {
		t.Errorf("a wrong signature: %v", err)
	}
	testkit.OK(t, server.Stand("Sign", azurekmstest.Expired))
	signerkit.WantError(t, signerkit.Sign(t, key), signer.ErrAuth, "Unauthorized: AKV10000", "clock")
	testkit.OK(t, server.Stand("Sign", azurekmstest.Throttle))
	short := quick()
	short.Policy.Timeout, short.Policy.RetryDelay = 3*time.Second, 10*time.Second
	key = signerkit.MustOpen(t, Backend(short), reference, nil)
	signerkit.WantError(t, signerkit.Sign(t, key), kms.ErrThrottled, "Throttled", "Managed HSM")
}

// TestOtherAnswers: whatever answers instead of Key Vault, the call ends in time with an error of one line, and it reads no
// more than the limits allow.
func TestOtherAnswers(t *testing.T) {
	double, _ := start(t, azurekmstest.Config{}) // the tokens come from it
	vault := `{"key": {"kid": "https://HOST/keys/x/` + testVersion + `", "kty": "RSA", "key_ops": ["sign"], `
	for _, tt := range []signerkit.OtherAnswer{
		{Name: "page", Answer: text("<html></html>"), Family: signer.ErrUnavailable, Text: "damaged"},
		{Name: "nothing", Answer: func(http.ResponseWriter, *http.Request) {}, Family: signer.ErrUnavailable, Text: "damaged"},
		{Name: "no key", Answer: text(`{}`), Family: signer.ErrUnavailable, Text: "it has no key"},
		{Name: "no modulus", Answer: text(vault + `"e": "AQAB"}}`), Family: signer.ErrBadKey, Text: "its modulus has 0 bits"},
		{Name: "no exponent", Answer: text(vault + `"n": "AQAB"}}`), Family: signer.ErrBadKey, Text: "damaged public key"},
		{Name: "long exponent", Answer: text(vault + `"n": "AQAB", "e": "AQABAQABAQAB"}}`), Family: signer.ErrBadKey, Text: "damaged public key"},
		{Name: "long modulus", Answer: text(vault + `"n": "` + strings.Repeat("AQAB", 1000) + `", "e": "AQAB"}}`), Family: signer.ErrBadKey, Text: "its modulus has 23993 bits"},
		{Name: "not found", Answer: status(http.StatusNotFound), Family: signer.ErrUnsupported, Text: "status 404 in an answer that is not from Azure Key Vault"},
		{Name: "redirect", Answer: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://other.invalid/", http.StatusTemporaryRedirect)
		}, Family: signer.ErrUnsupported, Text: "status 307"},
		{Name: "refusal of a proxy", Answer: status(http.StatusForbidden), Family: signer.ErrAuth, Text: "status 403"},
		{Name: "failure of a proxy", Answer: status(http.StatusBadGateway), Family: signer.ErrUnavailable, Text: "status 502"},
		{Name: "slow", Answer: func(w http.ResponseWriter, r *http.Request) { signerkit.Endless(w, r, " ", 20*time.Millisecond) }, Family: signer.ErrUnavailable, Text: "no answer in time"},
		{Name: "endless", Answer: func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, `{"key":"`)
			signerkit.Endless(w, r, strings.Repeat("a", 64<<10), 0)
		}, Family: signer.ErrUnavailable, Text: "damaged"},
		{Name: "long headers", Answer: func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X", strings.Repeat("a", 128<<10)) }, Family: signer.ErrUnavailable, Text: "headers exceeded"},
	} {
		t.Run(tt.Name, func(t *testing.T) {
			server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Authorization") == "" {
					w.Header().Set("WWW-Authenticate", `Bearer authorization="https://`+double.Address()+"/"+azurekmstest.TenantID+`", resource="https://vault.azure.net"`)
					w.WriteHeader(http.StatusUnauthorized)
					return
				}
				tt.Answer(hosted{w, r.Host}, r)
			}))
			defer server.Close()
			// Both servers' issuers.
			ca := filepath.Join(t.TempDir(), "ca.pem")
			own := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
			testkit.OK(t, os.WriteFile(ca, append(own, double.CA()...), 0o600))
			opts := quick()
			opts.Policy.Timeout, opts.Policy.RetryDelay = 3*time.Second, 10*time.Second // one attempt
			_, err := signerkit.Open(t, Backend(opts), "azurekms://"+strings.TrimPrefix(server.URL, "https://")+"/keys/x/"+testVersion+"?ca="+ca, nil)
			signerkit.WantError(t, err, tt.Family, tt.Text, "")
		})
	}
	server := httptest.NewServer(nil)
	server.Close()
	opts := quick()
	opts.Policy.Timeout, opts.Policy.RetryDelay = 3*time.Second, 10*time.Second // one attempt
	_, err := signerkit.Open(t, Backend(opts), "azurekms://"+strings.TrimPrefix(server.URL, "http://")+"/keys/x/"+testVersion, nil)
	signerkit.WantError(t, err, signer.ErrUnavailable, "connection refused", "name of the vault")
}

// TestChallengeOfAnother: a server under the name of a vault whose challenge is for another domain gets no token.
func TestChallengeOfAnother(t *testing.T) {
	double, _ := start(t, azurekmstest.Config{})
	for _, resource := range []string{"https://vault.azure.net.evil.example", "https://vault.azure.cn", "https://managedhsm.azure.net"} {
		var authorized atomic.Int64
		server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != "" {
				authorized.Add(1)
			}
			w.Header().Set("WWW-Authenticate", `Bearer authorization="https://`+double.Address()+"/"+azurekmstest.TenantID+`", resource="`+resource+`"`)
			w.WriteHeader(http.StatusUnauthorized)
		}))
		s := testkit.Value(quick().connect(t.Context(), signerkit.Ref(t, "azurekms://acme.vault.azure.net/keys/x/"+testVersion)))(t)
		// The name of the vault leads to the server.
		s.transport.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, server.Listener.Addr().String())
		}
		s.transport.TLSClientConfig = &tls.Config{InsecureSkipVerify: true}
		_, err := s.getKey(t.Context(), "x", testVersion)
		if !errors.Is(err, signer.ErrAuth) || !strings.Contains(err.Error(), "the challenge is not that of Azure Key Vault") || authorized.Load() != 0 || double.Tokens() != 0 {
			t.Errorf("%s: %v; %d requests with a token, %d tokens", resource, err, authorized.Load(), double.Tokens())
		}
		_ = s.Close()
		server.Close()
	}
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "who are you?", code) }
}

func text(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) }
}

// hosted replaces HOST in an answer by the host of the request.
type hosted struct {
	http.ResponseWriter
	host string
}

func (h hosted) Write(p []byte) (int, error) {
	_, err := h.ResponseWriter.Write([]byte(strings.Replace(string(p), "HOST", h.host, 1)))
	return len(p), err
}

func (h hosted) Unwrap() http.ResponseWriter { return h.ResponseWriter }
