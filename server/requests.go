package server

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"hsmsign/agent"
	"hsmsign/agent/policy"
	"hsmsign/api"
	"hsmsign/fault"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
	"hsmsign/request"
)

// rawTypes are the types of a body that is the CSR itself. curl sends the last one with --data-binary if it is not told another;
// a form of a web page is refused before (crossOrigin).
var rawTypes = []string{"", "application/pkcs10", "application/x-pem-file", "application/octet-stream", "text/plain", "application/x-www-form-urlencoded"}

// order reads what is to be signed, from a raw CSR and the query, or from a JSON body.
func (c *call) order() (api.SignOrder, error) {
	var o api.SignOrder
	query := c.r.URL.Query()
	if c.mediaType() == "application/json" {
		if err := c.decode(&o); err != nil {
			return o, err
		}
		return o, onlyQuery(query, "check")
	}
	if !slices.Contains(rawTypes, c.mediaType()) {
		return o, fault.WrongType.Errorf("the body has the type %q", fault.Clip(c.mediaType(), 64)).
			Fix("send the CSR itself (curl --data-binary @FILE), or JSON with the member csr")
	}
	if err := onlyQuery(query, "customer", "vendor", "format", "receipt", "check"); err != nil {
		return o, err
	}
	data, err := c.body()
	if err != nil {
		return o, err
	}
	o = api.SignOrder{CSR: string(data), Customer: query.Get("customer"), Vendor: query.Get("vendor"), Format: query.Get("format")}
	o.Receipt, err = boolean(query, "receipt")
	return o, err
}

// onlyQuery refuses parameters that are not known or are repeated: a typing error must not change what is signed.
func onlyQuery(query url.Values, known ...string) error {
	for name, values := range query {
		if !slices.Contains(known, name) || len(values) > 1 {
			return fault.Usage.Errorf("the parameter %q is unknown or repeated", fault.Clip(name, 32)).Fix("the parameters are " + strings.Join(known, ", "))
		}
	}
	return nil
}

func boolean(query url.Values, name string) (bool, error) {
	if !query.Has(name) {
		return false, nil
	}
	value, err := strconv.ParseBool(query.Get(name))
	if err != nil {
		return false, fault.Usage.Errorf("%s is %q", name, fault.Clip(query.Get(name), 32)).Fix("it is 1 or 0")
	}
	return value, nil
}

// sign answers POST /v1/requests.
func (c *call) sign() error {
	o, err := c.order()
	if err != nil {
		return err
	}
	check, err := boolean(c.r.URL.Query(), "check")
	if err != nil {
		return err
	}
	vendor, prepared, err := c.prepared(o)
	if err != nil {
		return err
	}
	result := api.SignResult{
		Status: api.StatusSigned, Customer: prepared.Order.Customer, Subject: api.Name(prepared.CSR.Parsed.Subject), CSRSHA256: api.SHA256(prepared.CSR.DER),
		KeySHA256: api.SHA256(prepared.CSR.Parsed.RawSubjectPublicKeyInfo), Findings: prepared.CSR.Findings, UseBefore: api.Time(prepared.UseBefore()),
	}
	if check {
		result.Status = api.StatusAllowed
		stored, err := vendor.Check(c.r.Context(), prepared)
		if stored {
			result.Status = api.StatusStored
		}
		if waiting, ok := errors.AsType[*record.Waiting](err); ok {
			result.Status, err = api.StatusPending, nil
			result.Approval = &api.Approval{Vendor: o.Vendor, Need: waiting.Need, Have: waiting.Have, Until: api.Time(waiting.Until), Given: []api.Approver{}}
		}
		if err != nil {
			return err
		}
		return c.json(http.StatusOK, result)
	}
	leave, err := c.turn()
	if err != nil {
		return err
	}
	issued, err := vendor.Issue(c.r.Context(), prepared)
	leave()
	if waiting, ok := errors.AsType[*record.Waiting](err); ok {
		return c.wait(result, waiting)
	}
	if err != nil {
		return err
	}
	c.request = issued.RequestID
	return c.issued(o, result, issued)
}

// prepared prepares an order, and measures what follows.
func (c *call) prepared(o api.SignOrder) (vendor *agent.Vendor, prepared *agent.Prepared, err error) {
	backend := ""
	c.r = c.r.WithContext(agent.WithObserver(c.r.Context(), c.observer(func() string { return backend })))
	if err = agent.Observe(c.r.Context(), stagePrepare, func(ctx context.Context) (err error) {
		vendor, prepared, err = c.prepare(ctx, o)
		return err
	}); err == nil {
		backend, c.csr = vendor.Backend(), record.SHA256(prepared.CSR.DER)
	}
	return vendor, prepared, err
}

// turn waits for the turn of the caller in the queue.
func (c *call) turn() (leave func(), err error) {
	err = agent.Observe(c.r.Context(), stageQueue, func(ctx context.Context) (err error) {
		leave, err = c.queue.enter(ctx, c.who.Name)
		return err
	})
	return leave, err
}

// prepare checks an order, whose customer is by default that of the caller.
func (c *call) prepare(ctx context.Context, o api.SignOrder) (*agent.Vendor, *agent.Prepared, error) {
	if o.Customer == "" {
		o.Customer = c.cred.Caller.Customer
	}
	if o.Customer == "" {
		return nil, nil, fault.Usage.Errorf("no customer given").Fix("name the customer: ?customer=NAME")
	}
	vendor, err := c.vendorOf(o.Vendor)
	if err != nil {
		return nil, nil, err
	}
	format := request.Base64
	if o.Format != "" {
		if format, err = request.ParseFormat(o.Format); err != nil {
			return nil, nil, fault.Usage.Errorf("format: %w", err).Fix("leave it out, or write format=plist")
		}
	}
	prepared, err := vendor.Prepare(ctx, c.who, agent.Order{CSR: []byte(o.CSR), Customer: o.Customer, Format: format})
	if fault.KindOf(err) == fault.Refused {
		if csr, unread := request.ParseCSR([]byte(o.CSR)); unread == nil {
			c.findings = csr.Findings
		}
	}
	return vendor, prepared, err
}

// vendorOf returns the vendor identity of a name; "": the active one. A caller is told the same of one that does not exist and of
// one that it may not use.
func (c *call) vendorOf(name string) (*agent.Vendor, error) {
	if name == "" {
		name = c.state.Active
	}
	vendor := c.state.Vendors[name]
	if vendor == nil || !c.cred.Caller.Role.Uses(name) {
		return nil, fault.Forbidden.Errorf("caller %s may not use the vendor identity %q", c.who.Name, fault.Clip(name, 64)).Rule(policy.RuleVendor).
			Fix("GET /v1/vendor lists the identities that it may use")
	}
	return vendor, nil
}

func (c *call) forbidden(what string) error {
	return fault.Forbidden.Errorf("caller %s may not %s: its role is %s", c.who.Name, what, c.cred.Caller.Role.Name).Rule(policy.RuleVerb).
		Fix("GET /v1/me says what it may")
}

// issued answers with a request: the file itself, or JSON.
func (c *call) issued(o api.SignOrder, result api.SignResult, issued *agent.Issued) error {
	c.w.Header().Set("Location", "/v1/requests/"+issued.RequestID)
	result.RequestID = issued.RequestID
	if issued.Stored {
		result.Status = api.StatusStored
	}
	asJSON := c.wantsJSON() || c.mediaType() == "application/json" || o.Receipt
	if !asJSON {
		c.file(issued.RequestID+".req", issued.Request)
		return nil
	}
	result.Request = string(issued.Request)
	if o.Receipt {
		id, err := record.ParseID(issued.RequestID)
		if err != nil {
			return err
		}
		receipt, err := c.cfg.Ledger.Prove(c.r.Context(), id)
		if err != nil {
			return err
		}
		result.Receipt = string(receipt)
	}
	return c.json(http.StatusOK, result)
}

// file answers with a file.
func (c *call) file(name string, data []byte) {
	c.w.Header().Set("Content-Type", "application/octet-stream")
	c.w.Header().Set("Content-Disposition", `attachment; filename="`+name+`"`)
	c.send(http.StatusOK, data)
}

// showRequest answers GET /v1/requests/{id}.
func (c *call) showRequest() error {
	found, err := c.requestOf(c.r.PathValue("id"))
	if err != nil {
		return err
	}
	found, problem, err := c.tryIssue(found)
	if err != nil {
		return err
	}
	if found.File != nil && c.reads(found) {
		permit := record.Permit{Request: found.ID.String(), Customer: found.CustomerID, Actor: c.who.Name, Identity: c.state.identity(found.Vendor)}
		if err := c.cfg.Ledger.Release(c.r.Context(), permit); err != nil {
			return err
		}
	}
	shown, err := c.whole(found)
	if err != nil {
		return err
	}
	shown.Problem = problem
	return c.json(http.StatusOK, shown)
}

// requestOf reads a request of a customer whose requests the caller may see. All others do not exist for it.
func (c *call) requestOf(text string) (*ledger.RequestRecord, error) {
	none := fault.NotFound.Errorf("there is no request %q", fault.Clip(text, 64)).Fix("the id is in the answer to POST /v1/requests")
	id, err := record.ParseID(text)
	if err != nil {
		return nil, none
	}
	found, err := c.cfg.Ledger.Request(c.r.Context(), id)
	if fault.KindOf(err) == fault.NotFound {
		return nil, none
	}
	if err != nil {
		return nil, err
	}
	if !c.seesRequest(found) {
		return nil, none
	}
	return found, nil
}

// listRequests answers GET /v1/requests.
func (c *call) listRequests() error {
	query, err := c.listQuery("customer", "state", "before", "limit")
	if err != nil {
		return err
	}
	query.Kind = c.r.URL.Query().Get("state")
	found, err := c.cfg.Ledger.Requests(c.r.Context(), query)
	if err != nil {
		return err
	}
	list := api.List[api.Request]{Items: make([]api.Request, 0, len(found))}
	for _, r := range found {
		list.Items = append(list.Items, c.describe(r))
	}
	if len(found) == query.Limit {
		list.Next = pageBefore(c.r.URL, found[len(found)-1].Entry)
	}
	return c.json(http.StatusOK, list)
}

// pageBefore returns the address of the page of older entries; "" after the first entry of the ledger, which has the number 0.
func pageBefore(u *url.URL, index int64) string {
	if index == 0 {
		return ""
	}
	return nextPage(u, "before", strconv.FormatInt(index, 10))
}

// nextPage returns an address with another value of a parameter.
func nextPage(u *url.URL, name, value string) string {
	query := u.Query()
	query.Set(name, value)
	return u.Path + "?" + query.Encode()
}

// listQuery reads the parameters of a list, whose entries are about customers that the caller may read about.
func (c *call) listQuery(known ...string) (q ledger.Query, err error) {
	values := c.r.URL.Query()
	if err := onlyQuery(values, known...); err != nil {
		return q, err
	}
	caller := c.cred.Caller
	if !caller.Role.Allows(policy.Read) {
		return q, c.forbidden("read the ledger")
	}
	if q.Customer = values.Get("customer"); q.Customer != "" && !caller.Read(q.Customer) {
		return q, noSuchCustomer(q.Customer)
	}
	if names, all := caller.Scope(); !all {
		q.Customers = append([]string{}, names...)
	}
	if q.Limit, err = number(values, "limit", 100, 1, 1000); err != nil {
		return q, err
	}
	before, err := number(values, "before", 0, 0, math.MaxInt)
	q.Before = int64(before)
	return q, err
}

func noSuchCustomer(name string) error {
	return fault.NotFound.Errorf("there is no customer %q", fault.Clip(name, 128)).Fix("GET /v1/customers lists those that you may read about")
}

func number(query url.Values, name string, def, lo, hi int) (int, error) {
	text := query.Get(name)
	if text == "" {
		return def, nil
	}
	value, err := strconv.Atoi(text)
	if err != nil || value < lo || value > hi {
		return 0, fault.Usage.Errorf("%s is %q", name, fault.Clip(text, 32)).Fix(fmt.Sprintf("it is a number from %d to %d", lo, hi))
	}
	return value, nil
}
