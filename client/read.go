package client

import (
	"context"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"

	"hsmsign/api"
	"hsmsign/fault"
)

// Query selects requests or entries. The zero value selects all that the caller may read.
type Query struct {
	Customer string // name of the customer; "": all
	Kind     string // state of a request, or kind of an entry; "": all
	Before   int64  // only those before this entry; 0: from the newest
	Page     int    // how many the service sends at once, 1 to 1000; 0: 100
}

func (q Query) values(kind string) url.Values {
	values := url.Values{}
	set := func(name, value string, is bool) {
		if is {
			values.Set(name, value)
		}
	}
	set("customer", q.Customer, q.Customer != "")
	set(kind, q.Kind, q.Kind != "")
	set("before", strconv.FormatInt(q.Before, 10), q.Before != 0)
	set("limit", strconv.Itoa(q.Page), q.Page != 0)
	return values
}

// Requests returns the requests that a query selects, the newest first. It asks the service for a page when the one before is
// used up. An error is the last element.
func (c *Client) Requests(ctx context.Context, q Query) iter.Seq2[api.Request, error] {
	return pages[api.Request](ctx, c, "/v1/requests", q.values("state"))
}

// Entries returns the entries of the ledger that a query selects; see Requests.
func (c *Client) Entries(ctx context.Context, q Query) iter.Seq2[api.LedgerEntry, error] {
	return pages[api.LedgerEntry](ctx, c, "/v1/entries", q.values("kind"))
}

func pages[T any](ctx context.Context, c *Client, path string, query url.Values) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var none T
		for {
			var page api.List[T]
			if err := c.json(ctx, get(path, query), &page); err != nil {
				yield(none, err)
				return
			}
			for _, item := range page.Items {
				if !yield(item, nil) {
					return
				}
			}
			if page.Next == "" {
				return
			}
			next, err := following(path, query, page.Next)
			if err != nil {
				yield(none, err)
				return
			}
			query = next
		}
	}
}

// following returns the query of the page after one. It is another query of the same list, and its entries are older.
func following(path string, query url.Values, next string) (url.Values, error) {
	u, err := url.Parse(next)
	if err == nil && (u.IsAbs() || u.Host != "" || u.Path != path) {
		err = fmt.Errorf("it is not a page of %s", path)
	}
	if err != nil {
		return nil, fault.Unavailable.Errorf("the next page of the service's answer %q: %s", fault.Clip(next, 128), fault.Clip(err.Error(), 128))
	}
	number := func(v url.Values) int64 {
		n, _ := strconv.ParseInt(v.Get("before"), 10, 64) // 0 if there is none
		return n
	}
	values := u.Query()
	if to, from := number(values), number(query); to <= 0 || from != 0 && to >= from {
		return nil, fault.Unavailable.Errorf("the next page of the service's answer %q is not one of older entries", fault.Clip(next, 128))
	}
	return values, nil
}

// Request returns a request by its id, with the file if it was issued.
func (c *Client) Request(ctx context.Context, id string) (*api.Request, error) {
	return one[api.Request](ctx, c, "/v1/requests/"+url.PathEscape(id), nil)
}

// Entry returns an entry of the ledger by its index.
func (c *Client) Entry(ctx context.Context, index int64) (*api.LedgerEntry, error) {
	return one[api.LedgerEntry](ctx, c, "/v1/entries/"+strconv.FormatInt(index, 10), nil)
}

// Vendor returns the vendor identities that the caller may use.
func (c *Client) Vendor(ctx context.Context) ([]api.Vendor, error) {
	return list[api.Vendor](ctx, c, "/v1/vendor", nil)
}

// Status returns the state of the service.
func (c *Client) Status(ctx context.Context) (*api.ServiceStatus, error) {
	return one[api.ServiceStatus](ctx, c, "/v1/status", nil)
}

// Me returns what the service knows of the caller: its role, its limits, and what is left of them.
func (c *Client) Me(ctx context.Context) (*api.Me, error) {
	return one[api.Me](ctx, c, "/v1/me", nil)
}

// Due returns what has to be done within so many days, 0 to 3650.
func (c *Client) Due(ctx context.Context, days int) ([]api.LedgerDue, error) {
	return list[api.LedgerDue](ctx, c, "/v1/due", url.Values{"within": {strconv.Itoa(days)}})
}

// Customers returns the customers that the caller may read about.
func (c *Client) Customers(ctx context.Context) ([]api.Customer, error) {
	return list[api.Customer](ctx, c, "/v1/customers", nil)
}

// Customer returns a customer by its id.
func (c *Client) Customer(ctx context.Context, id string) (*api.Customer, error) {
	return one[api.Customer](ctx, c, "/v1/customers/"+url.PathEscape(id), nil)
}

// Ready returns whether the service can sign. It needs no credentials. The error is not nil if the service does not answer.
func (c *Client) Ready(ctx context.Context) (*api.Ready, error) {
	x := get("/readyz", nil)
	x.anybody, x.states = true, []int{http.StatusServiceUnavailable}
	var v api.Ready
	if err := c.json(ctx, x, &v); err != nil {
		return nil, err
	}
	return &v, nil
}

func one[T any](ctx context.Context, c *Client, path string, query url.Values) (*T, error) {
	var v T
	if err := c.json(ctx, get(path, query), &v); err != nil {
		return nil, err
	}
	return &v, nil
}

func list[T any](ctx context.Context, c *Client, path string, query url.Values) ([]T, error) {
	var v api.List[T]
	err := c.json(ctx, get(path, query), &v)
	return v.Items, err
}

// The forms of Export.
const (
	ExportJSON = "json" // one object a line, as hsmsign ledger export prints it
	ExportCSV  = "csv"
)

// Export writes every entry that the caller may read, the oldest first. What was written is not complete if there is an error. It
// is not sent again.
func (c *Client) Export(ctx context.Context, w io.Writer, form string) error {
	want := map[string]string{ExportJSON: "application/x-ndjson", ExportCSV: "text/csv"}[form]
	if want == "" {
		return fault.Usage.Errorf("the form of an export is %q", fault.Clip(form, 32)).Fix("it is json or csv")
	}
	x := exchange{method: http.MethodGet, path: "/v1/export", query: url.Values{"as": {form}}, want: want, limit: exportWait}
	return c.call(ctx, x, func(body io.Reader) error {
		_, err := io.Copy(w, body)
		return err
	})
}

// Checkpoint returns the newest checkpoint of the ledger, a signed note. It is not verified.
func (c *Client) Checkpoint(ctx context.Context) ([]byte, error) {
	return c.bytes(ctx, "/v1/checkpoint", typeText)
}

// Proof returns the proof that a request is in the ledger. hsmsign ledger verify --proof verifies it.
func (c *Client) Proof(ctx context.Context, id string) ([]byte, error) {
	return c.bytes(ctx, "/v1/proof/"+url.PathEscape(id), typeFile)
}
