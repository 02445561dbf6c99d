package oidc_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/zitadel/oidc/v3/example/server/exampleop"
	"github.com/zitadel/oidc/v3/example/server/storage"
	zitadel "github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"

	"hsmsign/internal/testkit"
	"hsmsign/server/authn/oidc"
)

// asProvider is the variable that makes the test binary a provider.
const asProvider = "HSMSIGN_TEST_OIDC_PROVIDER"

func TestMain(m *testing.M) {
	if os.Getenv(asProvider) != "" {
		provide()
		return
	}
	os.Exit(m.Run())
}

// provide is zitadel's provider at a port that it prints, until standard input ends. POST /rotate gives it another key.
func provide() {
	listener := testkit.Must(net.Listen("tcp", "127.0.0.1:0"))
	issuer := "http://" + listener.Addr().String()
	storage.RegisterClients(storage.WebClient("console", "secret", "http://127.0.0.1/callback"))
	store := &rotating{Storage: storage.NewStorage(storage.NewUserStore(issuer))}
	store.rotate()
	handler := exampleop.SetupServer(issuer, store, slog.New(slog.DiscardHandler), false)
	handler.Post("/rotate", func(http.ResponseWriter, *http.Request) { store.rotate() })
	fmt.Println(issuer)
	go func() { _ = http.Serve(listener, handler) }() // it ends with the process
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// rotating is the storage of the example with keys that change, and with access tokens that are JWTs for this service.
type rotating struct {
	*storage.Storage
	mu   sync.Mutex
	id   int
	keys []op.Key
	key  *rsa.PrivateKey
}

func (r *rotating) rotate() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.id++
	r.key = testkit.Must(rsa.GenerateKey(rand.Reader, 2048))
	r.keys = append(r.keys, public{fmt.Sprint("key-", r.id), &r.key.PublicKey})
}

func (r *rotating) SigningKey(context.Context) (op.SigningKey, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return signing{fmt.Sprint("key-", r.id), r.key}, nil
}

func (r *rotating) KeySet(context.Context) ([]op.Key, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.keys, nil
}

func (r *rotating) ClientCredentials(ctx context.Context, id, secret string) (op.Client, error) {
	client, err := r.Storage.ClientCredentials(ctx, id, secret)
	return jwtClient{client}, err
}

func (r *rotating) ClientCredentialsTokenRequest(_ context.Context, id string, scopes []string) (op.TokenRequest, error) {
	return &zitadel.JWTTokenRequest{Subject: id, Audience: []string{audience}, Scopes: scopes}, nil
}

type jwtClient struct{ op.Client }

func (jwtClient) AccessTokenType() op.AccessTokenType { return op.AccessTokenTypeJWT }

type signing struct {
	id  string
	key *rsa.PrivateKey
}

func (s signing) ID() string                                  { return s.id }
func (s signing) Key() any                                    { return s.key }
func (s signing) SignatureAlgorithm() jose.SignatureAlgorithm { return jose.RS256 }

type public struct {
	id  string
	key *rsa.PublicKey
}

func (p public) ID() string                         { return p.id }
func (p public) Key() any                           { return p.key }
func (p public) Algorithm() jose.SignatureAlgorithm { return jose.RS256 }
func (p public) Use() string                        { return "sig" }

// startProvider runs the provider in a process and returns its URL.
func startProvider(t *testing.T) string {
	t.Helper()
	cmd := exec.Command(testkit.Value(os.Executable())(t))
	cmd.Env = append(os.Environ(), asProvider+"=1")
	stdin := testkit.Value(cmd.StdinPipe())(t)
	out := testkit.Value(cmd.StdoutPipe())(t)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	testkit.OK(t, cmd.Start())
	t.Cleanup(func() {
		_ = stdin.Close() // it ends then
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("%v: %s", err, stderr.String())
	}
	return strings.TrimSpace(line)
}

// post sends a form to the provider, as a client.
func post(t *testing.T, address, id, secret string, form url.Values) map[string]any {
	t.Helper()
	r := testkit.Value(http.NewRequestWithContext(t.Context(), http.MethodPost, address, strings.NewReader(form.Encode())))(t)
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.SetBasicAuth(id, secret)
	response := testkit.Value(http.DefaultClient.Do(r))(t)
	defer func() { _ = response.Body.Close() }() // it was read
	data := testkit.Value(io.ReadAll(response.Body))(t)
	var answer map[string]any
	if err := json.Unmarshal(data, &answer); len(data) > 0 && err != nil {
		t.Fatalf("%s: %q", address, data)
	}
	return answer
}

// signIn signs a person in at the client "console", with a browser, and returns the ID token of the client.
func signIn(t *testing.T, issuer string) string {
	t.Helper()
	query := url.Values{"client_id": {"console"}, "redirect_uri": {"http://127.0.0.1/callback"}, "response_type": {"code"}, "scope": {"openid"}, "state": {"s"}, "nonce": {"n"}}
	location := authorize(t, issuer, issuer+"/auth?"+query.Encode())
	tokens := post(t, issuer+"/oauth/token", "console", "secret", url.Values{"grant_type": {"authorization_code"}, "code": {location.Query().Get("code")}, "redirect_uri": {"http://127.0.0.1/callback"}})
	token, _ := tokens["id_token"].(string)
	if token == "" {
		t.Fatalf("%s: %v", location, tokens)
	}
	return token
}

// authorize signs a person in with a browser that a client has sent to the provider, and returns where the provider sends the browser.
func authorize(t *testing.T, issuer, address string) *url.URL {
	t.Helper()
	browser := &http.Client{Jar: testkit.Value(cookiejar.New(nil))(t), CheckRedirect: func(r *http.Request, _ []*http.Request) error {
		if r.URL.Path == "/callback" {
			return http.ErrUseLastResponse
		}
		return nil
	}}
	page := testkit.Value(browser.Get(address))(t)
	_ = page.Body.Close() // its address is enough
	form := url.Values{"id": {page.Request.URL.Query().Get("authRequestID")}, "username": {"test-user@127.0.0.1"}, "password": {"verysecure"}}
	if form.Get("id") == "" {
		t.Fatalf("it is not the page for the name: %s", page.Request.URL)
	}
	answer := testkit.Value(browser.PostForm(issuer+"/login/username", form))(t)
	_ = answer.Body.Close() // its header is enough
	return testkit.Value(url.Parse(answer.Header.Get("Location")))(t)
}

// TestProvider uses zitadel's provider in a process: access tokens of a machine are accepted, before and after a rotation; the ID
// token of a person who signed in at another client is not, even if that client's id is the audience.
func TestProvider(t *testing.T) {
	issuer := startProvider(t)
	verifier := func(audience string) *oidc.Issuers {
		cfg := oidc.Config{Name: "zitadel", URL: issuer, Audience: audience, MaxAge: time.Hour}
		return testkit.Value(oidc.New([]oidc.Config{cfg}, oidc.Options{}, nil))(t)
	}
	access := func() string {
		answer := post(t, issuer+"/oauth/token", "sid1", "verysecret", url.Values{"grant_type": {"client_credentials"}, "scope": {"openid"}})
		token, _ := answer["access_token"].(string)
		return token
	}
	issuers, now := verifier(audience), time.Now()
	before := access()
	name, got, err := issuers.Verify(t.Context(), before, now)
	if err != nil || name != "zitadel" || got["sub"] != "sid1" {
		t.Fatalf("%q, %v, %v", name, got, err)
	}
	post(t, issuer+"/rotate", "", "", nil)
	for _, token := range []string{access(), before} {
		if _, got, err := issuers.Verify(t.Context(), token, now.Add(11*time.Second)); err != nil || got["sub"] != "sid1" {
			t.Errorf("after the rotation: %v, %v", got, err)
		}
	}
	id := signIn(t, issuer)
	for wanted, text := range map[string]string{audience: "the audience of the token is", "console": "sign-in"} {
		if _, _, err := verifier(wanted).Verify(t.Context(), id, now); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("an ID token, where the audience is %s: %v", wanted, err)
		}
	}
	t.Run("sign-in", func(t *testing.T) { testSignIn(t, issuer) })
}
