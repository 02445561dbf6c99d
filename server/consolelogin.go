package server

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"hsmsign/agent/policy"
	"hsmsign/api"
	"hsmsign/fault"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
	"hsmsign/server/authn"
	"hsmsign/server/console"
)

// linkWait is how long a link of hsmsign console login can be redeemed.
const linkWait = 2 * time.Minute

// linkPrefix is that of the token in a link; the log leaves out what begins as a token of this program.
const linkPrefix = "hsmsign_link_"

// refuseSignIn refuses a sign-in. Whoever tries is told little; the log has the reason.
func (c *call) refuseSignIn(reason error) error {
	c.reason = reason
	return fault.Unauthenticated.Errorf("you were not signed in").Rule("console.sign-in").Fix("try again; if that does not help, ask the operators of the service, whose log has the reason")
}

// signInView returns the page to sign in: what there is for the connection of the request.
func (c *call) signInView() console.SignIn {
	query := c.r.URL.Query()
	view := console.SignIn{Back: backPath(query.Get("back")), Again: query.Get("again") == "1", Issuers: slices.Sorted(maps.Keys(c.state.Console.Providers))}
	found, err := c.state.checker(c.cfg.Now()).Connection(c.conn)
	view.Certificate = err == nil && found.Caller != nil
	view.Links = slices.ContainsFunc(c.cfg.Listen, func(a Address) bool { return a.Kind == authn.Unix })
	return view
}

// signInPage answers GET /console/sign-in.
func (c *call) signInPage() error { return c.page(http.StatusOK, c.signInView()) }

// strangerForm returns a form of somebody who is not known yet. It must come from a page of this server.
func (c *call) strangerForm() (url.Values, error) {
	if err := c.crossOrigin(c.conn.Kind); err != nil {
		return nil, err
	}
	if err := c.signIns.allow(c.conn.Remote, c.begun); err != nil {
		return nil, err
	}
	_, leave, err := c.strange(c.conn.Kind, maxForm)
	if err != nil {
		return nil, err
	}
	defer leave()
	return c.values()
}

// values reads the body as a form.
func (c *call) values() (url.Values, error) {
	if mediaType := c.mediaType(); mediaType != "application/x-www-form-urlencoded" && c.r.ContentLength != 0 {
		return nil, fault.WrongType.Errorf("the body has the type %q", fault.Clip(mediaType, 64)).Fix("send the form of the page")
	}
	data, err := c.body()
	if err != nil {
		return nil, err
	}
	values, err := url.ParseQuery(string(data))
	if err != nil {
		return nil, fault.Usage.Errorf("the body is not a form").Fix("send the form of the page")
	}
	return values, nil
}

// signInCertificate answers POST /console/sign-in/certificate.
func (c *call) signInCertificate() error {
	values, err := c.strangerForm()
	if err != nil {
		return err
	}
	found, err := c.state.checker(c.cfg.Now()).Connection(c.conn)
	if refusal, ok := errors.AsType[*authn.Refusal](err); ok {
		return c.refuseSignIn(refusal.Reason)
	}
	if err == nil && found.Caller == nil {
		err = c.refuseSignIn(errors.New("a connection without a client certificate"))
	}
	if err != nil {
		return err
	}
	return c.start(found, ledger.SignedInCertificate, time.Time{}, backPath(values.Get("back")))
}

// link is what a link signs in.
type link struct {
	Caller     string `json:"caller"`
	Credential string `json:"credential"`
}

// consoleLogin answers POST /v1/console/login: it makes a link for the Unix user who asks.
func (c *call) consoleLogin() error {
	if c.conn.Kind != authn.Unix {
		return fault.Forbidden.Errorf("links are made for Unix users on the host of the service").Rule(ruleLink).Fix("run hsmsign console login there, with --agent unix:///PATH")
	}
	address, err := c.consoleURL(c.state)
	if err != nil {
		return err
	}
	var secret [secretBytes]byte
	_, _ = rand.Read(secret[:]) // never fails (Go 1.24)
	token := linkPrefix + hex.EncodeToString(secret[:])
	data, err := json.Marshal(link{c.who.Name, c.cred.Name})
	if err != nil {
		return err
	}
	if err := c.cfg.Ledger.StartLogin(c.r.Context(), record.SHA256([]byte(token)), data, linkWait); err != nil {
		return err
	}
	return c.json(http.StatusOK, api.ConsoleLogin{URL: address + "/console/sign-in/link/" + token, Until: api.Time(c.cfg.Now().Add(linkWait))})
}

// linkPage answers GET /console/sign-in/link/{token}. It redeems nothing: programs fetch links that people send each other.
func (c *call) linkPage() error {
	return c.page(http.StatusOK, console.SignInLink{Token: c.r.PathValue("token")})
}

// signInLink answers POST /console/sign-in/link.
func (c *call) signInLink() error {
	values, err := c.strangerForm()
	if err != nil {
		return err
	}
	token := values.Get("token")
	if !strings.HasPrefix(token, linkPrefix) || len(token) != len(linkPrefix)+2*secretBytes {
		return c.refuseSignIn(errors.New("the token of the link is not complete"))
	}
	data, err := c.cfg.Ledger.TakeLogin(c.r.Context(), record.SHA256([]byte(token)))
	if fault.KindOf(err) == fault.Unauthenticated {
		c.reason = err
		return fault.Unauthenticated.Errorf("the link was used, or its 2 minutes are over").Rule(ruleLink).Fix("run hsmsign console login again")
	}
	if err != nil {
		return err
	}
	found, err := c.state.linked(data, c.cfg.Now())
	if err != nil {
		return c.refuseSignIn(err)
	}
	return c.start(found, ledger.SignedInLink, time.Time{}, consolePath)
}

// linked returns the credential that a link was made for, if it is still one of its caller.
func (st *State) linked(data []byte, now time.Time) (policy.Credential, error) {
	var l link
	if err := json.Unmarshal(data, &l); err != nil {
		return policy.Credential{}, err
	}
	return st.holder(&ledger.Session{Caller: l.Caller, Credential: l.Credential, How: ledger.SignedInLink}, now)
}

// signOut answers POST /console/sign-out: it ends this session, or, with everywhere=1, all of the caller.
func (c *call) signOut() error {
	values, err := c.values()
	if err != nil {
		return err
	}
	everywhere := values.Get("everywhere") == "1"
	if everywhere {
		err = c.cfg.Ledger.EndSessions(c.r.Context(), c.who.Name)
	} else {
		err = c.cfg.Ledger.EndSession(c.r.Context(), c.signed.ID)
	}
	if err != nil {
		return err
	}
	c.setCookie(false, "", -time.Second)
	return c.page(http.StatusOK, console.SignedOut{Everywhere: everywhere})
}
