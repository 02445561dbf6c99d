package client_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"hsmsign/api"
	"hsmsign/client"
	"hsmsign/fault"
	"hsmsign/internal/servicekit"
	"hsmsign/internal/testkit"
)

// TestCertificateOfTheService: nothing is sent to a service whose certificate is not accepted, and it is not asked again.
func TestCertificateOfTheService(t *testing.T) {
	good, other := testkit.NewCA(t, "good CA"), testkit.NewCA(t, "other CA")
	for name, cert := range map[string]tls.Certificate{
		"wrong CA":   other.Issue(t, "server", nil),
		"expired":    good.Issue(t, "server", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }),
		"wrong name": good.Issue(t, "server", func(c *x509.Certificate) { c.IPAddresses = nil }),
	} {
		asked := false
		server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked = true }))
		server.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
		server.Config.ErrorLog = log.New(io.Discard, "", 0)
		var connections atomic.Int64
		server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
			if state == http.StateNew {
				connections.Add(1)
			}
		}
		server.StartTLS()
		t.Cleanup(server.Close)
		pool := x509.NewCertPool()
		pool.AddCert(good.Cert)
		c := open(t, client.Config{URL: server.URL, Roots: pool, Token: token("hsmsign_secret")})
		_, err := c.Sign(t.Context(), order("customer"))
		if fault.KindOf(err) != fault.Auth || fault.Hint(err) == "" || asked || connections.Load() != 1 {
			t.Errorf("%s: %v, %d connections", name, err, connections.Load())
		}
	}
	// TLS 1.2 is not spoken.
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.TLS = &tls.Config{Certificates: []tls.Certificate{good.Issue(t, "server", nil)}, MaxVersion: tls.VersionTLS12}
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	pool := x509.NewCertPool()
	pool.AddCert(good.Cert)
	if _, err := open(t, client.Config{URL: server.URL, Roots: pool, MaxWait: -1}).Me(t.Context()); fault.KindOf(err) != fault.Unavailable || !strings.Contains(err.Error(), "protocol version") {
		t.Errorf("%v", err)
	}
}

// TestAnswers: what does not come from a signing service is an error, of a bounded size and time.
func TestAnswers(t *testing.T) {
	page := func(contentType, body string, status int, headers ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", contentType)
			for i := 0; i+1 < len(headers); i += 2 {
				w.Header().Set(headers[i], headers[i+1])
			}
			w.WriteHeader(status)
			_, _ = w.Write([]byte(body))
		}
	}
	problem := func(p api.Problem) string { return string(testkit.Value(json.Marshal(p))(t)) }
	const problemType = "application/problem+json"
	for name, tt := range map[string]struct {
		answer http.HandlerFunc
		kind   fault.Kind
		want   string
	}{
		"a web page":        {page("text/html", "<html>", 200), fault.Unavailable, "text/html"},
		"JSON of another":   {page("application/json", `{"status":7}`, 200), fault.Unavailable, "cannot be read"},
		"an empty object":   {page("application/json", `{}`, 200), fault.Unavailable, "no request"},
		"a redirect":        {page("text/plain", "", 307, "Location", "http://127.0.0.1:1/"), fault.Unavailable, "redirect"},
		"a huge answer":     {func(w http.ResponseWriter, _ *http.Request) { huge(w, "application/json", 20<<20) }, fault.Unavailable, "larger than"},
		"a huge problem":    {func(w http.ResponseWriter, _ *http.Request) { huge(w, problemType, 1<<20) }, fault.Unavailable, "larger than"},
		"huge headers":      {page("application/json", "{}", 200, "X-Large", strings.Repeat("x", 100_000)), fault.Unavailable, "server response headers exceeded"},
		"a gateway":         {page("text/html", "<html>", 502), fault.Unavailable, "502"},
		"no problem type":   {page(problemType, `{"detail":"x"}`, 401), fault.Unauthenticated, "401"},
		"a problem at 200":  {page(problemType, problem(api.NewProblem(fault.Defects.Errorf("x"))), 200), fault.Defects, "x"},
		"a stopping server": {page(problemType, problem(api.NewProblem(context.Canceled)), 503), fault.Unavailable, "canceled"},
		"control characters": {
			page(problemType, problem(api.NewProblem(fault.Refused.Errorf("a\x1b[2J\nb"))), 422), fault.Refused, "a [2J b",
		},
		"the key store refuses": {page(problemType, problem(api.NewProblem(fault.Auth.Errorf("PIN"))), 503, "Retry-After", "1"), fault.Auth, "PIN"},
	} {
		server := httptest.NewServer(tt.answer)
		begun := time.Now()
		_, err := open(t, client.Config{URL: server.URL, MaxWait: 50 * time.Millisecond, Timeout: 20 * time.Second}).Sign(t.Context(), order("customer"))
		if fault.KindOf(err) != tt.kind || !strings.Contains(err.Error(), tt.want) || len(err.Error()) > 2048 || strings.ContainsAny(err.Error(), "\n\x1b") || time.Since(begun) > 15*time.Second {
			t.Errorf("%s: %v, %v", name, fault.KindOf(err), err)
		}
		server.Close()
	}
}

func huge(w http.ResponseWriter, contentType string, size int) {
	w.Header().Set("Content-Type", contentType)
	_, _ = w.Write([]byte(`"` + strings.Repeat("x", size) + `"`))
}

// TestSilence: a service that accepts connections and says nothing.
func TestSilence(t *testing.T) {
	listener := testkit.Value(net.Listen("tcp", "127.0.0.1:0"))(t)
	t.Cleanup(func() { _ = listener.Close() })
	address := "http://" + listener.Addr().String()
	begun := time.Now()
	_, err := open(t, client.Config{URL: address, Timeout: 100 * time.Millisecond, MaxWait: 300 * time.Millisecond}).Sign(t.Context(), order("customer"))
	if fault.KindOf(err) != fault.Unavailable || !strings.Contains(err.Error(), "within 100ms") || time.Since(begun) > 5*time.Second {
		t.Errorf("%v after %v", err, time.Since(begun))
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := open(t, client.Config{URL: address}).Sign(ctx, order("customer")); fault.KindOf(err) != fault.Interrupted {
		t.Errorf("%v", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := open(t, client.Config{URL: address}).Me(ctx); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("%v", err)
	}
}

// TestPages: a list that does not end is an error.
func TestPages(t *testing.T) {
	for _, next := range []string{"/v1/requests?before=9", "/v1/requests?before=10", "/v1/requests", "/v1/entries?before=3", "http://other.example/v1/requests?before=3", "//other.example/v1/requests?before=3", "%"} {
		pages := 0
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			pages++
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write(testkit.Value(json.Marshal(api.List[api.Request]{Items: []api.Request{{ID: "x"}}, Next: next}))(t))
		}))
		var last error
		for _, err := range open(t, client.Config{URL: server.URL}).Requests(t.Context(), client.Query{}) {
			last = err
		}
		want := 1
		if strings.HasPrefix(next, "/v1/requests?") { // the first one may be the next page
			want = 2
		}
		if fault.KindOf(last) != fault.Unavailable || pages != want {
			t.Errorf("%q: %d pages, %v", next, pages, last)
		}
		server.Close()
	}
}

// TestProxy: TLS to another machine goes through the proxy, which sees only where to; loopback and Unix sockets do not.
func TestProxy(t *testing.T) {
	s := servicekit.Start(t, servicekit.Options{})
	s.SetTLS(s.CA.Issue(t, "server", func(c *x509.Certificate) { c.DNSNames = []string{"sign.example.com"} }))
	testkit.OK(t, s.Server.Reload(t.Context(), true))
	target := testkit.Value(url.Parse(s.URL))(t).Host
	proxied, proxy := tunnel(t, target)
	to := func(*http.Request) (*url.URL, error) { return url.Parse(proxy) }
	c := open(t, client.Config{URL: "https://sign.example.com:8443", Certificate: &s.Cert, Roots: roots(s), Proxy: to})
	testkit.Value(c.Me(t.Context()))(t)
	if got := proxied(); len(got) != 1 || got[0] != "sign.example.com:8443" {
		t.Errorf("%q", got)
	}
	local := testkit.NewCA(t, "local CA")
	s.SetTLS(local.Issue(t, "server", nil))
	testkit.OK(t, s.Server.Reload(t.Context(), true))
	pool := x509.NewCertPool()
	pool.AddCert(local.Cert)
	for _, url := range []string{s.URL, s.HTTP} {
		c = open(t, client.Config{URL: url, Token: token(s.Tokens["backend"]), Roots: pool, Proxy: to})
		testkit.Value(c.Me(t.Context()))(t)
	}
	if got := proxied(); len(got) != 1 {
		t.Errorf("%q", got)
	}
}
