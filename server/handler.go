package server

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"hsmsign/agent"
	"hsmsign/agent/policy"
	"hsmsign/fault"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
	"hsmsign/server/authn"
	"hsmsign/server/authn/awsiam"
	"hsmsign/server/traces"
)

// call is one request that is being answered.
type call struct {
	*Server
	w     http.ResponseWriter
	r     *http.Request
	state *State
	conn  authn.Connection
	// connected ends when the caller is gone; the context of the request also ends when its time is over.
	connected context.Context
	id        string // random; in the answer's X-Request-Id and in the log
	begun     time.Time
	cred      policy.Credential
	who       agent.Caller
	pattern   string // of the route; "" if there is none

	written answer
	span    *traces.Span
	csr     record.Hash     // of the CSR's DER, once it was read
	err     error           // that the caller was told
	reason  error           // that the log is told
	request string          // id in the ledger
	read    bool            // the body was received
	data    []byte          // of the body, if it was read before the caller was known
	form    form            // of refusals; nil: a problem
	open    bool            // anybody is answered
	console bool            // the path is one of the console, so a session identifies the caller
	signed  *ledger.Session // of the console; nil: another credential identified the caller
	// findings are those about a CSR that is refused.
	findings []fault.Finding
}

// answer is what was sent.
type answer struct {
	status int
	bytes  int64
}

// route is what a pattern of the API does.
type route struct {
	pattern string
	open    bool // no caller is needed
	body    int64
	rated   bool // the rate of the role applies
	do      func(c *call) error
	// Those of a drop-in and of the console.
	on     func(s *State) bool              // whether there is this route; nil: always
	within time.Duration                    // the answer is sent before: the client waits no longer; 0: no limit of its own
	claim  func(c *call, kind string) error // finds the caller by the path or the body; nil: identify
	form   form                             // of refusals; nil: a problem
	fresh  freshness                        // what it demands of a session of the console
	typed  bool                             // a page of the console in which people type: Back shows it as it was
}

// handler returns the handler of the listeners of one kind.
func (s *Server) handler(kind string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := &call{Server: s, w: w, r: r, state: s.state.Load(), id: newID(), begun: s.cfg.Now()}
		c.conn = authn.NewConnection(kind, r.RemoteAddr, r.TLS)
		c.connected = r.Context()
		ctx, cancel := context.WithTimeout(r.Context(), requestWait+s.cfg.Limits.Body)
		defer cancel()
		c.r = r.WithContext(ctx)
		w.Header().Set("X-Request-Id", c.id)
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-store")
		defer c.end()
		if err := c.serve(kind); err != nil {
			c.fail(err)
		}
	})
}

func newID() string {
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails (Go 1.24)
	return hex.EncodeToString(id[:])
}

// end logs and counts the request. A panic is a fault of ours: the caller is told so, and the server lives on.
func (c *call) end() {
	if p := recover(); p != nil {
		c.cfg.Log.Error("panic", "id", c.id, "route", c.pattern, "value", p, "stack", string(debug.Stack()))
		c.fail(fault.Internal.Errorf("the server failed at this request"))
	}
	c.log()
	c.metrics.request(c)
	c.span.End(traces.Outcome{
		Name: orNone(c.pattern), Method: method(c.r), Status: c.written.status, Kind: fault.KindOf(c.err), Rule: fault.Rule(c.err),
		Caller: c.who.Name, Channel: c.conn.Kind, ID: c.id, Recorded: c.request,
	})
}

// serve answers a request, or returns why it does not.
func (c *call) serve(kind string) error {
	rt := c.find()
	c.enterConsole()
	if rt != nil && rt.within > 0 {
		defer c.limit(rt.within)()
	}
	if rt != nil && rt.typed {
		c.w.Header().Set("Cache-Control", "private, no-cache") // with no-store, Back would show an empty form
	}
	if kind != authn.Unix && !c.state.hosts[hostOf(c.r.Host)] {
		c.pattern = "" // only the form of the refusal is that of the route
		return fault.Usage.Errorf("this server is not %q", fault.Clip(c.r.Host, 128)).Rule("server.host").Fix("use a name of its certificate, or add the name to serve: hosts: in its configuration")
	}
	if rt != nil && rt.open {
		c.open = true
		return rt.do(c)
	}
	if err := c.caller(kind, rt); err != nil {
		return err
	}
	// Only known callers are traced: strangers must not fill the queue of spans.
	ctx, span := c.cfg.Traces.Request(c.r.Context(), c.begun, c.r.Header.Get("traceparent"))
	c.r, c.span = c.r.WithContext(ctx), span
	if err := c.crossOrigin(kind); err != nil {
		return err
	}
	return c.admit(rt)
}

// admit answers a request of a caller who is known; rt is nil if it has no route.
func (c *call) admit(rt *route) error {
	now := c.cfg.Now()
	what, perSecond := "other requests", anyRate
	if role := c.cred.Caller.Role; rt != nil && rt.rated && (role.Allows(policy.Sign) || role.Allows(policy.Profiles)) {
		what, perSecond, c.who.Paced = "requests for signatures", role.PerSecond, true
	}
	if err := c.pace.allow(c.who.Name, what, perSecond, now); err != nil {
		return err
	}
	if rt == nil {
		return c.missing()
	}
	if err := c.isFresh(rt.fresh); err != nil {
		return err
	}
	end, err := c.queue.begin(c.who.Name)
	if err != nil {
		return err
	}
	defer end()
	c.r.Body = http.MaxBytesReader(c.w, c.r.Body, max(rt.body, 1))
	if c.r.ContentLength == 0 {
		c.bodyRead()
	}
	return rt.do(c)
}

// find returns the route of the request, or nil. A path that is not in its shortest form has none: the mux would redirect it.
func (c *call) find() *route {
	rt, pattern := c.routeOf(c.r)
	if rt != nil {
		c.pattern, c.form = pattern, rt.form
		c.routes.ServeHTTP(c.w, c.r) // sets the path values, and calls the route, which does nothing
	}
	return rt
}

// routeOf returns the route of a request, or nil.
func (c *call) routeOf(r *http.Request) (rt *route, pattern string) {
	handler, pattern := c.routes.Handler(r)
	rt, _ = handler.(*route)
	if rt != nil && (rt.on != nil && !rt.on(c.state) || c.conn.Kind == authn.Unix && isConsole(r.URL.Path)) {
		return nil, "" // a page needs a session, which a Unix socket has not
	}
	return rt, pattern
}

// caller finds the caller of a request.
func (c *call) caller(kind string, rt *route) error {
	if rt != nil && rt.claim != nil {
		return rt.claim(c, kind)
	}
	if c.console {
		return c.claimSession(kind)
	}
	return c.identify(kind)
}

// path returns the path for a message: without a token.
func (c *call) path() string {
	path := c.r.URL.Path
	if token, ok := strings.CutPrefix(path, "/t/"); ok {
		_, rest, _ := strings.Cut(token, "/")
		path = "/t/(removed)/" + rest
	}
	return fault.Clip(tokens().ReplaceAllString(path, "(removed)"), 128)
}

// ServeHTTP is empty: the mux only finds the route.
func (*route) ServeHTTP(http.ResponseWriter, *http.Request) {}

// missing is the error of a request without a route.
func (c *call) missing() error {
	for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPatch} {
		other := c.r.Clone(c.r.Context())
		other.Method = method
		if rt, _ := c.routeOf(other); rt != nil {
			c.w.Header().Add("Allow", method)
		}
	}
	if c.w.Header().Get("Allow") != "" {
		return fault.Usage.Errorf("%s is not a method of %q", fault.Clip(c.r.Method, 16), c.path()).Fix("the header Allow lists the methods")
	}
	fix := "GET /v1/openapi.yaml describes the API"
	if c.console {
		fix = "begin at /console/"
	}
	return fault.NotFound.Errorf("there is no %q", c.path()).Fix(fix)
}

// identify finds the caller.
func (c *call) identify(kind string) error {
	known := connectionOf(c.r)
	if known != nil {
		c.conn.UID = known.UID
		if known.refused != nil {
			c.reason = known.refused
			return authn.ErrUnknown
		}
	}
	found, err := c.state.checker(c.cfg.Now()).Identify(c.r.Context(), c.r, c.conn)
	return c.identified(kind, found, err)
}

// identified sets the caller that was found, or returns why there is none. What the caller is not told is logged.
func (c *call) identified(kind string, found policy.Credential, err error) error {
	if known := connectionOf(c.r); known != nil {
		name := ""
		if err == nil {
			name = found.Caller.Name
		}
		known.of(name, c.r.TLS)
	}
	if err != nil {
		if refusal, ok := errors.AsType[*authn.Refusal](err); ok {
			c.reason = refusal.Reason
		}
		if errors.Is(err, awsiam.ErrLimited) {
			err = &Retry{time.Second, err}
		}
		return err
	}
	c.known(found, kind)
	return nil
}

// known sets the caller.
func (c *call) known(found policy.Credential, kind string) {
	c.cred = found
	c.who = agent.Caller{Name: found.Caller.Name, Channel: kind, Rules: found.Caller, Credential: found.Name}
	c.cfg.Ledger.Use(found.Name)
}

// crossOrigin refuses what another web site made a browser send. http.CrossOriginProtection accepts a request without
// Sec-Fetch-Site and Origin, as programs send it; a browser whose credential is in its connection must send one.
func (c *call) crossOrigin(kind string) error {
	var protection http.CrossOriginProtection
	err := protection.Check(c.r)
	ambient := c.r.Header.Get("Authorization") == ""
	browser := c.console || strings.HasPrefix(c.r.UserAgent(), "Mozilla/") || c.r.Header.Get("Cookie") != ""
	if safe := c.r.Method == http.MethodGet || c.r.Method == http.MethodHead; err == nil && !safe && ambient && browser && kind != authn.Unix &&
		c.r.Header.Get("Sec-Fetch-Site") == "" && c.r.Header.Get("Origin") == "" {
		err = errors.New("a browser that sends neither Sec-Fetch-Site nor Origin")
	}
	if err != nil {
		c.reason = err
		return fault.Forbidden.Errorf("the request comes from another web site").Rule("server.cross-origin").Fix("send it from a program, or from this server's own pages")
	}
	return nil
}

// bodyRead ends the time limit of the body: from now on only the deadline of the request counts.
func (c *call) bodyRead() {
	c.read = true
	_ = http.NewResponseController(c.w).SetReadDeadline(time.Time{}) // without deadlines (tests) there is nothing to end
}
