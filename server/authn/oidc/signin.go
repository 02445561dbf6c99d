package oidc

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/oauth2"

	"hsmsign/fault"
)

// maxIDAge is how old an ID token may be: it was made for the code that was redeemed a moment ago.
const maxIDAge = 5 * time.Minute

// ErrProvider means that the issuer does not answer, so that nobody can sign in there now.
var ErrProvider = fault.WithHint(fault.Unavailable.New("the sign-in provider does not answer"), "try again later, or sign in another way")

// ClientConfig is this service as a client of an issuer, at which people sign in.
type ClientConfig struct {
	Issuer   string // Config.Name
	ClientID string
	// Secret returns the secret of the client. It is called for each sign-in. Nil: a public client, which has none.
	Secret func() (string, error)
}

// Client signs people in at an issuer: authorization code (RFC 6749) with PKCE (RFC 7636), state and nonce (OpenID Connect Core 1.0).
// It is safe for concurrent use.
type Client struct {
	cfg  ClientConfig
	from *issuer
	http *http.Client
}

// SignIn is one sign-in. State, Nonce and Verifier are secrets that only the browser that began it can show.
type SignIn struct {
	State, Nonce, Verifier string
	Redirect               string // the URL to which the issuer sends the browser
	Again                  bool   // the person must identify themselves now
}

// Client returns a client of an issuer. The error is of kind usage.
func (i *Issuers) Client(cfg ClientConfig) (*Client, error) {
	if i != nil {
		for _, from := range i.all {
			if from.Name == cfg.Issuer {
				return &Client{cfg, from, exchanging(from.source.client)}, nil
			}
		}
	}
	return nil, fault.Usage.Errorf("there is no issuer %q", fault.Clip(cfg.Issuer, 64)).Fix("write it in oidc:")
}

// config returns what the issuer must be asked with; the error wraps ErrProvider.
func (c *Client) config(ctx context.Context, s SignIn, now time.Time) (*oauth2.Config, endpoints, error) {
	at, err := c.from.source.discovered(ctx, now)
	if err != nil {
		return nil, at, fault.Errorf("%w: issuer %s: %s", ErrProvider, c.from.Name, fault.Clip(err.Error(), 256))
	}
	for _, endpoint := range []string{at.Authorize, at.Token} {
		u, err := url.Parse(endpoint)
		if err != nil || !allowed(u, strings.HasPrefix(c.from.URL, "https:")) {
			return nil, at, fault.Errorf("%w: issuer %s: its discovery has no authorization_endpoint and token_endpoint that can be used", ErrProvider, c.from.Name)
		}
	}
	style := oauth2.AuthStyleInParams
	if c.cfg.Secret != nil && (len(at.Methods) == 0 || slices.Contains(at.Methods, "client_secret_basic")) {
		style = oauth2.AuthStyleInHeader
	}
	return &oauth2.Config{
		ClientID: c.cfg.ClientID, RedirectURL: s.Redirect, Scopes: []string{"openid"},
		Endpoint: oauth2.Endpoint{AuthURL: at.Authorize, TokenURL: at.Token, AuthStyle: style},
	}, at, nil
}

// URL returns where the browser is sent. The error wraps ErrProvider.
func (c *Client) URL(ctx context.Context, s SignIn, now time.Time) (string, error) {
	cfg, _, err := c.config(ctx, s, now)
	if err != nil {
		return "", err
	}
	options := []oauth2.AuthCodeOption{oauth2.SetAuthURLParam("nonce", s.Nonce), oauth2.S256ChallengeOption(s.Verifier)}
	if s.Again { // with max_age the issuer must say when the person identified themselves
		options = append(options, oauth2.SetAuthURLParam("prompt", "login"), oauth2.SetAuthURLParam("max_age", "60"))
	}
	return cfg.AuthCodeURL(s.State, options...), nil
}

// Redeem redeems the issuer's answer to a sign-in: the parameters of the URL that the browser was sent to. It returns the claims of the
// ID token, and when the person identified themselves; zero: the issuer does not say. An error that wraps ErrProvider means that the
// issuer did not answer; another one says why the sign-in is not accepted, and contains no code and no token.
func (c *Client) Redeem(ctx context.Context, s SignIn, answer url.Values, now time.Time) (claims map[string]any, signedIn time.Time, err error) {
	cfg, at, err := c.config(ctx, s, now)
	if err != nil {
		return nil, signedIn, err
	}
	code, err := c.code(s, answer, at)
	if err != nil {
		return nil, signedIn, err
	}
	if c.cfg.Secret != nil {
		if cfg.ClientSecret, err = c.cfg.Secret(); err != nil {
			return nil, signedIn, fault.Errorf("issuer %s: client-secret-file: %w", c.from.Name, err)
		}
	}
	within, cancel := context.WithTimeout(context.WithValue(ctx, oauth2.HTTPClient, c.http), c.from.source.wait)
	defer cancel()
	token, err := cfg.Exchange(within, code, oauth2.VerifierOption(s.Verifier))
	if refused, ok := errors.AsType[*oauth2.RetrieveError](err); ok && refused.ErrorCode != "" {
		return nil, signedIn, fmt.Errorf("issuer %s does not redeem the code: %q", c.from.Name, fault.Clip(refused.ErrorCode, 64))
	}
	if err != nil {
		return nil, signedIn, fault.Errorf("%w: issuer %s: the code was not redeemed: %s", ErrProvider, c.from.Name, cause(err))
	}
	id, _ := token.Extra("id_token").(string)
	return c.verify(ctx, id, s, now)
}

// cause returns the reason of a failed exchange, without an answer.
func cause(err error) string {
	if u, ok := errors.AsType[*url.Error](err); ok {
		return fault.Clip(u.Err.Error(), 128)
	}
	return "its answer is not one of OAuth 2.0"
}

// code returns the code of an answer of this issuer to this sign-in.
func (c *Client) code(s SignIn, answer url.Values, at endpoints) (string, error) {
	for name, values := range answer {
		if len(values) != 1 { // RFC 6749, section 3.1
			return "", fmt.Errorf("issuer %s: the answer has the parameter %q %d times", c.from.Name, fault.Clip(name, 32), len(values))
		}
	}
	iss, named := answer["iss"]
	switch {
	case s.State == "" || subtle.ConstantTimeCompare([]byte(answer.Get("state")), []byte(s.State)) != 1:
		return "", fmt.Errorf("issuer %s: the answer is not that to a sign-in of this browser", c.from.Name)
	case named && iss[0] != c.from.URL, !named && at.Named: // RFC 9207
		return "", fmt.Errorf("issuer %s: the answer is that of the issuer %q", c.from.Name, fault.Clip(answer.Get("iss"), 128))
	case answer.Has("error"):
		return "", fmt.Errorf("issuer %s refuses the sign-in: %q", c.from.Name, fault.Clip(answer.Get("error"), 64))
	case answer.Get("code") == "":
		return "", fmt.Errorf("issuer %s: the answer has no code", c.from.Name)
	}
	return answer.Get("code"), nil
}

// verify returns the claims of an ID token that the issuer made for a sign-in at this client (OpenID Connect Core 1.0, section 3.1.3.7).
func (c *Client) verify(ctx context.Context, token string, s SignIn, now time.Time) (claims map[string]any, signedIn time.Time, err error) {
	if token == "" {
		return nil, signedIn, fmt.Errorf("issuer %s: the answer has no ID token", c.from.Name)
	}
	claims, signature, err := parse(token)
	if err != nil {
		return nil, signedIn, err
	}
	if err := c.check(claims, s, now); err != nil {
		return nil, signedIn, err
	}
	if typ, ok := signature.Protected.ExtraHeaders["typ"].(string); ok && !strings.EqualFold(typ, "jwt") {
		return nil, signedIn, fmt.Errorf("issuer %s: the ID token is of the type %q", c.from.Name, fault.Clip(typ, 64))
	}
	verifying := c.from.verifying
	verifying.ClientID = c.cfg.ClientID
	if err := c.from.verify(ctx, token, verifying, now); err != nil {
		return nil, signedIn, err
	}
	signedIn, err = date(claims, "auth_time", false)
	if err == nil && s.Again && (signedIn.IsZero() || now.Sub(signedIn) > maxIDAge+Skew) {
		err = errors.New("it does not say that the person has identified themselves just now (claim auth_time)")
	}
	if err != nil {
		return nil, signedIn, fmt.Errorf("issuer %s: %w", c.from.Name, err)
	}
	return claims, signedIn, nil
}

// check checks the claims of an ID token.
func (c *Client) check(claims map[string]any, s SignIn, now time.Time) error {
	refused := func(format string, args ...any) error {
		return fmt.Errorf("issuer %s: "+format, append([]any{c.from.Name}, args...)...)
	}
	audience := claims["aud"]
	if list, ok := audience.([]any); ok && len(list) == 1 {
		audience = list[0]
	}
	nonce, _ := claims["nonce"].(string)
	party, authorized := claims["azp"]
	switch {
	case claims["iss"] != c.from.URL:
		return refused("the ID token is that of the issuer %s", fault.Clip(fmt.Sprintf("%q", claims["iss"]), 128))
	case audience != c.cfg.ClientID:
		return refused("the audience of the ID token is %s, and not only this client", fault.Clip(fmt.Sprintf("%q", audience), 128))
	case authorized && party != c.cfg.ClientID:
		return refused("the ID token was issued to the client %s", fault.Clip(fmt.Sprintf("%q", party), 128))
	case s.Nonce == "" || subtle.ConstantTimeCompare([]byte(nonce), []byte(s.Nonce)) != 1:
		return refused("the nonce of the ID token is not that of the sign-in")
	}
	limited := *c.from
	limited.MaxAge = maxIDAge
	return limited.checkTimes(claims, now)
}
