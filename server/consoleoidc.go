package server

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"time"

	"hsmsign/fault"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
	"hsmsign/server/authn"
	"hsmsign/server/authn/oidc"
)

// login is a sign-in at a provider that has begun. Only the browser has it, in a cookie, so strangers cannot fill the database. A browser
// that changes it changes its own sign-in alone.
type login struct {
	Secret []byte `json:"secret"`
	Issuer string `json:"issuer"`
	Back   string `json:"back"`
	Again  bool   `json:"again,omitempty"`
	Begun  int64  `json:"begun"` // seconds since 1970
}

// maxLoginCookie is the length limit of the cookie's value.
const maxLoginCookie = 2 << 10

// encode returns the value of the cookie.
func (l login) encode() string {
	data, _ := json.Marshal(l) // #nosec G117 -- the browser keeps it; it has no value that cannot be encoded
	return base64.RawURLEncoding.EncodeToString(data)
}

// decodeLogin reads the value of the cookie.
func decodeLogin(value string) (l login, err error) {
	if len(value) > maxLoginCookie {
		return login{}, errors.New("the cookie of the sign-in is too long")
	}
	data, err := base64.RawURLEncoding.Strict().DecodeString(value)
	if err == nil {
		err = decodeJSON(data, &l)
	}
	if err != nil || len(l.Secret) != secretBytes || l.Back != backPath(l.Back) {
		return login{}, errors.New("no cookie of a sign-in that has begun in this browser")
	}
	return l, nil
}

// signIn returns the sign-in of a cookie's value. Its secrets are derived from the value, each for one purpose: who sees one of them, as
// the state in a URL, knows no other.
func (l login) signIn(value, redirect string) oidc.SignIn {
	derive := func(purpose string) string {
		hash := sha256.Sum256([]byte("hsmsign sign-in " + purpose + "\n" + value))
		return base64.RawURLEncoding.EncodeToString(hash[:])
	}
	return oidc.SignIn{State: derive("state"), Nonce: derive("nonce"), Verifier: derive("verifier"), Redirect: redirect, Again: l.Again}
}

// redirectURL returns the URL to which a provider sends the browser. Each issuer has its own, so that an answer of one is not taken for
// that of another (RFC 9700, section 4.4). The host is that of the request, which is one of the server's.
func (c *call) redirectURL(issuer string) string {
	u := url.URL{Scheme: "http", Host: c.r.Host, Path: "/console/callback/" + issuer}
	if c.conn.Kind == authn.TLS {
		u.Scheme = "https"
	}
	return u.String()
}

// beginOIDC answers GET /console/sign-in/oidc: it sends the browser to a provider.
func (c *call) beginOIDC() error {
	if err := c.signIns.allow(c.conn.Remote, c.begun); err != nil {
		return err
	}
	query := c.r.URL.Query()
	provider := c.state.Console.Providers[query.Get("issuer")]
	if provider == nil {
		return fault.NotFound.Errorf("nobody signs in with the issuer %q", fault.Clip(query.Get("issuer"), 64)).Fix("choose another way")
	}
	l := login{Secret: make([]byte, secretBytes), Issuer: query.Get("issuer"), Back: backPath(query.Get("back")), Again: query.Get("again") == "1", Begun: c.cfg.Now().Unix()}
	_, _ = rand.Read(l.Secret) // never fails (Go 1.24)
	value := l.encode()
	to, err := provider.URL(c.r.Context(), l.signIn(value, c.redirectURL(l.Issuer)), c.cfg.Now())
	if err != nil {
		return err
	}
	c.setCookie(true, value, signInWait)
	c.redirect(to)
	return nil
}

// endOIDC answers GET /console/callback/{issuer}: the provider has sent the browser back.
func (c *call) endOIDC() error {
	if err := c.signIns.allow(c.conn.Remote, c.begun); err != nil {
		return err
	}
	value, now := c.cookie(true), c.cfg.Now()
	l, err := decodeLogin(value)
	if err != nil {
		return c.refuseSignIn(err)
	}
	provider := c.state.Console.Providers[l.Issuer]
	switch begun := time.Unix(l.Begun, 0); {
	case provider == nil || l.Issuer != c.r.PathValue("issuer"):
		return c.refuseSignIn(fmt.Errorf("the answer of the issuer %q to a sign-in with %q", fault.Clip(c.r.PathValue("issuer"), 64), fault.Clip(l.Issuer, 64)))
	case now.Sub(begun).Abs() > signInWait:
		return c.refuseSignIn(fmt.Errorf("the sign-in began at %s", begun.UTC().Format(time.RFC3339)))
	}
	claims, signedIn, err := provider.Redeem(c.r.Context(), l.signIn(value, c.redirectURL(l.Issuer)), c.r.URL.Query(), now)
	if errors.Is(err, oidc.ErrProvider) {
		return err
	}
	if err != nil {
		return c.refuseSignIn(err)
	}
	found, err := c.state.Policy.OIDC(l.Issuer, claims)
	if err != nil {
		return c.refuseSignIn(err)
	}
	// The provider redeems a code once; this does not depend on it.
	once, err := c.cfg.Ledger.Once(c.r.Context(), record.SHA256([]byte("hsmsign sign-in\n"+value)), now.Add(2*signInWait))
	if err != nil {
		return err
	}
	if !once {
		return c.refuseSignIn(errors.New("the sign-in was used already"))
	}
	if signedIn.IsZero() { // the provider does not say when: long ago
		signedIn = time.Unix(0, 0)
	}
	c.setCookie(true, "", -time.Second)
	return c.start(found, ledger.SignedInOIDC, signedIn, l.Back)
}
