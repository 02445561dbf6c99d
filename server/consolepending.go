package server

import (
	"encoding/json"
	"net/http"

	"hsmsign/api"
	"hsmsign/chain"
	"hsmsign/fault"
	"hsmsign/server/console"
)

// recordPages returns the routes of the pages Pending, Customers and Ledger.
func recordPages() []*route {
	return []*route{
		page("GET /console/pending", (*call).pendingPage),
		typed("GET /console/pending/{id}", 0, (*call).pendingOne),
		typed("POST /console/pending/{id}", 2*maxJSON, (*call).decideForm),
		page("GET /console/customers", (*call).customersPage),
		typed("GET /console/customers/new", 0, (*call).newCustomerPage),
		typed("POST /console/customers/new", 2*maxJSON, (*call).addCustomerForm),
		typed("GET /console/customers/{id}", 0, (*call).customerPage),
		typed("POST /console/customers/{id}", chain.MaxFile+maxJSON, (*call).attachForm),
		typed("GET /console/customers/{id}/edit", 0, (*call).editCustomerPage),
		typed("POST /console/customers/{id}/edit", 2*maxJSON, (*call).editCustomerForm),
		page("GET /console/customers/{id}/renew", (*call).renewPage),
		page("GET /console/download/customers/{file}", (*call).downloadCalendar),
		page("GET /console/ledger", (*call).ledgerPage),
		page("GET /console/ledger/{index}", (*call).entryPage),
		page("GET /console/download/entries/{file}", (*call).downloadProof),
		page("GET /console/download/ledger/{file}", (*call).downloadLedger),
	}
}

const pendingPath = console.Root + "pending"

// pendingPage shows what waits for approval.
func (c *call) pendingPage() error {
	values := c.r.URL.Query()
	list, err := get[api.List[api.Request]](c, query("/v1/pending", "limit", "200", "before", values.Get("before")))
	if err != nil {
		return err
	}
	frame, err := c.frame("Pending", pendingPath)
	if err != nil {
		return err
	}
	return c.show(http.StatusOK, "pending", frame, console.NewPendingList(c.r.URL, list))
}

// pendingOne shows one request that waits, and how its CSR differs from the previous one.
func (c *call) pendingOne() error {
	found, err := c.requestShown(c.r.PathValue("id"))
	if err != nil {
		return err
	}
	return c.showPending(http.StatusOK, found, "", nil)
}

// decisions are what is said after a decision, by the action.
var decisions = map[string]string{"approve": "Your approval is recorded.", "reject": "Your rejection is recorded."}

// showPending shows a request, with what was typed and why it was refused, if it was.
func (c *call) showPending(status int, found api.Request, reason string, problem *api.Problem) error {
	frame, err := c.frame("Request "+found.ID, pendingPath, console.Link{Path: pendingPath, Text: "Pending"})
	if err != nil {
		return err
	}
	if problem == nil {
		frame.Message = decisions[c.r.URL.Query().Get("done")]
	}
	view := console.NewPending(found, *frame.Me)
	view.Reason, view.Problem = reason, problem
	return c.show(status, "pendingone", frame, view)
}

// decideForm records a decision about what the page has shown.
func (c *call) decideForm() error {
	form, err := c.posted()
	if err != nil {
		return err
	}
	id, action := c.r.PathValue("id"), form.Get("action")
	if decisions[action] == "" {
		return fault.Usage.Errorf("the action is %q", fault.Clip(action, 32)).Fix("use the buttons of the page")
	}
	order, err := json.Marshal(api.Decision{
		Reason: form.Get("reason"), Customer: form.Get("customer"), CSRSHA256: form.Get("csr"), Vendor: form.Get("vendor"), Scope: form.Get("scope"), Name: form.Get("name"),
	})
	if err != nil {
		return err
	}
	answer, err := c.api(http.MethodPost, "/v1/requests/"+pathPart(id)+"/"+action, "application/json", order)
	if err != nil {
		return err
	}
	if answer.Problem == nil {
		return c.goTo(pendingPath + "/" + pathPart(id) + "?done=" + action)
	}
	found, err := c.requestShown(id)
	if err != nil {
		return err
	}
	c.err = answer.err // for the log
	return c.showPending(answer.Status, found, form.Get("reason"), answer.Problem)
}

// goTo sends the browser to another page after a form was accepted.
func (c *call) goTo(path string) error {
	c.w.Header().Set("Location", path)
	c.send(http.StatusSeeOther, nil)
	return nil
}
