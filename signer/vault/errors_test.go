package vault

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"hsmsign/internal/signerkit"
	"hsmsign/internal/testkit"
	"hsmsign/signer"
	"hsmsign/signer/kms"
	"hsmsign/signer/vault/vaulttest"
)

// TestFaults: the family and the hint of each answer of Vault to a signature, and how many requests it costs.
func TestFaults(t *testing.T) {
	server, reference := start(t, vaulttest.Config{})
	key := signerkit.MustOpen(t, Backend(quick()), reference, nil)
	for _, tt := range []struct {
		fault     vaulttest.Fault
		family    error // nil: the retry succeeds
		text, fix string
	}{
		{fault: vaulttest.Throttle},
		{fault: vaulttest.Internal},
		{fault: vaulttest.Sealed},
		{fault: vaulttest.Standby},
		{fault: vaulttest.Behind},
		{fault: vaulttest.Secondary},
		{fault: vaulttest.BadGateway},
		{fault: vaulttest.Reset},
		{fault: vaulttest.Lost},
		{fault: vaulttest.Truncate},
		{fault: vaulttest.Empty},
		{fault: vaulttest.Huge},
		{fault: vaulttest.NoSignature},
		{vaulttest.ShortSignature, signer.ErrBadSignature, "returned 255 bytes", ""},
		{vaulttest.FlipBit, signer.ErrBadSignature, "does not verify", ""},
		{vaulttest.OtherVersion, signer.ErrBadKey, `version "v7" of the key signed, the request was for "v1"`, ""},
		{vaulttest.Denied, signer.ErrAuth, "update transit/sign/vendor/sha2-256: status 403", `policy that allows "update transit/sign/vendor/sha2-256"`},
		{vaulttest.Expired, signer.ErrAuth, "the token is expired", "provide a new token"},
		{vaulttest.Proxy, signer.ErrAuth, "not from Vault", ""},
		{vaulttest.Disabled, signer.ErrBadKey, "minimum encryption key version", "version that may sign"},
		{vaulttest.NoPrivate, signer.ErrBadKey, "private part", "public part"},
		{vaulttest.NoSigning, signer.ErrBadKey, "does not support signing", "create an RSA key"},
		{vaulttest.NoKey, signer.ErrKeyNotFound, "signing key not found", `the mount "transit"`},
		{vaulttest.NotFound, signer.ErrKeyNotFound, "nothing is there", `the mount "transit"`},
		{vaulttest.NoVersion, signer.ErrKeyNotFound, "latest key version", "correct version="},
		{vaulttest.OldNoVersion, signer.ErrKeyNotFound, "latest key version", "correct version="},
	} {
		t.Run(string(tt.fault), func(t *testing.T) {
			testkit.OK(t, server.Script("Sign", tt.fault))
			before, want := server.Calls("Sign"), 1
			if tt.family == nil {
				want = 2
				signerkit.MustSign(t, key)
			} else if err := signerkit.Sign(t, key); tt.fault == vaulttest.FlipBit {
				if err == nil || !strings.Contains(err.Error(), tt.text) {
					t.Errorf("%v", err)
				}
			} else {
				signerkit.WantError(t, err, tt.family, tt.text, tt.fix)
			}
			if n := server.Calls("Sign") - before; n != want {
				t.Errorf("%d requests, want %d", n, want)
			}
		})
	}
	if n := server.Calls("LookupToken"); n != 2 { // after Denied and Proxy; Expired says that the token is invalid
		t.Errorf("%d questions about the token, want 2", n)
	}
}

// TestStanding: a failure that lasts is reported with its cause.
func TestStanding(t *testing.T) {
	server, reference := start(t, vaulttest.Config{})
	opts := quick()
	opts.Policy.Timeout, opts.Policy.RetryDelay = 3*time.Second, 10*time.Second // one attempt
	key := signerkit.MustOpen(t, Backend(opts), reference, nil)
	for fault, want := range map[vaulttest.Fault][2]string{
		vaulttest.Sealed:    {"Vault is sealed", "vault operator unseal"},
		vaulttest.Standby:   {"status 307", `"active.invalid:8200"`},
		vaulttest.Secondary: {"status 472", "a node that serves this key"},
		vaulttest.Huge:      {"longer than 1048576 bytes", ""},
		vaulttest.Empty:     {"the answer is damaged: update transit/sign/vendor/sha2-256", ""},
	} {
		testkit.OK(t, server.Stand("Sign", fault))
		signerkit.WantError(t, signerkit.Sign(t, key), signer.ErrUnavailable, want[0], want[1])
	}
	testkit.OK(t, server.Stand("Sign", vaulttest.Throttle))
	signerkit.WantError(t, signerkit.Sign(t, key), kms.ErrThrottled, "rate limit quota exceeded", "quota of the server")
}

// vendor returns the entry of the golden key in an answer.
func vendor(t *testing.T) string {
	t.Helper()
	public := testkit.OpenSSL(t, t.TempDir(), testkit.File(t, "golden/vendor.key"), "pkey", "-pubout")
	return string(testkit.Value(json.Marshal(map[string]string{"public_key": string(public)}))(t))
}

// TestOtherAnswers: whatever answers instead of Vault, the call ends in time with an error of one line, and it reads no more
// than the limits allow.
func TestOtherAnswers(t *testing.T) {
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "who are you?", code) }
	}
	text := func(body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) }
	}
	key := func(data string) http.HandlerFunc { return text(`{"request_id": "1", "data": ` + data + `}`) }
	opts := quick()
	opts.Policy.Timeout, opts.Policy.RetryDelay = 3*time.Second, 10*time.Second // one attempt
	at := func(s *httptest.Server) string {
		return "vault://" + strings.TrimPrefix(s.URL, "http://") + "/transit/keys/x?version=1&tls=off"
	}
	signerkit.OtherAnswers(t, Backend(opts), 64*maxAnswer, at, []signerkit.OtherAnswer{ // the sockets buffer some of it
		{Name: "page", Answer: text("<html></html>"), Family: signer.ErrUnavailable, Text: "damaged"},
		{Name: "nothing", Answer: func(http.ResponseWriter, *http.Request) {}, Family: signer.ErrUnavailable, Text: "damaged"},
		{Name: "no content", Answer: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }, Family: signer.ErrUnavailable, Text: "damaged"},
		{Name: "another type", Answer: key(`"text"`), Family: signer.ErrUnavailable, Text: "damaged"},
		{Name: "no key", Answer: key(`{}`), Family: signer.ErrBadKey, Text: `its type is ""`},
		{Name: "key is a number", Answer: key(`{"type": "rsa-2048", "keys": {"1": 1}}`), Family: signer.ErrUnavailable, Text: "version 1"},
		{Name: "no PEM", Answer: key(`{"type": "rsa-2048", "keys": {"1": {"public_key": "x"}}}`), Family: signer.ErrBadKey, Text: "no public key in PEM"},
		{Name: "damaged PEM", Answer: key(`{"type": "rsa-2048", "keys": {"1": {"public_key": "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"}}}`), Family: signer.ErrBadKey, Text: "damaged public key"},
		{Name: "a key that is not RSA", Answer: key(`{"type": "rsa-2048", "keys": {"1": {"public_key": "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n"}}}`), Family: signer.ErrBadKey, Text: "ed25519"},
		{Name: "a key of another size", Answer: key(`{"type": "rsa-3072", "keys": {"1": ` + vendor(t) + `}}`), Family: signer.ErrBadKey, Text: `its type is "rsa-3072", and its public key is another one`},
		{Name: "not found", Answer: status(http.StatusNotFound), Family: signer.ErrUnsupported, Text: "status 404 in an answer that is not from Vault"},
		{Name: "redirect to https", Answer: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://other.invalid/", http.StatusMovedPermanently)
		}, Family: signer.ErrUnsupported, Text: "status 301"},
		{Name: "failure of a proxy", Answer: status(http.StatusBadGateway), Family: signer.ErrUnavailable, Text: "status 502"},
		{Name: "echo", Answer: func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = io.WriteString(w, `{"errors": ["you sent `+r.Header.Get("X-Vault-Token")+`"]}`)
		}, Family: signer.ErrUnsupported, Text: "you sent REDACTED"},
		{Name: "slow", Answer: func(w http.ResponseWriter, r *http.Request) { signerkit.Endless(w, r, " ", 20*time.Millisecond) }, Family: signer.ErrUnavailable, Text: "no answer in time"},
		{Name: "endless", Answer: func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, `{"data":"`)
			signerkit.Endless(w, r, strings.Repeat("a", 64<<10), 0)
		}, Family: signer.ErrUnavailable, Text: "longer than"},
		{Name: "long headers", Answer: func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X", strings.Repeat("a", 128<<10)) }, Family: signer.ErrUnavailable, Text: "headers exceeded"},
	}...)
	server := httptest.NewServer(nil)
	server.Close()
	_, err := signerkit.Open(t, Backend(opts), at(server), nil)
	signerkit.WantError(t, err, signer.ErrUnavailable, "connection refused", "check the host")
}
