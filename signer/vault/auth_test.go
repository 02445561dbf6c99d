package vault

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/internal/signerkit"
	"hsmsign/internal/testkit"
	"hsmsign/secret"
	"hsmsign/signer"
	"hsmsign/signer/vault/vaulttest"
)

// write writes a file and returns its name.
func write(t *testing.T, name, text string, mode os.FileMode) string {
	t.Helper()
	if !filepath.IsAbs(name) {
		name = filepath.Join(t.TempDir(), name)
	}
	testkit.OK(t, os.WriteFile(name, []byte(text), 0o600))
	testkit.OK(t, os.Chmod(name, mode))
	return name
}

// roles adds a role of each method to a double, whose tokens have a lease, and returns their queries.
func roles(t *testing.T, server *vaulttest.Server, lease vaulttest.Lease) (appRole, kubernetes string) {
	t.Helper()
	server.AddAppRole(vaulttest.Role{Lease: lease, Name: "mdm", Secret: "the-secret-id"})
	server.AddKubernetesRole(vaulttest.Role{Lease: lease, Name: "mdm", Mount: "clusters/eu", Secret: "the.service.account"})
	return "&role-id=mdm&secret-id-source=file:" + write(t, "secret-id", "the-secret-id\n", 0o600),
		"&kubernetes-role=mdm&auth-mount=clusters/eu&jwt-file=" + write(t, "token", "the.service.account", 0o644)
}

func TestCredentials(t *testing.T) {
	server, reference := start(t, vaulttest.Config{})
	appRole, kubernetes := roles(t, server, vaulttest.Lease{TTL: time.Hour})
	none := Options{Policy: signerkit.Policy()}
	for _, tt := range []struct {
		name, query string
		opts        Options
		text, fix   string // of the error; "": it signs
		family      error
		calls       int
	}{
		{name: "environment", opts: quick(), calls: 1},
		{name: "file", query: "&token-source=file:" + write(t, "token", vaulttest.Token+"\n", 0o600), opts: none, calls: 1},
		{name: "AppRole", query: appRole, opts: none, calls: 2},
		{name: "Kubernetes", query: kubernetes, opts: none, calls: 2},
		{name: "none", opts: none, text: "set VAULT_TOKEN", family: signer.ErrAuth},
		{name: "others can read the file", query: "&token-source=" + write(t, "open", vaulttest.Token, 0o644), opts: none, text: "mode 0644", family: signer.ErrAuth},
		{name: "no such file", query: "&token-source=/no/such", opts: none, text: `token file not found: "/no/such"`, fix: "mode 0600", family: secret.ErrNoFile},
		{name: "two lines", query: "&token-source=" + write(t, "two", "a\nb\n", 0o600), opts: none, text: "contains a space, a line break", fix: "nothing else", family: signer.ErrAuth},
		{name: "unknown token", query: "&token-source=" + write(t, "wrong", "wrong", 0o600), opts: none, text: "the token is expired", fix: "new token", family: signer.ErrAuth, calls: 1},
		{name: "unknown role", query: strings.Replace(appRole, "mdm", "other", 1), opts: none, text: "update auth/approle/login: status 400: invalid role", fix: "check the role", family: signer.ErrAuth, calls: 1},
		{name: "wrong secret id", query: "&role-id=mdm&secret-id-source=" + write(t, "wrong", "wrong", 0o600), opts: none, text: "invalid role or secret ID", fix: "check the role", family: signer.ErrAuth, calls: 1},
		{name: "unknown login method", query: appRole + "&auth-mount=other", opts: none, text: "auth/other/login: status 400", fix: "auth-mount", family: signer.ErrAuth, calls: 1},
		{name: "no service account", query: "&kubernetes-role=mdm&jwt-file=/no/such", opts: none, text: `"/no/such"`, family: secret.ErrNoFile},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := server.Calls("*")
			key, err := signerkit.Open(t, Backend(tt.opts), reference+tt.query, nil)
			if tt.family != nil {
				signerkit.WantError(t, err, tt.family, tt.text, tt.fix)
			} else {
				testkit.OK(t, err)
			}
			if n := server.Calls("*") - before; n != tt.calls {
				t.Errorf("%d requests, want %d", n, tt.calls)
			}
			if key != nil {
				signerkit.MustSign(t, key)
			}
			for _, value := range []string{"the-secret-id", "the.service.account", vaulttest.Token} {
				if strings.Contains(fmt.Sprint(err)+fault.Hint(err), value) {
					t.Errorf("a secret is in %v", err)
				}
			}
		})
	}
}

// TestPrompt: a person is asked once, without the time limit of a request, and never again.
func TestPrompt(t *testing.T) {
	server, reference := start(t, vaulttest.Config{})
	server.AddToken("typed", "", vaulttest.Lease{})
	asked := 0
	opts := Options{Policy: signerkit.Policy(), Secrets: secret.Reader{Prompt: func(ctx context.Context, _ string) ([]byte, error) {
		if _, limited := ctx.Deadline(); limited {
			t.Error("the person has a time limit")
		}
		asked++
		return []byte("typed"), nil
	}}}
	key := signerkit.MustOpen(t, Backend(opts), reference, &testkit.GoldenKey(t).PublicKey)
	signerkit.MustSign(t, key)
	server.Revoke("typed")
	signerkit.WantError(t, signerkit.Sign(t, key), signer.ErrAuth, "the token is expired", "new token")
	if asked != 1 {
		t.Errorf("asked %d times", asked)
	}
}

// TestReplacedToken: a token that the server refuses is replaced once, by one login for all signatures in flight, and a
// refusal by policy is not.
func TestReplacedToken(t *testing.T) {
	server, reference := start(t, vaulttest.Config{Delay: time.Millisecond})
	appRole, _ := roles(t, server, vaulttest.Lease{TTL: time.Hour})
	key := signerkit.MustOpen(t, Backend(quick()), reference+appRole, &testkit.GoldenKey(t).PublicKey)
	together := func() {
		var group sync.WaitGroup
		for range 32 {
			group.Go(func() {
				if err := signerkit.Sign(t, key); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
	}
	for logins := 1; logins <= 3; logins++ {
		together()
		if n := server.Calls("Login"); n != logins {
			t.Errorf("%d logins, want %d", n, logins)
		}
		server.Revoke("")
	}
	signerkit.MustSign(t, key)
	lookups, logins := server.Calls("LookupToken"), server.Calls("Login")
	testkit.OK(t, server.Script("Sign", vaulttest.Denied))
	signerkit.WantError(t, signerkit.Sign(t, key), signer.ErrAuth, "permission denied", "a policy that allows")
	if n, m := server.Calls("LookupToken")-lookups, server.Calls("Login")-logins; n != 1 || m != 0 {
		t.Errorf("denied by policy: %d questions about the token, %d logins", n, m)
	}
	// A server that does not tell a bad token from a policy: the question about the token does.
	server.Revoke("")
	testkit.OK(t, server.Script("Sign", vaulttest.Denied))
	signerkit.MustSign(t, key)
	// A login that is refused, and one that fails.
	server.Revoke("")
	testkit.OK(t, server.Script("Login", vaulttest.Denied))
	signerkit.WantError(t, signerkit.Sign(t, key), signer.ErrAuth, "auth/approle/login", "check the role")
	testkit.OK(t, server.Script("Login", vaulttest.Internal, vaulttest.OK))
	signerkit.MustSign(t, key)
	// The new token is refused too: the error is final.
	before := server.Calls("Sign")
	testkit.OK(t, server.Script("Sign", vaulttest.Expired, vaulttest.Expired))
	signerkit.WantError(t, signerkit.Sign(t, key), signer.ErrAuth, "invalid token", "login method")
	if n := server.Calls("Sign") - before; n != 2 {
		t.Errorf("%d requests, want 2", n)
	}
}

// TestTokenFile: a file that another program renews is read again; the same content is not sent again.
func TestTokenFile(t *testing.T) {
	server, reference := start(t, vaulttest.Config{})
	for _, token := range []string{"first", "second"} {
		server.AddToken(token, "", vaulttest.Lease{})
	}
	file := write(t, "token", "first", 0o600)
	key := signerkit.MustOpen(t, Backend(quick()), reference+"&token-source="+file, nil)
	server.Revoke("first")
	before := server.Calls("Sign")
	signerkit.WantError(t, signerkit.Sign(t, key), signer.ErrAuth, "the token is expired", "new token")
	if n := server.Calls("Sign") - before; n != 1 {
		t.Errorf("%d requests with a refused token", n)
	}
	write(t, file, "second", 0o600)
	signerkit.MustSign(t, key)
	server.Revoke("second")
	testkit.OK(t, os.Remove(file))
	signerkit.WantError(t, signerkit.Sign(t, key), secret.ErrNoFile, "token file not found", "")
}

// clock is a sleep for Options: it announces each wait and returns when the test allows it.
type clock struct {
	waits chan time.Duration
	next  chan struct{}
}

func newClock() clock { return clock{make(chan time.Duration), make(chan struct{})} }

func (c clock) sleep(ctx context.Context, d time.Duration) bool {
	select {
	case c.waits <- d:
	case <-ctx.Done():
		return false
	}
	select {
	case <-c.next:
		return true
	case <-ctx.Done():
		return false
	}
}

// expect waits for the next wait, checks it to a minute, and ends it.
func (c clock) expect(t *testing.T, want time.Duration) {
	t.Helper()
	c.waiting(t, want)
	c.next <- struct{}{}
}

// waiting is expect without an end of the wait.
func (c clock) waiting(t *testing.T, want time.Duration) {
	t.Helper()
	select {
	case got := <-c.waits:
		if got < want-time.Minute || got > want {
			t.Errorf("waits %v, want %v", got, want)
		}
	case <-time.After(30 * time.Second):
		t.Fatalf("no wait of %v", want)
	}
}

// TestRenewal: a token is renewed after two thirds of its lease. When a renewal is refused or grants much less, a login
// method logs in again.
func TestRenewal(t *testing.T) {
	const hour = time.Hour
	for _, tt := range []struct {
		name  string
		lease vaulttest.Lease
		fault vaulttest.Fault // of the second renewal
		next  time.Duration   // the wait after it
		calls [2]int          // logins, renewals
	}{
		{"for ever", vaulttest.Lease{TTL: hour, Renewable: true}, vaulttest.OK, 2 * hour / 3, [2]int{1, 2}},
		{"refused", vaulttest.Lease{TTL: hour, Renewable: true}, vaulttest.Denied, 2 * hour / 3, [2]int{2, 2}},
		{"a failure is repeated", vaulttest.Lease{TTL: hour, Renewable: true}, vaulttest.Internal, 2 * hour / 3, [2]int{1, 3}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server, reference := start(t, vaulttest.Config{})
			appRole, _ := roles(t, server, tt.lease)
			c, opts := newClock(), quick()
			opts.sleep = c.sleep
			key := signerkit.MustOpen(t, Backend(opts), reference+appRole, nil)
			testkit.OK(t, server.Script("RenewToken", vaulttest.OK, tt.fault))
			c.expect(t, 2*hour/3)
			c.expect(t, 2*hour/3)
			c.waiting(t, tt.next)
			if got := [2]int{server.Calls("Login"), server.Calls("RenewToken")}; got != tt.calls {
				t.Errorf("%d logins and renewals, want %d", got, tt.calls)
			}
			signerkit.MustSign(t, key)
		})
	}
	for name, lease := range map[string]vaulttest.Lease{"not renewable": {TTL: hour}, "near its maximum": {TTL: hour, MaxTTL: hour / 3, Renewable: true}} {
		t.Run(name, func(t *testing.T) {
			server, reference := start(t, vaulttest.Config{})
			_, kubernetes := roles(t, server, lease)
			c, opts := newClock(), quick()
			opts.sleep = c.sleep
			key := signerkit.MustOpen(t, Backend(opts), reference+kubernetes, nil)
			c.expect(t, 2*hour/3)
			c.expect(t, 2*hour/3)
			c.waiting(t, 2*hour/3)
			if n := server.Calls("Login"); n != 3 {
				t.Errorf("%d logins, want 3", n)
			}
			signerkit.MustSign(t, key)
		})
	}
}

// TestUnavailableRenewal: while the server is down, the renewal is repeated, each time after a third of what remains.
func TestUnavailableRenewal(t *testing.T) {
	server, reference := start(t, vaulttest.Config{})
	appRole, _ := roles(t, server, vaulttest.Lease{TTL: time.Hour, Renewable: true})
	c, opts := newClock(), quick()
	opts.sleep, opts.Policy.Timeout, opts.Policy.RetryDelay = c.sleep, 3*time.Second, 10*time.Second // one attempt
	signerkit.MustOpen(t, Backend(opts), reference+appRole, nil)
	testkit.OK(t, server.Stand("RenewToken", vaulttest.Sealed))
	c.expect(t, 40*time.Minute)
	c.expect(t, 40*time.Minute) // by this clock no time has passed
	c.waiting(t, 40*time.Minute)
	if n := server.Calls("Login"); n != 1 {
		t.Errorf("%d logins", n)
	}
	left := (&token{lease: time.Hour, until: time.Now().Add(15 * time.Minute)}).renewIn()
	if left < 4*time.Minute || left > 5*time.Minute {
		t.Errorf("15 minutes before the end: waits %v, want 5 minutes", left)
	}
	if last := (&token{lease: time.Hour, until: time.Now()}).renewIn(); last != minRenewal {
		t.Errorf("at the end: waits %v", last)
	}
}

// TestTokenFromSource: what is known of a token is asked for after a while only; it is renewed, or its end is reported.
func TestTokenFromSource(t *testing.T) {
	for _, tt := range []struct {
		name   string
		lease  vaulttest.Lease
		renews bool
		warns  string
	}{
		{"periodic", vaulttest.Lease{TTL: time.Hour, Renewable: true}, true, ""},
		{"not renewable", vaulttest.Lease{TTL: time.Hour}, false, "expires in 1h0m0s and cannot be renewed"},
		{"near its maximum", vaulttest.Lease{TTL: time.Hour, MaxTTL: 20 * time.Minute, Renewable: true}, true, "expires in 20m0s and cannot be renewed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server, reference := start(t, vaulttest.Config{})
			server.AddToken("source", "", tt.lease)
			warned := make(chan string, 1)
			c, opts := newClock(), quick()
			opts.sleep, opts.Warn = c.sleep, func(message string) { warned <- message }
			key := signerkit.MustOpen(t, Backend(opts), reference+"&token-source="+write(t, "token", "source", 0o600), nil)
			signerkit.MustSign(t, key)
			if n := server.Calls("LookupToken"); n != 0 {
				t.Errorf("%d questions before their time", n)
			}
			c.expect(t, lookupAfter)
			if tt.renews {
				c.expect(t, 40*time.Minute)
			}
			if tt.warns == "" {
				c.waiting(t, 40*time.Minute)
			} else {
				select {
				case got := <-warned:
					if !strings.Contains(got, tt.warns) {
						t.Errorf("warning %q", got)
					}
				case d := <-c.waits:
					t.Errorf("it waits %v and does not warn", d)
				}
			}
			if n := server.Calls("RenewToken"); (n == 1) != tt.renews || n > 1 {
				t.Errorf("%d renewals", n)
			}
			signerkit.MustSign(t, key)
		})
	}
}

// TestExpiredLogin: a token that expired while nobody asked for a signature is replaced before the next one.
func TestExpiredLogin(t *testing.T) {
	server, reference := start(t, vaulttest.Config{})
	appRole, _ := roles(t, server, vaulttest.Lease{TTL: time.Hour})
	s := testkit.Value(quick().connect(t.Context(), signerkit.Ref(t, reference+appRole)))(t)
	defer func() { _ = s.Close() }()
	s.public = &testkit.GoldenKey(t).PublicKey
	digest := make([]byte, 32)
	testkit.Value(s.Sign(t.Context(), digest))(t)
	now := s.identity.current.Load()
	s.identity.current.Store(&token{value: now.value, known: true, lease: time.Hour, until: time.Now().Add(-time.Second)})
	testkit.Value(s.Sign(t.Context(), digest))(t)
	if n, m := server.Calls("Login"), server.Calls("Sign"); n != 2 || m != 2 {
		t.Errorf("%d logins, %d signatures", n, m)
	}
}

// TestLoginAnswers: answers to a login that have no token, or one that cannot be a header.
func TestLoginAnswers(t *testing.T) {
	secretID := write(t, "secret-id", "the-secret-id", 0o600)
	for body, text := range map[string]string{
		`{"auth": null}`:                       "the login returned no token",
		`{"auth": {"client_token": ""}}`:       "the login returned no token",
		`{"auth": {"client_token": "a\r\nb"}}`: "the login returned no token",
		`{"auth": {"client_token": "` + strings.Repeat("a", maxToken+1) + `"}}`: "the login returned no token",
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) }))
		_, err := signerkit.Open(t, Backend(quick()), "vault://"+strings.TrimPrefix(server.URL, "http://")+"/transit/keys/x?version=1&tls=off&role-id=r&secret-id-source="+secretID, nil)
		signerkit.WantError(t, err, signer.ErrAuth, text, "second factor")
		server.Close()
	}
	if d := seconds(1 << 62); d != maxLease || seconds(-1) != 0 {
		t.Errorf("%v", d)
	}
}
