package vault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"hsmsign/fault"
	"hsmsign/secret"
	"hsmsign/signer"
)

// tokenVariable is the environment variable of Vault's own command.
const tokenVariable = "VAULT_TOKEN"

const (
	maxToken = 4096  // of a token or a secret id; batch tokens have a few hundred bytes
	maxJWT   = 16384 // of the token of a service account
	// lookupAfter is when the expiry of a token from a source is asked for: a command that ends earlier does not ask.
	lookupAfter = 30 * time.Second
	// minRenewal is the shortest time to the next renewal.
	minRenewal = time.Second
)

// token is a token and what is known of its lease. It does not change.
type token struct {
	value     string
	known     bool // the fields below are known
	renewable bool
	lease     time.Duration // at until; 0: it does not expire
	full      time.Duration // the longest lease so far
	until     time.Time
}

// over reports whether the token has expired.
func (t *token) over() bool { return t.lease > 0 && !time.Now().Before(t.until) }

// renewIn returns when to renew the token: after two thirds of its lease, and after a third of what remains if a renewal
// failed.
func (t *token) renewIn() time.Duration {
	left := time.Until(t.until)
	wait := left - t.lease/3
	if wait <= 0 {
		wait = left / 3
	}
	return max(wait, minRenewal)
}

// withLease returns the token with a new lease.
func (t *token) withLease(lease time.Duration, renewable bool) *token {
	return &token{value: t.value, known: true, renewable: renewable, lease: lease, full: max(t.full, lease), until: time.Now().Add(lease)}
}

// identity obtains the token of a session, renews it, and replaces it. Safe for concurrent use.
type identity struct {
	*session
	life    context.Context // ends with Close
	turn    chan struct{}   // held while a token is obtained: one login at a time
	ready   atomic.Bool     // the secret was read once
	secret  string          // for the next login; under turn
	current atomic.Pointer[token]
}

func newIdentity(life context.Context, s *session) *identity {
	return &identity{session: s, life: life, turn: make(chan struct{}, 1)}
}

// lock waits for its turn. It fails if ctx ends first.
func (i *identity) lock(ctx context.Context) error {
	select {
	case i.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", signer.ErrUnavailable, ctx.Err())
	}
}

func (i *identity) unlock() { <-i.turn }

// prepare reads the secret for the first time, without the time limit of a request: a person may have to type it.
func (i *identity) prepare(ctx context.Context) error {
	if i.ready.Load() {
		return nil
	}
	if err := i.lock(ctx); err != nil {
		return err
	}
	defer i.unlock()
	if i.ready.Load() {
		return nil
	}
	text, err := i.read(ctx)
	if err != nil {
		return err
	}
	if i.secret = text; i.login.method == withToken {
		i.adopt(&token{value: text})
	}
	i.ready.Store(true)
	return nil
}

// read reads the token, the secret id or the JWT. Errors wrap signer.ErrAuth or secret.ErrNoFile.
func (i *identity) read(ctx context.Context) (string, error) {
	src := secret.Source{Label: fmt.Sprintf("token of Vault %q", i.host), From: i.login.source, Env: tokenVariable, Max: maxToken}
	switch i.login.method {
	case withAppRole:
		src.Label, src.Env = fmt.Sprintf("secret id of Vault %q", i.host), ""
	case withKubernetes:
		// Kubernetes sets the mode of the file, which may be 0644; only the pod sees it.
		src = secret.Source{Label: "token of the service account", From: "file:" + i.login.source, AnyMode: true, Max: maxJWT}
	}
	text, err := i.Secrets.Read(ctx, src)
	defer clear(text)
	switch {
	case errors.Is(err, secret.ErrNoFile):
		return "", err
	case err != nil:
		return "", fmt.Errorf("%w: %w", signer.ErrAuth, err)
	case !printable(string(text)):
		return "", fault.Errorf("%w: %s contains a space, a line break or a character that is not ASCII", signer.ErrAuth, src.Label).
			Fix("check that the source has the secret and nothing else")
	}
	return string(text), nil
}

// printable reports whether text can be a header: ASCII without spaces.
func printable(text string) bool {
	return !strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' })
}

// readsAgain reports whether the source can be read again without a person.
func (l login) readsAgain() bool { return l.source != "" && l.source != "prompt" }

// adopt makes t the current token and has it renewed.
func (i *identity) adopt(t *token) {
	i.current.Store(t)
	if !t.known || t.lease > 0 {
		go i.keep(t)
	}
}

// token returns the current token; a login method logs in if it has no token or an expired one.
func (i *identity) token(ctx context.Context) (*token, error) {
	usable := func() *token {
		if t := i.current.Load(); t != nil && (i.login.method == withToken || !t.over()) {
			return t
		}
		return nil
	}
	if t := usable(); t != nil {
		return t, nil
	}
	if err := i.lock(ctx); err != nil {
		return nil, err
	}
	defer i.unlock()
	if t := usable(); t != nil {
		return t, nil
	}
	return i.obtain(ctx)
}

// obtain logs in, or reads the source of the token again. The caller holds the turn.
func (i *identity) obtain(ctx context.Context) (*token, error) {
	var err error
	if i.secret == "" {
		if i.secret, err = i.read(ctx); err != nil {
			return nil, err
		}
	}
	text := i.secret
	if i.login.readsAgain() {
		i.secret = "" // the next login reads it again: it may have changed
	}
	t := &token{value: text}
	if i.login.method != withToken {
		if t, err = i.logIn(ctx, text); err != nil {
			return nil, err
		}
	} else if now := i.current.Load(); now != nil && now.value == text {
		return now, nil
	}
	i.adopt(t)
	return t, nil
}

// logIn logs in with a secret id or a JWT.
func (i *identity) logIn(ctx context.Context, text string) (*token, error) {
	body := map[string]string{"role_id": i.login.role, "secret_id": text}
	if i.login.method == withKubernetes {
		body = map[string]string{"role": i.login.role, "jwt": text}
	}
	var t *token
	err := i.send(ctx, request{path: "/v1/auth/" + i.login.mount + "/login", body: body, secret: text, decode: func(a answer) error {
		if a.Auth == nil || a.Auth.ClientToken == "" || len(a.Auth.ClientToken) > maxToken || !printable(a.Auth.ClientToken) {
			return fault.Errorf("%w: the login returned no token", signer.ErrAuth).Fix("check the login method: one that needs a second factor cannot be used")
		}
		t = (&token{value: a.Auth.ClientToken}).withLease(a.Auth.lease(), a.Auth.Renewable)
		return nil
	}})
	return t, err
}

// maxLease is the longest lease that counts; Vault's own maximum is 32 days unless it is configured.
const maxLease = 10 * 365 * 24 * time.Hour

// lease returns the lease of a token.
func (g *grant) lease() time.Duration { return seconds(g.LeaseDuration) }

func seconds(n int64) time.Duration {
	return time.Duration(min(max(n, 0), int64(maxLease/time.Second))) * time.Second
}

// authorized sends a request with the current token. If the server refuses the token, and not only the request, it is
// replaced once.
func (s *session) authorized(ctx context.Context, r request) error {
	t, err := s.identity.token(ctx)
	if err != nil {
		return err
	}
	r.token = t.value
	err = s.send(ctx, r)
	refused, ok := errors.AsType[*apiError](err)
	if !ok || refused.status != http.StatusForbidden {
		return err
	}
	if t, err = s.identity.replace(ctx, t, refused); err != nil {
		return err
	}
	r.token = t.value
	return s.send(ctx, r)
}

// replace returns another token than the refused one. If the token is valid, so that its policies refuse the request, it
// returns the refusal.
func (i *identity) replace(ctx context.Context, t *token, refused *apiError) (*token, error) {
	if err := i.lock(ctx); err != nil {
		return nil, err
	}
	defer i.unlock()
	if now := i.current.Load(); now != nil && now.value != t.value {
		return now, nil
	}
	if !refused.invalidToken() { // Vault before 1.17 and OpenBao do not say it
		err := i.send(ctx, lookup(t, nil))
		answered, ok := errors.AsType[*apiError](err)
		switch {
		case err == nil:
			return nil, refused
		case !ok || answered.status != http.StatusForbidden:
			return nil, err
		}
	}
	if i.login.method == withToken && !i.login.readsAgain() {
		return nil, i.invalid(refused)
	}
	next, err := i.obtain(ctx)
	if err == nil && next.value == t.value {
		err = i.invalid(refused)
	}
	return next, err
}

// invalid is the error for a token that the server does not accept.
func (i *identity) invalid(refused *apiError) error {
	return fault.Errorf("%w: %s: the token is expired, revoked or not valid in this namespace", signer.ErrAuth, refused.action).Fix(i.fixToken())
}

// fixToken is what to do about a token that the server does not accept.
func (i *identity) fixToken() string {
	if i.login.method == withToken {
		return "provide a new token (token-source, VAULT_TOKEN)"
	}
	return "check the login method, and the namespace of its tokens"
}

// lookup is the request for what the server knows of a token.
func lookup(t *token, into *tokenInfo) request {
	r := request{path: "/v1/auth/token/lookup-self", token: t.value}
	if into != nil {
		r.decode = func(a answer) error {
			if err := json.Unmarshal(a.Data, into); err != nil {
				return fmt.Errorf("%w: %s: %w", errDamaged, r.name(), err)
			}
			return nil
		}
	}
	return r
}

// tokenInfo is the answer to lookup.
type tokenInfo struct {
	TTL       int64    `json:"ttl"` // in seconds; 0: it does not expire
	Renewable bool     `json:"renewable"`
	Policies  []string `json:"policies"`
}
