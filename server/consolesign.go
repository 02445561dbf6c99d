package server

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"hsmsign/api"
	"hsmsign/fault"

	"hsmsign/request"
	"hsmsign/server/console"
)

// maxItems is how many CSRs one form of the page Sign has. Each is a request for the rate of the role, and all must be answered within
// the time of one request of the page.
const maxItems = 20

const signPath = console.Root + "sign"

// signPage shows the form for CSRs. The parameter customer fills in the customer.
func (c *call) signPage() error {
	values := c.r.URL.Query()
	return c.showSign(http.StatusOK, console.Sign{Customer: values.Get("customer"), Vendor: values.Get("vendor")})
}

// showSign answers with the form.
func (c *call) showSign(status int, view console.Sign) error {
	frame, err := c.frame("Sign", signPath)
	if err != nil {
		return err
	}
	if !frame.May("sign") {
		return c.forbidden("ask for signatures")
	}
	view.Max = maxItems
	if view.Customer == "" {
		view.Customer = frame.Me.Customer
	}
	if view.Customers, err = c.customerNames(frame); err != nil {
		return err
	}
	if view.Vendors, err = c.vendors(); err != nil {
		return err
	}
	return c.show(status, "sign", frame, view)
}

// customerNames returns the names that the form proposes: the first that the caller can read about, or those of its role.
func (c *call) customerNames(frame console.Frame) (names []string, err error) {
	if !frame.May("read", "customers") {
		for _, name := range frame.Me.Customers {
			if name != "*" {
				names = append(names, name)
			}
		}
		return names, nil
	}
	list, err := get[api.List[api.Customer]](c, "/v1/customers?limit=1000")
	for _, customer := range list.Items {
		names = append(names, customer.Name)
	}
	return names, err
}

func (c *call) vendors() ([]api.Vendor, error) {
	list, err := get[api.List[api.Vendor]](c, "/v1/vendor")
	return list.Items, err
}

// signForm answers the form of the page Sign. What was pasted and chosen is checked and shown; what the page has shown as checked is
// requested, unless its customer was changed, which needs another check.
func (c *call) signForm() error {
	p, err := c.posted()
	if err != nil {
		return err
	}
	if err := c.mayAsk(); err != nil {
		return err
	}
	review := console.Review{Vendor: p.Get("vendor"), Customer: p.Get("customer")}
	if review.Items, err = shown(p.Values); err != nil {
		return err
	}
	if len(review.Items) == 0 {
		review.Items = ordered(p)
	}
	if len(review.Items) == 0 || len(review.Items) > maxItems {
		err := fault.Usage.Errorf("the form has no CSR").Fix("choose or drop a file, or paste a CSR")
		if len(review.Items) > 0 {
			err = fault.Usage.Errorf("the form has %d CSRs", len(review.Items)).Fix(fmt.Sprintf("send at most %d at once", maxItems))
		}
		problem := c.problem(err)
		return c.showSign(http.StatusBadRequest, console.Sign{Customer: review.Customer, Vendor: review.Vendor, Pasted: p.Get("csr"), Problem: &problem})
	}
	for i := range review.Items {
		item := &review.Items[i]
		item.Number, item.Alone = i, len(review.Items) == 1
		requested := p.Get("action") == "request" && item.Checked()
		if err := c.submit(item, review.Vendor, !requested); err != nil {
			return err
		}
	}
	return c.showReview(review)
}

// mayAsk refuses callers that may not ask for signatures, before anything is read from the form.
func (c *call) mayAsk() error {
	frame, err := c.frame("Sign", signPath)
	if err == nil && !frame.May("sign") {
		err = c.forbidden("ask for signatures")
	}
	return err
}

// shown returns the items that the page has shown.
func shown(values url.Values) (items []console.Item, err error) {
	for _, number := range values["item"] {
		n, err := strconv.Atoi(number)
		if err != nil || n < 0 || n >= maxItems {
			return nil, notForm(fmt.Errorf("an item %q", fault.Clip(number, 16)))
		}
		of := func(name string) string { return values.Get(name + "-" + number) }
		if _, err := base64.StdEncoding.DecodeString(of("csr")); err != nil {
			return nil, notForm(err)
		}
		items = append(items, console.Item{Name: of("name"), CSR: of("csr"), Customer: strings.TrimSpace(of("customer")), Ready: of("ready")})
	}
	return items, nil
}

// ordered returns the items of the files that were chosen and of the text that was pasted. A file can have several CSRs in PEM.
func ordered(p posted) (items []console.Item) {
	add := func(name string, data []byte) {
		for i, one := range splitCSRs(data) {
			title := name
			if i > 0 {
				title = fmt.Sprintf("%s (%d)", name, i+1)
			}
			items = append(items, console.Item{Name: title, CSR: base64.StdEncoding.EncodeToString(one), Customer: strings.TrimSpace(p.Get("customer"))})
		}
	}
	for _, file := range p.Files {
		add(file.Name, file.Data)
	}
	if pasted := p.Get("csr"); strings.TrimSpace(pasted) != "" {
		add("pasted text", []byte(pasted))
	}
	return items
}

// splitCSRs returns the PEM blocks of a text, if it has several and all are CSRs. All other data are one item, which the API judges.
func splitCSRs(data []byte) [][]byte {
	const begin, end = "-----BEGIN ", "REQUEST-----"
	if bytes.Count(data, []byte(begin)) < 2 || bytes.Count(data, []byte(begin)) > 2*maxItems {
		return [][]byte{data}
	}
	var all [][]byte
	for rest := data; ; {
		from := bytes.Index(rest, []byte(begin))
		if from < 0 {
			return all
		}
		next := bytes.Index(rest[from+len(begin):], []byte(begin))
		block := rest[from:]
		if next >= 0 {
			block, rest = rest[from:from+len(begin)+next], rest[from+len(begin)+next:]
		} else {
			rest = nil
		}
		if !bytes.Contains(block, []byte(end)) {
			return [][]byte{data}
		}
		all = append(all, block)
	}
}

// submit has the API check or issue an item, and stores what it answers.
func (c *call) submit(item *console.Item, vendor string, check bool) error {
	csr, err := base64.StdEncoding.DecodeString(item.CSR)
	if err != nil {
		return notForm(err)
	}
	path := query("/v1/requests", "customer", item.Customer, "vendor", vendor)
	if check {
		path = query("/v1/requests", "customer", item.Customer, "vendor", vendor, "check", "1")
	}
	answer, err := c.paced(func() (apiAnswer, error) { return c.api(http.MethodPost, path, "application/octet-stream", csr) })
	if err != nil {
		return err
	}
	item.Ready, item.Done, item.Problem, item.Result = "", !check && answer.Problem == nil, answer.Problem, nil
	if answer.Problem != nil {
		return nil
	}
	item.Result = &api.SignResult{}
	if err := json.Unmarshal(answer.Body, item.Result); err != nil {
		return err
	}
	item.Ready = item.Result.Customer
	item.Customer = item.Result.Customer
	return nil
}

// paced asks the API again when the caller was too fast, until the time of the page's request is over.
func (c *call) paced(ask func() (apiAnswer, error)) (apiAnswer, error) {
	for {
		answer, err := ask()
		if err != nil || answer.Problem == nil || answer.Problem.Rule != "server.rate" {
			return answer, err
		}
		if err := sleep(c.r.Context(), time.Second); err != nil {
			return apiAnswer{}, err
		}
	}
}

// sleep waits, or returns the error of ctx.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// showReview answers with the checks and results of all items.
func (c *call) showReview(review console.Review) error {
	title, status := "Check", http.StatusOK
	if review.Done() > 0 {
		title = "Result"
	} else if review.Waits() == 0 {
		title, status = "Refused", http.StatusUnprocessableEntity
	}
	frame, err := c.frame(title, signPath, console.Link{Path: signPath, Text: "Sign"})
	if err != nil {
		return err
	}
	if review.Vendors, err = c.vendors(); err != nil {
		return err
	}
	return c.show(status, "review", frame, review)
}

const verifyPath = console.Root + "verify"

// maxVerifyForm is the size limit of the form of the page Verify.
const maxVerifyForm = request.MaxRequest + maxJSON

// verifyPage shows the form for a request.
func (c *call) verifyPage() error { return c.showVerify(http.StatusOK, console.Verify{}) }

func (c *call) showVerify(status int, view console.Verify) error {
	frame, err := c.frame("Verify", verifyPath)
	if err != nil {
		return err
	}
	return c.show(status, "verify", frame, view)
}

// verifyForm shows what Apple's portal would say about a request.
func (c *call) verifyForm() error {
	p, err := c.posted()
	if err != nil {
		return err
	}
	name, data := "pasted text", []byte(p.Get("request"))
	if len(p.Files) > 0 {
		name, data = p.Files[0].Name, p.Files[0].Data
	}
	if len(bytes.TrimSpace(data)) == 0 || len(p.Files) > 1 {
		problem := c.problem(fault.Usage.Errorf("the form has no request, or several").Fix("choose, drop or paste one Push Certificate Request"))
		return c.showVerify(http.StatusBadRequest, console.Verify{Problem: &problem})
	}
	answer, err := c.api(http.MethodPost, "/v1/verify", "application/octet-stream", data)
	if err != nil {
		return err
	}
	view := console.Verify{Name: name, Problem: answer.Problem}
	if answer.Problem != nil {
		return c.showVerify(answer.Problem.Status, view)
	}
	view.Result = &api.VerifyResult{}
	if err := json.Unmarshal(answer.Body, view.Result); err != nil {
		return err
	}
	return c.showVerify(http.StatusOK, view)
}
