package console

import (
	"cmp"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"hsmsign/api"
)

// PendingList is the view of the page Pending.
type PendingList struct {
	Headings []Heading
	Items    []api.Request
	Part     bool // there are more pages, and only this one is sorted
	Pager    Pager
}

// NewPendingList returns the view of a page of what waits, sorted as its address says.
func NewPendingList(u *url.URL, list api.List[api.Request]) PendingList {
	orders := map[string]func(a, b api.Request) int{
		"asked":    func(a, b api.Request) int { return cmp.Compare(a.Begun, b.Begun) },
		"customer": func(a, b api.Request) int { return strings.Compare(a.Customer, b.Customer) },
		"by": func(a, b api.Request) int {
			return strings.Compare(a.Approval.Requester.Caller, b.Approval.Requester.Caller)
		},
		"until": func(a, b api.Request) int { return cmp.Compare(a.Approval.Until, b.Approval.Until) },
	}
	items := slices.DeleteFunc(slices.Clone(list.Items), func(r api.Request) bool { return r.Approval == nil })
	Sort(u, "until", items, orders)
	return PendingList{
		Headings: Headings(u, "until", Column{Title: "What"}, Column{Title: "Customer", Key: "customer"}, Column{Title: "Asked by", Key: "by"},
			Column{Title: "Asked", Key: "asked"}, Column{Title: "Approvals"}, Column{Title: "Expires", Key: "until"}),
		Items: items, Part: list.Next != "", Pager: NewPager(u, list.Next),
	}
}

// Pending is the view of one request that waits for approval, or was decided.
type Pending struct {
	api.Request
	Compared Comparison
	Waits    bool         // people can still decide
	Own      string       // why the signed-in person may not decide although the role may; "": it may
	Reason   string       // that was typed
	Problem  *api.Problem // why the decision was not recorded
}

// NewPending returns the view of a request for the person who is signed in.
func NewPending(r api.Request, me api.Me) Pending {
	p := Pending{Request: r, Waits: r.State == "pending" || r.State == "approved", Compared: Compare(r)}
	if a := r.Approval; a != nil {
		asked := a.Requester
		switch {
		case me.Person == "":
			p.Own = "You are signed in as a machine. A person must decide."
		case asked.Caller == me.Caller || asked.Person == me.Person:
			p.Own = "You asked for it yourself. Another person must decide."
		case slices.Contains(asked.Owners, me.Person):
			p.Own = "You own the machine that asked for it. Another person must decide."
		case slices.ContainsFunc(a.Given, func(g api.Approver) bool { return g.Person == me.Person }):
			p.Own = "You have approved it. Another person must approve it too."
		}
	}
	return p
}

// Event returns in words what other people must approve.
func (p Pending) Event() string { return Event(p.Approval) }

// events are what must be approved, in words.
var events = map[string]string{
	"new-customer": "a request of a new customer", "new-key": "a request with a new key of a known customer",
	"same-key": "a renewal with the same key", "unfreeze": "the end of a freeze",
}

// Event returns in words what other people must approve.
func Event(a *api.Approval) string {
	if a == nil {
		return "nothing"
	}
	return cmp.Or(events[a.Event], a.Event)
}

// Difference is one fact of a CSR, and what it was in the previous one.
type Difference struct {
	What, Before, Now string
	Hash              bool // the values are hashes
}

// Same returns whether it did not change.
func (d Difference) Same() bool { return d.Before == d.Now }

// Comparison is a CSR beside the previous one of the customer.
type Comparison struct {
	Verdict  string // in one sentence
	First    bool   // there is no previous one
	Changed  bool   // something other than the CSR's own hash changed
	Facts    []Difference
	Previous *api.PreviousCSR
}

// Compare compares the CSR of a request with the previous one of the customer: subject and key.
func Compare(r api.Request) Comparison {
	c := Comparison{Previous: r.Previous, First: r.Previous == nil}
	before := api.PreviousCSR{}
	if r.Previous != nil {
		before = *r.Previous
	}
	then, now := factsOf(before.CSR), factsOf(r.CSR)
	subject := true
	for _, name := range names(then.subject, now.subject) {
		d := Difference{What: "Subject " + name, Before: then.value(name), Now: now.value(name)}
		subject = subject && d.Same()
		c.Facts = append(c.Facts, d)
	}
	if len(c.Facts) == 0 {
		c.Facts = append(c.Facts, Difference{What: "Subject", Before: before.Subject, Now: r.Subject})
		subject = c.Facts[0].Same()
	}
	c.Facts = append(c.Facts, Difference{What: "Key", Before: then.key, Now: now.key}, Difference{What: "Key SHA-256", Before: before.KeySHA256, Now: r.KeySHA256, Hash: true},
		Difference{What: "Signature", Before: then.signature, Now: now.signature}, Difference{What: "CSR SHA-256", Before: before.CSRSHA256, Now: r.CSRSHA256, Hash: true})
	key := before.KeySHA256 == r.KeySHA256
	c.Changed = !subject || !key
	switch {
	case c.First:
		c.Verdict = "No CSR of this customer was signed before. Ask the customer, by a way that you know, whether it sent this one."
	case before.CSRSHA256 == r.CSRSHA256:
		c.Verdict = "It is the same CSR as before."
	case subject && key:
		c.Verdict = "The subject and the key are the same as before."
	case key:
		c.Verdict = "The key is the same as before. The subject changed."
	case subject:
		c.Verdict = "The subject is the same as before. The key is a new one: ask the customer, by a way that you know, whether it made one."
	default:
		c.Verdict = "The subject and the key changed: ask the customer, by a way that you know, whether it sent this CSR."
	}
	return c
}

// facts are what a CSR says.
type facts struct {
	subject        []pkix.AttributeTypeAndValue
	key, signature string
}

// factsOf reads a CSR; of one that cannot be read it returns nothing.
func factsOf(text string) facts {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return facts{}
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return facts{}
	}
	return facts{csr.Subject.Names, keyText(csr), csr.SignatureAlgorithm.String()}
}

func keyText(csr *x509.CertificateRequest) string {
	if key, ok := csr.PublicKey.(interface{ Size() int }); ok { // RSA
		return fmt.Sprintf("%v, %d bits", csr.PublicKeyAlgorithm, 8*key.Size())
	}
	return csr.PublicKeyAlgorithm.String()
}

// attributes are the short names of attributes of a subject (RFC 4514, and what Apple uses).
var attributes = map[string]string{
	"2.5.4.3": "CN", "2.5.4.10": "O", "2.5.4.11": "OU", "2.5.4.6": "C", "2.5.4.8": "ST", "2.5.4.7": "L", "2.5.4.5": "serialNumber",
	"1.2.840.113549.1.9.1": "emailAddress", "0.9.2342.19200300.100.1.1": "UID", "0.9.2342.19200300.100.1.25": "DC",
}

func attributeName(a pkix.AttributeTypeAndValue) string {
	return cmp.Or(attributes[a.Type.String()], a.Type.String())
}

// names returns the names of the attributes of several subjects, each once, in their order.
func names(subjects ...[]pkix.AttributeTypeAndValue) (all []string) {
	for _, a := range slices.Concat(subjects...) {
		if name := attributeName(a); !slices.Contains(all, name) {
			all = append(all, name)
		}
	}
	return all
}

// value returns the values of an attribute, in their order.
func (f facts) value(name string) string {
	var values []string
	for _, a := range f.subject {
		if attributeName(a) == name {
			values = append(values, fmt.Sprint(a.Value))
		}
	}
	return strings.Join(values, " + ")
}
