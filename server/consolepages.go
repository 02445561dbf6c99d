package server

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"

	"hsmsign/api"
	"hsmsign/fault"
	"hsmsign/server/console"
)

// apiAnswer is what a route of the API answers.
type apiAnswer struct {
	Status  int
	Header  http.Header
	Body    []byte
	Problem *api.Problem // why it was refused; nil: it was not
	err     error        // the same
}

// buffer is an answer in memory. All answers of the API but an export are bounded.
type buffer struct {
	header http.Header
	body   bytes.Buffer
}

func (b *buffer) Header() http.Header            { return b.header }
func (b *buffer) WriteHeader(int)                {}
func (b *buffer) Write(data []byte) (int, error) { return b.body.Write(data) }

// api runs a route of the API as the caller of the session, with its role, limits and freezes as they are now. path has the query. The
// page is logged, and its log has the CSR and the request of the route.
func (c *call) api(method, path, contentType string, body []byte) (apiAnswer, error) {
	out := &buffer{header: http.Header{}}
	inner, err := c.inner(out, method, path, contentType, body)
	if inner == nil {
		return apiAnswer{}, err
	}
	answer := apiAnswer{Status: inner.written.status, Header: out.header, Body: out.body.Bytes(), err: err}
	if err != nil {
		problem := inner.problem(err)
		answer.Problem, answer.Status = &problem, problem.Status
		c.reason = inner.reason
	}
	return answer, nil
}

// relay answers with what a GET route of the API answers: a download, of any length.
func (c *call) relay(path string) error {
	inner, err := c.inner(c.w, http.MethodGet, path, "", nil)
	if inner != nil {
		c.written = inner.written
	}
	return err
}

// inner runs a route of the API with another writer, from the limits on: the caller and the origin of the request were checked. inner is nil
// if there is no such route.
func (c *call) inner(w http.ResponseWriter, method, path, contentType string, body []byte) (inner *call, err error) {
	r, err := http.NewRequestWithContext(c.r.Context(), method, path, bytes.NewReader(body))
	if err != nil {
		return nil, fault.NotFound.Errorf("there is no %q", fault.Clip(path, 128))
	}
	r.Header.Set("Accept", "application/json")
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	inner = &call{
		Server: c.Server, w: w, r: r, state: c.state, conn: c.conn, connected: c.connected, id: c.id, begun: c.begun, cred: c.cred, who: c.who, span: c.span,
		console: c.console, signed: c.signed,
	}
	rt := inner.find()
	if rt == nil || !strings.HasPrefix(r.URL.Path, "/v1/") || rt.claim != nil {
		return nil, fault.NotFound.Errorf("there is no %q", fault.Clip(path, 128))
	}
	err = inner.admit(rt)
	if inner.csr.String() != "" {
		c.csr = inner.csr
	}
	if inner.request != "" {
		c.request = inner.request
	}
	return inner, err
}

// get returns the answer of a GET route of the API. The error is the one that the caller of the API would be told of.
func get[T any](c *call, path string) (value T, err error) {
	answer, err := c.api(http.MethodGet, path, "", nil)
	if err == nil {
		err = answer.err
	}
	if err != nil {
		return value, err
	}
	return value, json.Unmarshal(answer.Body, &value)
}

// frame returns the frame of a page.
func (c *call) frame(title, section string, trail ...console.Link) (console.Frame, error) {
	me, err := get[api.Me](c, "/v1/me")
	if err != nil {
		return console.Frame{}, err
	}
	return console.Frame{Title: title, Section: section, Me: &me, Trail: trail}, nil
}

// show answers with a page.
func (c *call) show(status int, name string, frame console.Frame, view any) error {
	data, err := console.Render(name, frame, view)
	if err != nil {
		return err
	}
	c.w.Header().Set("Content-Type", "text/html; charset=utf-8")
	c.send(status, data)
	return nil
}

// headlines are what error pages are called.
var headlines = map[int]string{
	http.StatusBadRequest: "The request is not right", http.StatusUnauthorized: "Sign in", http.StatusForbidden: "Not allowed", http.StatusNotFound: "Not found",
	http.StatusMethodNotAllowed: "The request is not right", http.StatusConflict: "It contradicts what is recorded", http.StatusRequestEntityTooLarge: "Too large",
	http.StatusUnprocessableEntity: "Refused", http.StatusTooManyRequests: "Too many requests", http.StatusServiceUnavailable: "Not available now",
}

// pageProblem shows why a page was refused.
func pageProblem(c *call, p api.Problem) {
	title := headlines[p.Status]
	if title == "" {
		title = "The server failed"
	}
	frame := console.Frame{Title: title, Plain: true}
	links := []console.Link{{Path: console.Root, Text: "Start page"}}
	if c.cred.Caller != nil {
		if me, err := get[api.Me](c, "/v1/me"); err == nil {
			frame.Me, frame.Plain = &me, false
		}
	}
	view := struct {
		Problem api.Problem
		Links   []console.Link
	}{p, links}
	data, err := console.Render("problem", frame, view)
	if err != nil {
		c.cfg.Log.Error("console", "id", c.id, "error", err.Error())
		data = []byte("<!doctype html><title>hsmsign</title><p>The server failed at this request.")
	}
	c.w.Header().Set("Content-Type", "text/html; charset=utf-8")
	c.send(p.Status, data)
}

// asset answers with the style sheet, the script or the icon.
func (c *call) asset() error {
	found, ok := console.AssetAt(c.r.URL.Path)
	if !ok {
		return fault.NotFound.Errorf("there is no %q", c.path()).Fix("load the page again: it names the files of this version")
	}
	c.w.Header().Set("Content-Type", found.Type)
	c.w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	c.send(http.StatusOK, found.Data)
	return nil
}

// query returns a path of the API with parameters; those that are empty are left out.
func query(path string, pairs ...string) string {
	values := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			values.Set(pairs[i], pairs[i+1])
		}
	}
	if len(values) == 0 {
		return path
	}
	return path + "?" + values.Encode()
}
