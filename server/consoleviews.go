package server

import (
	"net/http"
	"net/url"

	"hsmsign/api"
	"hsmsign/server/console"
)

// pathPart returns a text as one part of a path.
func pathPart(text string) string { return url.PathEscape(text) }

// startPage shows what waits, what is due, and whether the service can sign.
func (c *call) startPage() error {
	frame, err := c.frame("Start", console.Root)
	if err != nil {
		return err
	}
	waiting, err := get[api.List[api.Request]](c, "/v1/pending?limit=6")
	if err != nil {
		return err
	}
	view := console.Start{Waiting: waiting.Items[:min(len(waiting.Items), 5)], More: len(waiting.Items) > 5}
	if frame.May("read") {
		due, err := get[api.List[api.LedgerDue]](c, "/v1/due?within=30")
		if err != nil {
			return err
		}
		view.Due = due.Items
		status, err := get[api.ServiceStatus](c, "/v1/status")
		if err != nil {
			return err
		}
		view.Status = &status
	}
	if view.Vendors, err = c.vendors(); err != nil {
		return err
	}
	return c.show(http.StatusOK, "start", frame, view)
}

// vendorPage shows the vendor identities.
func (c *call) vendorPage() error {
	frame, err := c.frame("Vendor", console.Root+"vendor")
	if err != nil {
		return err
	}
	vendors, err := c.vendors()
	if err != nil {
		return err
	}
	view := console.Vendors{}
	for _, v := range vendors {
		view.Items = append(view.Items, console.Vendor{Vendor: v})
	}
	if frame.May("read") {
		status, err := get[api.ServiceStatus](c, "/v1/status")
		if err != nil {
			return err
		}
		view.Status = &status
	}
	return c.show(http.StatusOK, "vendor", frame, view)
}

// mePage shows the caller: its role, limits and sessions.
func (c *call) mePage() error {
	frame, err := c.frame("Me", console.Root+"me")
	if err != nil {
		return err
	}
	sessions, err := c.sessions()
	if err != nil {
		return err
	}
	return c.show(http.StatusOK, "me", frame, console.Me{Sessions: sessions})
}

// requestShown returns a request as the API shows it.
func (c *call) requestShown(id string) (api.Request, error) {
	return get[api.Request](c, "/v1/requests/"+pathPart(id))
}

// requestPage shows one request, its downloads, and what to do next.
func (c *call) requestPage() error {
	found, err := c.requestShown(c.r.PathValue("id"))
	if err != nil {
		return err
	}
	frame, err := c.frame("Request "+found.ID, "", console.Link{Path: console.Root, Text: "Start"})
	if err != nil {
		return err
	}
	return c.show(http.StatusOK, "request", frame, console.Request{Request: found})
}
