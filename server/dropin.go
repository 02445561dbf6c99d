package server

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"time"

	"hsmsign/agent"
	"hsmsign/agent/policy"
	"hsmsign/api"
	"hsmsign/fault"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
	"hsmsign/lifecycle/mdmcert"
	"hsmsign/server/authn"
	"hsmsign/server/authn/awsiam"
	"hsmsign/server/dropin"
)

// DropIn says which wire forms of other products a service answers.
type DropIn struct {
	Fleet, Zentral, MDMCert bool
}

// The routes of drop-ins, as their URLs are configured on the other side.
const (
	FleetPath      = "/api/v1/deliver-apple-csr"
	OlderFleetPath = "/api/v1/get_signed_apns_csr"
	ZentralPath    = "/api/v1/zentral"
	MDMCertPath    = "/api/v1/signrequest"
	TokenPrefix    = "/t/{token}" // of Fleet's paths: its base URL may end with a token
)

// How long the clients wait, and some time for the network less: Fleet and Zentral 10 seconds, hsmsign mdmcert request 30.
const (
	clientWait  = 8 * time.Second
	mdmcertWait = 25 * time.Second
)

// dropIns returns the routes of drop-ins.
func dropIns() []*route {
	fleet := func(path string, claim func(*call, string) error) *route {
		return &route{
			pattern: "POST " + path, body: dropin.MaxBody, rated: true, within: clientWait, on: func(s *State) bool { return s.DropIn.Fleet },
			claim: claim, form: line(http.StatusForbidden), do: (*call).fleet,
		}
	}
	return []*route{
		fleet(FleetPath, nil), fleet(OlderFleetPath, nil), fleet(TokenPrefix+FleetPath, (*call).pathCaller), fleet(TokenPrefix+OlderFleetPath, (*call).pathCaller),
		{
			pattern: "POST " + ZentralPath, body: dropin.MaxBody, rated: true, within: clientWait, on: func(s *State) bool { return s.DropIn.Zentral },
			claim: (*call).zentralCaller, form: line(http.StatusConflict), do: (*call).zentral,
		},
		{
			pattern: "POST " + MDMCertPath, body: mdmcert.MaxOrder, rated: true, within: mdmcertWait, on: func(s *State) bool { return s.DropIn.MDMCert },
			claim: (*call).mdmcertCaller, form: mdmcertFailure, do: (*call).mdmcert,
		},
	}
}

// form writes a refusal as another product reads it. The text of the problem is what the caller may be told.
type form func(c *call, p api.Problem)

// line returns the form of one plain line. pending is the status of a request that others have to approve.
func line(pending int) form {
	return func(c *call, p api.Problem) {
		text := dropin.Line(p.Detail, p.Fix)
		if waiting, ok := errors.AsType[*record.Waiting](c.err); ok {
			p.Status, text = pending, dropin.Waiting(waiting.ID.String())
		}
		c.w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		c.send(p.Status, []byte(text))
	}
}

// mdmcertFailure is the form of mdmcert.download: its clients read the reason of an answer with status 200 only.
func mdmcertFailure(c *call, p api.Problem) {
	c.w.Header().Del("WWW-Authenticate") // of status 401
	c.raw(mdmcert.Failure(dropin.Line(p.Detail, p.Fix)))
}

// raw answers with JSON as it is.
func (c *call) raw(data []byte) {
	c.w.Header().Set("Content-Type", "application/json")
	c.send(http.StatusOK, data)
}

// pathCaller finds the caller by the token in the path.
func (c *call) pathCaller(kind string) error {
	c.addToken(c.r.PathValue("token"))
	return c.identify(kind)
}

// addToken adds a token to the credentials of the request, as the password of Basic: that is a token of this program and nothing
// else. With another Authorization header it is one credential too many.
func (c *call) addToken(token string) {
	c.r.Header.Add("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(":"+token)))
}

// mdmcertCaller finds the caller by the token in the body.
func (c *call) mdmcertCaller(kind string) error {
	data, leave, err := c.strange(kind, mdmcert.MaxOrder)
	if err != nil {
		return err
	}
	defer leave()
	key, err := dropin.Key(data)
	if err != nil {
		return err
	}
	c.addToken(key)
	return c.identify(kind)
}

// zentralCaller finds the caller by the credentials of the request, or, if there are none, by what Zentral signed.
func (c *call) zentralCaller(kind string) error {
	if c.r.Header.Get("Authorization") != "" || kind == authn.Unix || len(c.conn.Peer) > 0 || c.state.AWS == nil {
		return c.identify(kind)
	}
	data, leave, err := c.strange(kind, dropin.MaxBody)
	if err != nil {
		return err
	}
	defer leave()
	order, err := dropin.DecodeZentral(data)
	if err != nil {
		return err
	}
	if order.Signed == nil {
		return c.identify(kind)
	}
	var signed awsiam.Signed
	if err := signed.UnmarshalJSON(order.Signed); err != nil {
		return c.identified(kind, policy.Credential{}, &authn.Refusal{Reason: fmt.Errorf("iam_request: %w", err)})
	}
	found, err := c.state.checker(c.cfg.Now()).Signed(c.r.Context(), signed, c.conn, true)
	return c.identified(kind, found, err)
}

// fleet answers Fleet.
func (c *call) fleet() error {
	if err := dropin.CheckFleetQuery(c.r.URL.Query()); err != nil {
		return err
	}
	data, err := c.body()
	if err != nil {
		return err
	}
	csr, err := dropin.DecodeFleet(data)
	if err != nil {
		return err
	}
	issued, err := c.signFor(csr)
	if err == nil {
		c.raw(dropin.EncodeFleet(issued.Request))
	}
	return err
}

// zentral answers Zentral.
func (c *call) zentral() error {
	data, err := c.body()
	if err != nil {
		return err
	}
	order, err := dropin.DecodeZentral(data)
	if err != nil {
		return err
	}
	issued, err := c.signFor(order.CSR)
	if err == nil {
		c.raw(dropin.EncodeZentral(issued.Request))
	}
	return err
}

// mdmcert answers clients of mdmcert.download. The request itself is mailed.
func (c *call) mdmcert() error {
	data, err := c.body()
	if err != nil {
		return err
	}
	order, _, err := mdmcert.ParseOrder(data)
	if err != nil {
		return err
	}
	found, err := c.cfg.Ledger.Customers(c.r.Context(), c.customer())
	if err != nil && fault.KindOf(err) != fault.NotFound {
		return err
	}
	var registered string
	if err == nil {
		registered = found[0].Contact
	}
	if _, err = dropin.CheckAddress(registered, order.Email); err != nil {
		return err
	}
	var about record.ID
	issued, err := c.signFor(order.CSR)
	if waiting, ok := errors.AsType[*record.Waiting](err); ok { // the mail follows the approval
		about, err = waiting.ID, nil
	} else if err == nil {
		about, err = record.ParseID(issued.RequestID)
	}
	if err != nil {
		return err
	}
	c.request = about.String()
	message := ledger.Message{Kind: ledger.MessageMDMCert, About: about, Customer: found[0].ID, Payload: order.EncryptFor}
	if err := c.cfg.Ledger.Post(c.r.Context(), message, dropin.PerDay); err != nil {
		return err
	}
	c.notifier.Wake()
	c.raw(mdmcert.Success())
	return nil
}

// deliveries makes the mails that answer orders for mdmcert.download.
func (s *Server) deliveries() dropin.Deliveries {
	return dropin.Deliveries{Ledger: s.cfg.Ledger, Identity: func(vendor record.Hash) string { return s.state.Load().identity(vendor) }, Now: s.cfg.Now}
}

// customer returns the customer of the credential: nothing that a drop-in sends chooses another one.
func (c *call) customer() string { return cmp.Or(c.cred.Caller.Customer, c.cred.Caller.Name) }

// signFor has a CSR signed for the customer of the credential.
func (c *call) signFor(csr []byte) (*agent.Issued, error) {
	vendor, prepared, err := c.prepared(api.SignOrder{CSR: string(csr), Customer: c.customer()})
	if err != nil {
		return nil, err
	}
	leave, err := c.turn()
	if err != nil {
		return nil, err
	}
	issued, err := c.inTime(leave, func(ctx context.Context) (*agent.Issued, error) { return vendor.Issue(ctx, prepared) })
	if err == nil {
		c.request = issued.RequestID
	} else if fault.KindOf(err) == fault.Pending {
		c.notifier.Wake()
	}
	return issued, err
}
