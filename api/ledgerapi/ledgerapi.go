// Package ledgerapi fills the shapes of package api from what package ledger returns. It is apart from api because agent, which
// imports api, must not know a ledger. The functions are safe for concurrent use.
package ledgerapi

import (
	"time"

	"hsmsign/api"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
)

// NewCustomer describes a customer.
func NewCustomer(c ledger.CustomerRecord) api.Customer {
	shown := api.Customer{
		Name: c.Name, Contact: c.Contact, Account: c.Account, Notes: c.Notes, ID: c.ID.String(), Entry: c.Entry, Changed: c.Changed.Format(time.RFC3339),
	}
	if p := c.Push; p != nil {
		shown.Push = &api.CustomerPush{Topic: p.Topic, NotAfter: api.Time(p.NotAfter), SHA256: p.SHA256, KeySHA256: p.SPKI}
	}
	return shown
}

// NewFreeze describes what is frozen.
func NewFreeze(f ledger.Freeze) api.Freeze {
	return api.Freeze{Scope: f.Scope, Name: f.Name, Reason: f.Reason, Since: api.Time(f.Since), Actor: f.Actor, Entry: f.Entry}
}

// NewRequest describes a request.
func NewRequest(r ledger.RequestRecord) api.Request {
	return api.Request{
		ID: r.ID.String(), Customer: r.Customer, State: r.State, Actor: r.Actor, Entry: r.Entry, Begun: api.Time(r.Begun), Changed: api.Time(r.Changed),
		CSRSHA256: r.CSR.String(), KeySHA256: r.SPKI.String(), UseBefore: api.Time(r.UseBefore), Request: string(r.File),
	}
}

// NewApproval describes what other people must approve; have is how many have, of those that count. nil: nobody must.
func NewApproval(r ledger.RequestRecord, have int) *api.Approval {
	a := r.Approval
	if a == nil {
		return nil
	}
	shown := &api.Approval{
		Event: a.Event, Vendor: a.Vendor, Need: a.Need, Have: have, Until: api.Time(a.Until), Given: []api.Approver{},
		Requester: api.Requester{Caller: a.Caller, Credential: a.Credential, Person: a.Person, Owners: a.Owners},
	}
	for _, one := range a.Given {
		shown.Given = append(shown.Given, newApprover(one))
	}
	if a.Rejected != nil {
		rejected := newApprover(*a.Rejected)
		shown.Rejected = &rejected
	}
	if a.Freeze.Scope != "" {
		shown.Freeze = &api.FreezeOrder{Scope: a.Freeze.Scope, Name: a.Freeze.Name, Reason: a.Freeze.Reason}
	}
	return shown
}

func newApprover(a record.Approval) api.Approver {
	return api.Approver{Caller: a.Caller, Person: a.Person, Time: api.Time(a.Time), Reason: a.Reason, Entry: a.Entry}
}

// Change returns a customer with what a change sets.
func Change(c ledger.Customer, change api.CustomerChange) ledger.Customer {
	for _, f := range []struct {
		to   *string
		from *string
	}{{&c.Name, change.Name}, {&c.Contact, change.Contact}, {&c.Account, change.Account}, {&c.Notes, change.Notes}} {
		if f.from != nil {
			*f.to = *f.from
		}
	}
	return c
}
