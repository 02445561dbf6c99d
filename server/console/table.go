package console

import (
	"cmp"
	"net/url"
	"slices"
	"strings"
)

// Column is a column of a table.
type Column struct {
	Title  string
	Key    string // of the parameter sort; "": the table cannot be sorted by it
	Number bool   // aligned at the end
}

// Heading is the heading of a column.
type Heading struct {
	Title  string
	Path   string // of the same view, sorted by this column; "": it cannot be
	Sorted string // aria-sort: "ascending", "descending", or "" if the view is sorted by another column
	Number bool
}

// Headings returns the headings of a table that is shown at an address. The parameter sort of the address is the key of a column, with a
// minus before it for descending; without it, the view is sorted by def, which has the same form.
func Headings(u *url.URL, def string, columns ...Column) []Heading {
	sorted := cmp.Or(u.Query().Get("sort"), def)
	headings := make([]Heading, 0, len(columns))
	for _, c := range columns {
		h := Heading{Title: c.Title, Number: c.Number}
		if c.Key != "" {
			next := c.Key
			switch sorted {
			case c.Key:
				h.Sorted, next = "ascending", "-"+c.Key
			case "-" + c.Key:
				h.Sorted = "descending"
			}
			h.Path = With(u, "sort", next, "before", "", "after", "")
		}
		headings = append(headings, h)
	}
	return headings
}

// Sort sorts items as an address says (see Headings), by one of the orders; of an unknown key it sorts by def. Equal items stay as they are.
func Sort[T any](u *url.URL, def string, items []T, orders map[string]func(a, b T) int) {
	key := cmp.Or(u.Query().Get("sort"), def)
	if orders[strings.TrimPrefix(key, "-")] == nil {
		key = def
	}
	order := orders[strings.TrimPrefix(key, "-")]
	if order == nil {
		return
	}
	slices.SortStableFunc(items, func(a, b T) int {
		if strings.HasPrefix(key, "-") {
			return order(b, a)
		}
		return order(a, b)
	})
}

// With returns an address with other values of parameters; an empty value removes one.
func With(u *url.URL, pairs ...string) string {
	query := u.Query()
	for i := 0; i+1 < len(pairs); i += 2 {
		query.Del(pairs[i])
		if pairs[i+1] != "" {
			query.Set(pairs[i], pairs[i+1])
		}
	}
	if len(query) == 0 {
		return u.Path
	}
	return u.Path + "?" + query.Encode()
}

// Pager is the links between pages of a list. An empty path is no link.
type Pager struct{ First, Next string }

// NewPager returns the pager of a list that is shown at an address. next is the path of the next page as the API says it (api.List), whose
// parameter "before" or "after" the view gets too.
func NewPager(u *url.URL, next string) Pager {
	var p Pager
	if u.Query().Has("before") || u.Query().Has("after") {
		p.First = With(u, "before", "", "after", "")
	}
	if parsed, err := url.Parse(next); err == nil && next != "" {
		query := parsed.Query()
		p.Next = With(u, "before", query.Get("before"), "after", query.Get("after"))
	}
	return p
}
