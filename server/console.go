package server

import (
	"context"
	"net"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	"hsmsign/api"
	"hsmsign/fault"
	"hsmsign/server/authn"
	"hsmsign/server/authn/oidc"
	"hsmsign/server/console"
)

// consolePath is the path of the console's start page; the paths of all pages begin with it.
const consolePath = console.Root

// channelConsole is the channel of what people do in the console.
const channelConsole = "console"

// maxForm is the size limit of a form of a sign-in, in bytes.
const maxForm = 4 << 10

// maxBack is the length limit of a path that a sign-in returns to, in bytes.
const maxBack = 512

// Console is the pages for people.
type Console struct {
	// Providers sign people in, by the name of their issuer.
	Providers map[string]*oidc.Client
	// URL is the address of the service for links, https://HOST:PORT; "": that of a listener.
	URL string
}

func hasConsole(s *State) bool { return s.Console != nil }

// consoleRoutes returns the routes of sign-ins, which docs/service.md describes.
func consoleRoutes() []*route {
	return []*route{
		{pattern: "GET /{$}", open: true, on: hasConsole, do: (*call).toConsole},
		{pattern: "GET /console", open: true, on: hasConsole, do: (*call).toConsole},
		{pattern: "GET /console/sign-in", open: true, on: hasConsole, do: (*call).signInPage},
		{pattern: "GET /console/sign-in/oidc", open: true, on: hasConsole, form: signInRefused, do: (*call).beginOIDC},
		{pattern: "GET /console/callback/{issuer}", open: true, on: hasConsole, form: signInRefused, do: (*call).endOIDC},
		{pattern: "POST /console/sign-in/certificate", open: true, on: hasConsole, form: signInRefused, do: (*call).signInCertificate},
		{pattern: "GET /console/sign-in/link/{token}", open: true, on: hasConsole, do: (*call).linkPage},
		{pattern: "POST /console/sign-in/link", open: true, on: hasConsole, form: signInRefused, do: (*call).signInLink},
		{pattern: "POST /console/sign-out", body: maxForm, on: hasConsole, do: (*call).signOut},
	}
}

// isConsole returns whether a path is one of the console.
func isConsole(path string) bool {
	return path == "/" || path == "/console" || strings.HasPrefix(path, consolePath)
}

// enterConsole notes that the request is one of the console, and sets the headers of its answer. Browsers are not expected at a Unix socket.
func (c *call) enterConsole() {
	if c.state.Console == nil || c.conn.Kind == authn.Unix || !isConsole(c.r.URL.Path) {
		return
	}
	c.console = true
	if c.form == nil {
		c.form = consoleRefused
	}
	header := c.w.Header()
	header.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'")
	header.Set("Cross-Origin-Opener-Policy", "same-origin")
	header.Set("Cross-Origin-Resource-Policy", "same-origin")
	header.Set("Referrer-Policy", "no-referrer")
}

// toConsole answers GET / and GET /console.
func (c *call) toConsole() error {
	c.redirect(consolePath)
	return nil
}

// redirect sends the browser to another page, which it gets with GET.
func (c *call) redirect(to string) {
	c.w.Header().Set("Location", to)
	c.send(http.StatusSeeOther, nil)
}

// page answers with a page of a sign-in.
func (c *call) page(status int, view any) error {
	data, err := console.RenderSignIn(view)
	if err != nil {
		return err
	}
	c.w.Header().Set("Content-Type", "text/html; charset=utf-8")
	c.send(status, data)
	return nil
}

// consoleRefused is the form of a page's refusal. Without a session, or with one whose sign-in is too old, a page leads to the sign-in;
// a form does not, so that the browser keeps what was typed.
func consoleRefused(c *call, p api.Problem) {
	signIn := url.Values{}
	if p.Rule == ruleFresh {
		signIn.Set("again", "1")
	}
	var err error
	switch {
	case p.Status != http.StatusUnauthorized:
		pageProblem(c, p)
	case c.r.Method == http.MethodGet || c.r.Method == http.MethodHead:
		signIn.Set("back", backPath(c.r.URL.RequestURI()))
		c.redirect("/console/sign-in?" + signIn.Encode())
	default:
		to := "/console/sign-in"
		if len(signIn) > 0 {
			to += "?" + signIn.Encode()
		}
		err = c.page(p.Status, console.Again{SignIn: to, Problem: p})
	}
	if err != nil {
		c.cfg.Log.Error("page", "id", c.id, "error", err.Error())
	}
}

// signInRefused is the form of a sign-in's refusal: the page to sign in, with the reason.
func signInRefused(c *call, p api.Problem) {
	view := c.signInView()
	view.Problem = &p
	if err := c.page(p.Status, view); err != nil {
		c.cfg.Log.Error("page", "id", c.id, "error", err.Error())
	}
}

// backPath returns the path of a page of the console with its query, from what a browser sent; the start page, if it is none.
func backPath(text string) string {
	u, err := url.Parse(text)
	if err != nil || len(text) > maxBack || u.Scheme != "" || u.Host != "" || u.User != nil || u.Opaque != "" || u.Fragment != "" || strings.Contains(text, `\`) {
		return consolePath
	}
	clean := path.Clean(u.Path)
	if strings.HasSuffix(u.Path, "/") {
		clean += "/"
	}
	if clean != u.Path || !strings.HasPrefix(clean, consolePath) || strings.HasPrefix(clean, "/console/sign-") || strings.HasPrefix(clean, "/console/callback") {
		return consolePath
	}
	back := (&url.URL{Path: clean, RawQuery: u.Query().Encode()}).String()
	if len(back) > maxBack {
		return consolePath
	}
	return back
}

// consoleURL returns the address of the service for a link.
func (s *Server) consoleURL(st *State) (string, error) {
	if st.Console.URL != "" {
		return st.Console.URL, nil
	}
	for _, kind := range []string{authn.TLS, authn.HTTP} {
		for _, l := range s.listeners {
			address, ok := l.Addr().(*net.TCPAddr)
			if l.kind != kind || !ok {
				continue
			}
			u, host := url.URL{Scheme: "http"}, address.IP.String()
			if kind == authn.TLS {
				u.Scheme = "https"
			}
			if kind == authn.TLS && len(st.servers) > 0 {
				host = st.servers[0]
			} else if address.IP.IsUnspecified() {
				host = "localhost"
			}
			u.Host = net.JoinHostPort(host, strings.TrimPrefix(address.String()[strings.LastIndex(address.String(), ":"):], ":"))
			return u.String(), nil
		}
	}
	return "", fault.Usage.Errorf("the service has no listener for browsers").Fix("add a tls: or http: listener to serve: listen")
}

// endSessions ends the sessions of callers and credentials that a state does not have. What cannot be ended now is refused at its next
// request all the same.
func (s *Server) endSessions(ctx context.Context, next *State) {
	if next.Console == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, leaveWait)
	defer cancel()
	all, err := s.cfg.Ledger.Sessions(ctx, "")
	for _, session := range all {
		if _, gone := next.holder(&session, s.cfg.Now()); gone != nil && err == nil {
			err = s.cfg.Ledger.EndSession(ctx, session.ID)
		}
	}
	if err != nil {
		s.cfg.Log.Warn("sessions", "error", err.Error())
	}
}

// signInWait is how long a person may need at a provider.
const signInWait = 10 * time.Minute
