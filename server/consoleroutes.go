package server

import (
	"strings"

	"hsmsign/fault"
	"hsmsign/request"
	"hsmsign/server/console"
)

// maxSignForm is the size limit of the form of the page Sign: maxItems CSRs in base64, and what is around them.
const maxSignForm = maxItems*2*request.MaxCSR + maxJSON

// pages returns the routes of the console.
func pages() []*route {
	return []*route{
		page("GET /console/{$}", (*call).startPage),
		page("GET /console/vendor", (*call).vendorPage),
		page("GET /console/me", (*call).mePage),
		page("GET /console/requests/{id}", (*call).requestPage),
		page("GET /console/download/requests/{file}", (*call).downloadRequest),
		typed("GET /console/sign", 0, (*call).signPage),
		typed("POST /console/sign", maxSignForm, (*call).signForm),
		typed("GET /console/verify", 0, (*call).verifyPage),
		typed("POST /console/verify", maxVerifyForm, (*call).verifyForm),
		page("GET /console/", (*call).noPage),
		{pattern: "GET " + console.Assets + "{name}", open: true, on: hasConsole, do: (*call).asset},
	}
}

// page returns the route of a page.
func page(pattern string, do func(c *call) error) *route {
	return &route{pattern: pattern, on: hasConsole, do: do}
}

// typed returns the route of a page with a form in which people type.
func typed(pattern string, body int64, do func(c *call) error) *route {
	rt := page(pattern, do)
	rt.typed, rt.body = true, body
	return rt
}

// noPage answers every other path below that of the console.
func (c *call) noPage() error {
	return fault.NotFound.Errorf("there is no page %q", c.path()).Fix("go to the start page")
}

// downloadRequest answers with the file of a request, or with its receipt. The name is the id of the request.
func (c *call) downloadRequest() error {
	name := c.r.PathValue("file")
	if id, ok := strings.CutSuffix(name, ".tlog-proof"); ok {
		return c.relay("/v1/proof/" + pathPart(id))
	}
	id, ok := strings.CutSuffix(name, ".req")
	if !ok {
		return fault.NotFound.Errorf("there is no download %q", fault.Clip(name, 64)).Fix("the page of the request has the links")
	}
	found, err := c.requestShown(id)
	if err != nil {
		return err
	}
	if found.Request == "" {
		return fault.NotFound.Errorf("the request %q has no file for you", fault.Clip(id, 64)).Fix("the page of the request says its state")
	}
	c.file(found.ID+".req", []byte(found.Request))
	return nil
}
