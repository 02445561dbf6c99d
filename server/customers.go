package server

import (
	"net/http"

	"hsmsign/agent/policy"
	"hsmsign/api"
	"hsmsign/api/ledgerapi"
	"hsmsign/chain"
	"hsmsign/fault"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
	"hsmsign/lifecycle/pushcert"
)

// listCustomers answers GET /v1/customers.
func (c *call) listCustomers() error {
	values := c.r.URL.Query()
	if err := onlyQuery(values, "order", "match", "after", "limit"); err != nil {
		return err
	}
	role := c.cred.Caller.Role
	if !role.Allows(policy.Read) && !role.Allows(policy.Customers) {
		return c.forbidden("read about customers")
	}
	limit, err := number(values, "limit", 100, 1, 1000)
	if err != nil {
		return err
	}
	order := values.Get("order")
	if order != "" && order != "name" && order != "expiry" {
		return fault.Usage.Errorf("order is %q", fault.Clip(order, 32)).Fix("it is name or expiry")
	}
	query := ledger.CustomerQuery{Match: values.Get("match"), ByExpiry: order == "expiry", After: values.Get("after"), Limit: limit}
	if !role.Covers("") {
		query.Names = append([]string{}, role.Customers...)
	}
	found, next, err := c.cfg.Ledger.CustomerPage(c.r.Context(), query)
	if err != nil {
		return err
	}
	list := api.List[api.Customer]{Items: make([]api.Customer, 0, len(found))}
	for _, customer := range found {
		list.Items = append(list.Items, ledgerapi.NewCustomer(customer))
	}
	if next != "" {
		list.Next = nextPage(c.r.URL, "after", next)
	}
	return c.json(http.StatusOK, list)
}

// sees returns whether the caller may read about a customer, or change it.
func (c *call) sees(name string) bool {
	_, err := c.cred.Caller.Manage(name)
	return err == nil || c.cred.Caller.Read(name)
}

// customerOf returns the customer of the path; one that the caller may not see does not exist for it.
func (c *call) customerOf() (*ledger.CustomerRecord, error) {
	text := c.r.PathValue("id")
	none := fault.NotFound.Errorf("there is no customer %q", fault.Clip(text, 64)).Fix("GET /v1/customers lists the ids")
	id, err := record.ParseID(text)
	if err != nil {
		return nil, none
	}
	found, err := c.cfg.Ledger.Customer(c.r.Context(), id)
	if fault.KindOf(err) == fault.NotFound || err == nil && !c.sees(found.Name) {
		return nil, none
	}
	return found, err
}

// showCustomer answers GET /v1/customers/{id}.
func (c *call) showCustomer() error {
	found, err := c.customerOf()
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, ledgerapi.NewCustomer(*found))
}

// addCustomer answers POST /v1/customers.
func (c *call) addCustomer() error {
	var change api.CustomerChange
	if err := c.decode(&change); err != nil {
		return err
	}
	customer := ledgerapi.Change(ledger.Customer{}, change)
	if err := c.manage(customer.Name); err != nil {
		return err
	}
	if err := c.cfg.Ledger.AddCustomer(c.r.Context(), c.who.Name, c.who.Channel, customer); err != nil {
		return err
	}
	return c.changed(http.StatusCreated, customer.Name)
}

func (c *call) manage(name string) error {
	_, err := c.cred.Caller.Manage(name)
	return err
}

// changed answers with a customer that was changed.
func (c *call) changed(status int, name string) error {
	found, err := c.cfg.Ledger.Customers(c.r.Context(), name)
	if err != nil {
		return err
	}
	c.w.Header().Set("Location", "/v1/customers/"+found[0].ID.String())
	return c.json(status, ledgerapi.NewCustomer(found[0]))
}

// editCustomer answers PATCH /v1/customers/{id}.
func (c *call) editCustomer() error {
	found, err := c.customerOf()
	if err != nil {
		return err
	}
	var change api.CustomerChange
	if err := c.decode(&change); err != nil {
		return err
	}
	if change == (api.CustomerChange{}) {
		return fault.Usage.Errorf("the body changes nothing").Fix("send the members to change: name, contact, account, notes")
	}
	for _, name := range []string{found.Name, ledgerapi.Change(found.Customer, change).Name} {
		if err := c.manage(name); err != nil {
			return err
		}
	}
	var after ledger.Customer
	if err := c.cfg.Ledger.EditCustomer(c.r.Context(), c.who.Name, c.who.Channel, found.Name, func(before ledger.Customer) ledger.Customer {
		after = ledgerapi.Change(before, change)
		return after
	}); err != nil {
		return err
	}
	return c.changed(http.StatusOK, after.Name)
}

// attach answers POST /v1/customers/{id}/push-certificates.
func (c *call) attach() error {
	found, err := c.customerOf()
	if err != nil {
		return err
	}
	if err := c.manage(found.Name); err != nil {
		return err
	}
	data, err := c.body()
	if err != nil {
		return err
	}
	cert, err := pushcert.ParseCertificate(data)
	if err != nil {
		return err
	}
	if err := c.cfg.Ledger.Attach(c.r.Context(), c.who.Name, c.who.Channel, found.Name, ledger.Push{
		Topic: cert.Topic, NotAfter: cert.NotAfter.UTC(), SHA256: api.SHA256(cert.Raw), SPKI: chain.SPKISHA256(cert.PublicKey),
	}); err != nil {
		return err
	}
	return c.json(http.StatusCreated, api.NewCertificate(cert.Certificate, c.cfg.Now()))
}
