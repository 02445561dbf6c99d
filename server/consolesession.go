package server

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"hsmsign/agent/policy"
	"hsmsign/fault"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
	"hsmsign/server/authn"
	"hsmsign/server/console"
)

// The limits of a session.
const (
	sessionIdle     = 30 * time.Minute // without a request
	sessionAbsolute = 12 * time.Hour
	freshFor        = 5 * time.Minute // since the person has identified themselves
)

// secretBytes is the length of the value of a session's cookie.
const secretBytes = 32

// freshness is what a route demands of a session.
type freshness int

const (
	freshAny    freshness = iota
	freshRecent           // a sign-in that is less than 5 minutes old
	freshStrong           // likewise, and not by a link
)

// The rules that refuse what a session may not.
const (
	ruleFresh = "console.fresh"
	ruleLink  = "console.link"
)

// Cookies have no domain and no port, so only a host's own pages set them. __Host- demands Secure, which browsers treat differently
// on HTTP to a loopback address: there the cookie has another name and no Secure. Each kind of listener accepts its own name only.
const (
	cookieTLS       = "__Host-hsmsign"
	cookieHTTP      = "hsmsign-loopback"
	loginCookieTLS  = "__Host-hsmsign-login"
	loginCookieHTTP = "hsmsign-login-loopback"
)

// cookieName returns the name of a cookie for the connection of the request.
func (c *call) cookieName(login bool) string {
	switch tls := c.conn.Kind == authn.TLS; {
	case tls && login:
		return loginCookieTLS
	case tls:
		return cookieTLS
	case login:
		return loginCookieHTTP
	}
	return cookieHTTP
}

// setCookie sets a cookie for the time of the browser session, or for a time; a negative one deletes it.
func (c *call) setCookie(login bool, value string, within time.Duration) {
	http.SetCookie(c.w, &http.Cookie{ // #nosec G124 -- Secure but on HTTP to a loopback address
		Name: c.cookieName(login), Value: value, Path: "/", HttpOnly: true, Secure: c.conn.Kind == authn.TLS, SameSite: http.SameSiteLaxMode, MaxAge: int(within / time.Second),
	})
}

// cookie returns the value of the only cookie of a name; "": there is none, or more than one.
func (c *call) cookie(login bool) string {
	found := c.r.CookiesNamed(c.cookieName(login))
	if len(found) != 1 {
		return ""
	}
	return found[0].Value
}

// sessionID returns the id of the session that the cookie names.
func (c *call) sessionID() (id record.Hash, ok bool) {
	value := c.cookie(false)
	raw, err := base64.RawURLEncoding.Strict().DecodeString(value)
	return record.SHA256([]byte(value)), err == nil && len(raw) == secretBytes
}

// errSignIn is what a browser is told that has no session.
func errSignIn() error {
	return fault.Unauthenticated.Errorf("you are not signed in, or your session has ended").Fix("sign in")
}

// refuseSession refuses a request; the log has the reason.
func (c *call) refuseSession(reason error) error {
	c.reason = reason
	return errSignIn()
}

// claimSession finds the caller by the session.
func (c *call) claimSession(string) error {
	_, err := c.session()
	return err
}

// session returns the session of a request of the console, and sets its caller, as the policy has it now. The error is of kind
// unauthenticated if there is none, or its caller may no longer have it.
func (c *call) session() (*ledger.Session, error) {
	if c.signed != nil {
		return c.signed, nil
	}
	if len(c.r.Header.Values("Authorization")) > 0 {
		return nil, c.refuseSession(errors.New("an Authorization header, which the console does not accept"))
	}
	id, ok := c.sessionID()
	if !ok {
		return nil, c.refuseSession(errors.New("no cookie of a session"))
	}
	if err := c.signIns.check(c.conn.Remote, c.begun); err != nil {
		return nil, err
	}
	s, err := c.cfg.Ledger.Session(c.r.Context(), id, sessionIdle, sessionAbsolute)
	if fault.KindOf(err) == fault.Unauthenticated {
		_ = c.signIns.allow(c.conn.Remote, c.begun) // a cookie that was guessed counts; the answer is the same
		c.setCookie(false, "", -time.Second)
		return nil, c.refuseSession(err)
	}
	if err != nil {
		return nil, err
	}
	found, err := c.state.holder(s, c.begun)
	if err != nil {
		if end := c.cfg.Ledger.EndSession(c.r.Context(), id); end != nil {
			return nil, end
		}
		return nil, c.refuseSession(err)
	}
	if err := c.boundTo(s, found); err != nil {
		return nil, c.refuseSession(err)
	}
	c.enter(found)
	c.signed = s
	return s, nil
}

// enter sets the caller of a request of the console.
func (c *call) enter(found policy.Credential) {
	if known := connectionOf(c.r); known != nil {
		known.of(found.Caller.Name, c.r.TLS)
	}
	c.known(found, channelConsole)
}

// holder returns the caller of a session as the policy has it. The error says why there is none.
func (st *State) holder(s *ledger.Session, now time.Time) (policy.Credential, error) {
	caller, err := st.Policy.Caller(s.Caller)
	if err != nil {
		return policy.Credential{}, err
	}
	if !caller.Holds(s.Credential, now) {
		return policy.Credential{}, fmt.Errorf("%s is no longer that of caller %s", s.Credential, s.Caller)
	}
	if issuer, _, _ := strings.Cut(strings.TrimPrefix(s.Credential, "oidc "), " "); s.How == ledger.SignedInOIDC && st.Console.Providers[issuer] == nil {
		return policy.Credential{}, fmt.Errorf("nobody signs in with the issuer %q any longer", issuer)
	}
	return policy.Credential{Caller: caller, Name: s.Credential}, nil
}

// boundTo returns an error for a session that the request may not use from where it comes: another network, or a connection without the
// certificate that the person signed in with, which is verified again.
func (c *call) boundTo(s *ledger.Session, found policy.Credential) error {
	if !found.Caller.From(c.conn.Remote) {
		return fmt.Errorf("%s may not use %s from %v", s.Caller, s.Credential, c.conn.Remote)
	}
	if s.How != ledger.SignedInCertificate {
		return nil
	}
	now, err := c.state.checker(c.cfg.Now()).Connection(c.conn)
	if refusal, ok := errors.AsType[*authn.Refusal](err); ok {
		return refusal.Reason
	}
	if err == nil && (now.Caller != found.Caller || now.Name != s.Credential) {
		err = fmt.Errorf("the session of %s on a connection without it", s.Credential)
	}
	return err
}

// isFresh returns an error for a session that is not as fresh as a route demands. Other credentials are sent with each request.
func (c *call) isFresh(demanded freshness) error {
	if c.signed == nil || demanded == freshAny {
		return nil
	}
	return c.fresh(c.signed, demanded == freshStrong)
}

// fresh returns an error, of kind unauthenticated, for a session whose person did not identify themselves in the last 5 minutes. With
// strong, one that began with a link is refused, whatever its age.
func (c *call) fresh(s *ledger.Session, strong bool) error {
	if strong && s.How == ledger.SignedInLink {
		return fault.Forbidden.Errorf("who signed in with a link cannot approve or reject").Rule(ruleLink).Fix("sign in with a provider or a client certificate, or use hsmsign approve")
	}
	if s.Read.Sub(s.SignedIn) >= freshFor {
		return fault.Unauthenticated.Errorf("this needs a sign-in that is less than %d minutes old", int(freshFor.Minutes())).Rule(ruleFresh).Fix("sign in again")
	}
	return nil
}

// start begins a session of a caller who has just been identified, always with a new id, and sends the browser to a page. The session that
// the browser had ends.
func (c *call) start(found policy.Credential, how string, signedIn time.Time, back string) error {
	if !found.Caller.From(c.conn.Remote) {
		return c.refuseSignIn(fmt.Errorf("%s may not use %s from %v", found.Caller.Name, found.Name, c.conn.Remote))
	}
	if before, ok := c.sessionID(); ok {
		if err := c.cfg.Ledger.EndSession(c.r.Context(), before); err != nil {
			return err
		}
	}
	var secret [secretBytes]byte
	_, _ = rand.Read(secret[:]) // never fails (Go 1.24)
	value := base64.RawURLEncoding.EncodeToString(secret[:])
	err := c.cfg.Ledger.StartSession(c.r.Context(), ledger.Session{
		ID: record.SHA256([]byte(value)), Caller: found.Caller.Name, Credential: found.Name, How: how, SignedIn: signedIn,
	})
	if err != nil {
		return err
	}
	c.enter(found)
	c.cfg.Log.Info("signed in", "id", c.id, "caller", found.Caller.Name, "credential", found.Name, "how", how)
	c.setCookie(false, value, 0)
	c.redirect(back)
	return nil
}

// sessions returns the sessions of the caller that have not ended, the newest first.
func (c *call) sessions() ([]console.Session, error) {
	found, err := c.cfg.Ledger.Sessions(c.r.Context(), c.who.Name)
	if err != nil {
		return nil, err
	}
	var all []console.Session
	for _, s := range found {
		if s.Read.Sub(s.Seen) < sessionIdle && s.Read.Sub(s.Created) < sessionAbsolute {
			all = append(all, console.Session{
				How: s.How, Credential: s.Credential, Created: s.Created, Seen: s.Seen, Ends: s.Created.Add(sessionAbsolute), Current: c.signed != nil && c.signed.ID == s.ID,
			})
		}
	}
	return all, nil
}

// The rate at which one address may try to sign in, or send cookies of sessions that do not exist.
const (
	signInRate  = 5 // a second
	signInBurst = 50
	maxRates    = 10_000 // addresses that are remembered
)

// rates bounds what senders do who are not known, by their address, and the network of an IPv6 address. The zero value is ready; it is
// safe for concurrent use.
type rates struct {
	mu   sync.Mutex
	each map[netip.Prefix]*rate.Limiter
}

func (r *rates) of(from netip.Addr) *rate.Limiter {
	bits := from.BitLen()
	if from.Is6() {
		bits = 64
	}
	network, _ := from.WithZone("").Prefix(bits) // of no address: the zero one
	r.mu.Lock()
	defer r.mu.Unlock()
	if found := r.each[network]; found != nil {
		return found
	}
	if r.each == nil || len(r.each) >= maxRates {
		r.each = map[netip.Prefix]*rate.Limiter{}
	}
	r.each[network] = rate.NewLimiter(signInRate, signInBurst)
	return r.each[network]
}

// allow counts an attempt. The error is of kind limited.
func (r *rates) allow(from netip.Addr, now time.Time) error {
	if r.of(from).AllowN(now, 1) {
		return nil
	}
	return tooMany()
}

// check returns the error of allow, and counts nothing.
func (r *rates) check(from netip.Addr, now time.Time) error {
	if r.of(from).TokensAt(now) >= 1 {
		return nil
	}
	return tooMany()
}

func tooMany() error {
	return &Retry{time.Second, fault.Limited.Errorf("too many sign-ins from your network").Rule("console.sign-ins").Fix("try again in a moment")}
}
