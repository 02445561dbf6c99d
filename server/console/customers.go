package console

import (
	"math"
	"net/url"
	"time"

	"hsmsign/api"
)

// soonDays is how many days before its end a certificate "expires soon".
const soonDays = 30

// Expiry is when a customer's push certificate expires.
type Expiry struct {
	At    time.Time // zero: there is no push certificate
	Days  int       // that are left; negative: it has expired so many days ago
	State string    // "expired", "expires soon", "valid", or "no push certificate"
}

// NewExpiry returns when the push certificate of a customer expires.
func NewExpiry(c api.Customer, now time.Time) Expiry {
	if c.Push == nil {
		return Expiry{State: "no push certificate"}
	}
	at, err := time.Parse(time.RFC3339, c.Push.NotAfter)
	if err != nil {
		return Expiry{State: "no push certificate"}
	}
	e := Expiry{At: at, Days: int(math.Floor(at.Sub(now).Hours() / 24)), State: "valid"}
	switch {
	case !at.After(now):
		e.State = "expired"
	case e.Days < soonDays:
		e.State = "expires soon"
	}
	return e
}

// Left returns in words how long it is valid.
func (e Expiry) Left() string {
	switch {
	case e.At.IsZero():
		return ""
	case e.State == "expired" && e.Days >= -1:
		return "expired today"
	case e.Days < -1:
		return "expired " + counted(-e.Days-1, "day", "days") + " ago"
	}
	return Days(e.Days)
}

// CustomerRow is a customer in a list.
type CustomerRow struct {
	api.Customer
	Expiry Expiry
}

// Customers is the view of the page Customers.
type Customers struct {
	Headings []Heading
	Rows     []CustomerRow
	Match    string
	ByName   bool
	Timeline *Timeline // nil: nobody on the page has a push certificate
	Pager    Pager
}

// NewCustomers returns the view of a page of customers.
func NewCustomers(u *url.URL, list api.List[api.Customer], now time.Time) Customers {
	v := Customers{Match: u.Query().Get("match"), ByName: u.Query().Get("sort") == "name", Pager: NewPager(u, list.Next)}
	sorted := map[bool]string{true: "ascending"}
	v.Headings = []Heading{
		{Title: "Customer", Path: With(u, "sort", "name", "after", ""), Sorted: sorted[v.ByName]},
		{Title: "Push certificate expires", Path: With(u, "sort", "", "after", ""), Sorted: sorted[!v.ByName]},
		{Title: "Apple Account"}, {Title: "Contact"},
	}
	for _, c := range list.Items {
		v.Rows = append(v.Rows, CustomerRow{c, NewExpiry(c, now)})
	}
	v.Timeline = NewTimeline(v.Rows, now)
	return v
}

// Customer is the view of the page of one customer.
type Customer struct {
	api.Customer
	Expiry   Expiry
	Requests []api.Request     // nil: the role may not read them
	Entries  []api.LedgerEntry // likewise
	More     bool              // there are more entries
	Text     string            // certificate that was typed
	Problem  *api.Problem      // why the certificate was not attached
}

// CustomerForm is the view of the pages to add and to edit a customer.
type CustomerForm struct {
	ID       string       // "": a new one
	Was, Now api.Customer // what the form was loaded with, and what was typed
	Problem  *api.Problem // why it was not saved
}

// Change returns what the form changes. A member that the person did not change is absent, so that what others changed meanwhile stays.
func (f CustomerForm) Change() api.CustomerChange {
	changed := func(was, now string) *string {
		if was == now {
			return nil
		}
		return &now
	}
	return api.CustomerChange{
		Name: changed(f.Was.Name, f.Now.Name), Contact: changed(f.Was.Contact, f.Now.Contact), Account: changed(f.Was.Account, f.Now.Account), Notes: changed(f.Was.Notes, f.Now.Notes),
	}
}
