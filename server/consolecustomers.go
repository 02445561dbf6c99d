package server

import (
	"encoding/json"
	"net/http"
	"strings"

	"hsmsign/agent/policy"
	"hsmsign/api"
	"hsmsign/fault"
	"hsmsign/server/console"
)

const customersPath = console.Root + "customers"

// rowsPage is how many rows a page of the console has.
const rowsPage = "50"

// customersPage shows customers: the one whose push certificate expires first comes first.
func (c *call) customersPage() error {
	values := c.r.URL.Query()
	order := "expiry"
	if values.Get("sort") == "name" {
		order = "name"
	}
	list, err := get[api.List[api.Customer]](c, query("/v1/customers", "order", order, "match", values.Get("match"), "after", values.Get("after"), "limit", rowsPage))
	if err != nil {
		return err
	}
	frame, err := c.frame("Customers", customersPath)
	if err != nil {
		return err
	}
	return c.show(http.StatusOK, "customers", frame, console.NewCustomers(c.r.URL, list, c.cfg.Now()))
}

// customerShown returns the customer of the path as the API shows it.
func (c *call) customerShown() (api.Customer, error) {
	return get[api.Customer](c, "/v1/customers/"+pathPart(c.r.PathValue("id")))
}

// customerFrame returns the frame of a page about a customer.
func (c *call) customerFrame(title string, above ...console.Link) (console.Frame, error) {
	trail := append([]console.Link{{Path: customersPath, Text: "Customers"}}, above...)
	frame, err := c.frame(title, customersPath, trail...)
	if c.written.status == 0 && c.err == nil {
		frame.Message = map[string]string{"attached": "The push certificate is attached.", "added": "The customer is added.", "saved": "The changes are saved."}[c.r.URL.Query().Get("done")]
	}
	return frame, err
}

// customerPage shows one customer, with its history.
func (c *call) customerPage() error {
	found, err := c.customerShown()
	if err != nil {
		return err
	}
	return c.showCustomerPage(http.StatusOK, found, "", nil)
}

// showCustomerPage shows a customer, with the certificate that was typed and why it was refused, if it was.
func (c *call) showCustomerPage(status int, found api.Customer, text string, problem *api.Problem) error {
	frame, err := c.customerFrame(found.Name)
	if err != nil {
		return err
	}
	view := console.Customer{Customer: found, Expiry: console.NewExpiry(found, c.cfg.Now()), Text: text, Problem: problem}
	if frame.May("read") {
		requests, err := get[api.List[api.Request]](c, query("/v1/requests", "customer", found.Name, "limit", "10"))
		if err != nil {
			return err
		}
		entries, err := get[api.List[api.LedgerEntry]](c, query("/v1/entries", "customer", found.Name, "limit", "20"))
		if err != nil {
			return err
		}
		view.Requests, view.Entries, view.More = requests.Items, entries.Items, entries.Next != ""
	}
	return c.show(status, "customer", frame, view)
}

// attachForm attaches a push certificate, from a file or as it was pasted.
func (c *call) attachForm() error {
	form, err := c.posted()
	if err != nil {
		return err
	}
	found, err := c.customerShown()
	if err != nil {
		return err
	}
	data := []byte(form.Get("text"))
	switch {
	case len(form.Files) > 1 || len(form.Files) == 1 && len(data) > 0:
		return fault.Usage.Errorf("more than one certificate was sent").Fix("choose one file, or paste one certificate")
	case len(form.Files) == 1:
		data = form.Files[0].Data
	}
	answer, err := c.api(http.MethodPost, "/v1/customers/"+found.ID+"/push-certificates", "application/octet-stream", data)
	if err != nil {
		return err
	}
	if answer.Problem == nil {
		return c.goTo(customersPath + "/" + found.ID + "?done=attached")
	}
	c.err = answer.err // for the log
	return c.showCustomerPage(answer.Status, found, form.Get("text"), answer.Problem)
}

// newCustomerPage shows the form for a new customer.
func (c *call) newCustomerPage() error { return c.customerForm(http.StatusOK, console.CustomerForm{}) }

// editCustomerPage shows the form for a customer.
func (c *call) editCustomerPage() error {
	found, err := c.customerShown()
	if err != nil {
		return err
	}
	return c.customerForm(http.StatusOK, console.CustomerForm{ID: found.ID, Was: found, Now: found})
}

func (c *call) customerForm(status int, view console.CustomerForm) error {
	if !c.cred.Caller.Role.Allows(policy.Customers) {
		return c.forbidden("change customers")
	}
	title, above := "Add a customer", []console.Link(nil)
	if view.ID != "" {
		title, above = "Edit "+view.Was.Name, []console.Link{{Path: customersPath + "/" + view.ID, Text: view.Was.Name}}
	}
	frame, err := c.customerFrame(title, above...)
	if err != nil {
		return err
	}
	return c.show(status, "customerform", frame, view)
}

// addCustomerForm adds a customer.
func (c *call) addCustomerForm() error { return c.saveCustomer(http.MethodPost, "", "added") }

// editCustomerForm changes a customer.
func (c *call) editCustomerForm() error {
	found, err := c.customerShown()
	if err != nil {
		return err
	}
	return c.saveCustomer(http.MethodPatch, found.ID, "saved")
}

// saveCustomer adds or changes a customer as a form says it.
func (c *call) saveCustomer(method, id, done string) error {
	form, err := c.posted()
	if err != nil {
		return err
	}
	typed := func(prefix string) api.Customer {
		get := func(name string) string { return form.Get(prefix + name) }
		return api.Customer{Name: get("name"), Contact: get("contact"), Account: get("account"), Notes: get("notes")}
	}
	view := console.CustomerForm{ID: id, Was: typed("was-"), Now: typed("")}
	change := view.Change()
	if id != "" && change == (api.CustomerChange{}) {
		return c.goTo(customersPath + "/" + id)
	}
	body, err := json.Marshal(change)
	if err != nil {
		return err
	}
	path := "/v1/customers"
	if id != "" {
		path += "/" + id
	}
	answer, err := c.api(method, path, "application/json", body)
	if err != nil {
		return err
	}
	if answer.Problem != nil {
		c.err, view.Problem = answer.err, answer.Problem
		return c.customerForm(answer.Status, view)
	}
	var saved api.Customer
	if err := json.Unmarshal(answer.Body, &saved); err != nil {
		return err
	}
	return c.goTo(customersPath + "/" + saved.ID + "?done=" + done)
}

// renewPage says how the push certificate of a customer is renewed.
func (c *call) renewPage() error {
	found, err := c.customerShown()
	if err != nil {
		return err
	}
	frame, err := c.customerFrame("Renew the push certificate of "+found.Name, console.Link{Path: customersPath + "/" + found.ID, Text: found.Name})
	if err != nil {
		return err
	}
	return c.show(http.StatusOK, "renew", frame, console.Customer{Customer: found, Expiry: console.NewExpiry(found, c.cfg.Now())})
}

// downloadCalendar answers with the calendar of all customers, or with that of one, whose id is the name of the file.
func (c *call) downloadCalendar() error {
	name := c.r.PathValue("file")
	id, ok := strings.CutSuffix(name, ".ics")
	if !ok {
		return fault.NotFound.Errorf("there is no download %q", fault.Clip(name, 64)).Fix("the page Customers has the links")
	}
	path := "/v1/calendar"
	if id != "due" {
		found, err := get[api.Customer](c, "/v1/customers/"+pathPart(id))
		if err != nil {
			return err
		}
		id, path = found.ID, query(path, "customer", found.Name)
	}
	answer, err := c.api(http.MethodGet, path, "", nil)
	if err == nil {
		err = answer.err
	}
	if err != nil {
		return err
	}
	c.attachment(id+".ics", answer.Header.Get("Content-Type"), answer.Body)
	return nil
}

// attachment answers with a file of a type.
func (c *call) attachment(name, mediaType string, data []byte) {
	c.w.Header().Set("Content-Type", mediaType)
	c.w.Header().Set("Content-Disposition", `attachment; filename="`+name+`"`)
	c.send(http.StatusOK, data)
}
