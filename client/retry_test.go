package client_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"hsmsign/api"
	"hsmsign/client"
	"hsmsign/fault"
	"hsmsign/internal/servicekit"
	"hsmsign/internal/testkit"
)

// tunnel runs an HTTP proxy that only knows CONNECT, and connects every name with one address. It returns the names it was asked
// for.
func tunnel(t testing.TB, target string) (asked func() []string, address string) {
	t.Helper()
	var mu sync.Mutex
	var names []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		names = append(names, r.Host)
		mu.Unlock()
		if r.Method != http.MethodConnect || r.Header.Get("Authorization") != "" {
			http.Error(w, "only CONNECT", http.StatusBadRequest)
			return
		}
		there, err := net.Dial("tcp", target)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		here, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		_, _ = io.WriteString(here, "HTTP/1.1 200 OK\r\n\r\n")
		pipe(here, there)
	}))
	t.Cleanup(server.Close)
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(names)
	}, server.URL
}

// pipe copies both ways until one side ends.
func pipe(a, b net.Conn) {
	var once sync.Once
	end := func() { _, _ = a.Close(), b.Close() }
	go func() { _, _ = io.Copy(a, b); once.Do(end) }()
	_, _ = io.Copy(b, a)
	once.Do(end)
}

// The points at which a connection is cut.
const (
	before = "before the request"
	during = "during the request"
	held   = "when the request was received"
	after  = "before the answer"
	within = "within the answer"
)

// cutter is a TCP proxy that cuts the first connections at a point.
type cutter struct {
	listener net.Listener
	target   string
	point    string
	left     atomic.Int64 // connections to cut
	accepted atomic.Int64
}

func cut(t testing.TB, target, point string, times int64) *cutter {
	t.Helper()
	c := &cutter{listener: testkit.Value(net.Listen("tcp", "127.0.0.1:0"))(t), target: target, point: point}
	c.left.Store(times)
	t.Cleanup(func() { _ = c.listener.Close() })
	go func() {
		for {
			conn, err := c.listener.Accept()
			if err != nil {
				return
			}
			c.accepted.Add(1)
			go c.serve(conn)
		}
	}()
	return c
}

func (c *cutter) url() string { return "http://" + c.listener.Addr().String() }

// serve forwards one connection, or cuts it.
func (c *cutter) serve(conn net.Conn) {
	defer func() { _ = conn.Close() }() // one side has ended
	bad := c.left.Add(-1) >= 0
	if bad && c.point == before {
		return
	}
	there, err := net.Dial("tcp", c.target)
	if err != nil {
		return
	}
	defer func() { _ = there.Close() }() // one side has ended
	if !bad {
		pipe(conn, there)
		return
	}
	r, err := http.ReadRequest(bufio.NewReader(conn))
	if err != nil {
		return
	}
	if c.point == during {
		_, _ = io.CopyN(io.Discard, r.Body, 100)
		return
	}
	if r.Write(there) != nil || c.point == held {
		return
	}
	answer, err := http.ReadResponse(bufio.NewReader(there), r)
	if err != nil {
		return
	}
	if c.point == within {
		var whole strings.Builder
		_ = answer.Write(&whole)
		_, _ = io.WriteString(conn, whole.String()[:whole.Len()/2])
	}
}

// issued returns how many requests were issued.
func issued(t testing.TB, s *servicekit.Service) (n int) {
	t.Helper()
	for r, err := range admin(t, s).Entries(t.Context(), client.Query{Kind: "issued"}) {
		testkit.OK(t, err)
		if r.Kind == "issued" {
			n++
		}
	}
	return n
}

// TestCutConnections: a signature is asked for again, and the ledger has one issued request.
func TestCutConnections(t *testing.T) {
	for _, point := range []string{before, during, held, after, within} {
		t.Run(point, func(t *testing.T) {
			s := start(t)
			proxy := cut(t, strings.TrimPrefix(s.HTTP, "http://"), point, 2)
			c := open(t, client.Config{URL: proxy.url(), Token: token(s.Tokens["backend"])})
			result := testkit.Value(c.Sign(t.Context(), order("customer")))(t)
			again := testkit.Value(c.Sign(t.Context(), order("customer")))(t)
			if n := issued(t, s); n != 1 || proxy.accepted.Load() < 3 || again.Request != result.Request || again.RequestID != result.RequestID {
				t.Errorf("%d issued, %d connections", n, proxy.accepted.Load())
			}
		})
	}
}

// TestCutChanges: a change is not asked for again once the service may have received it.
func TestCutChanges(t *testing.T) {
	s := start(t)
	for _, point := range []string{before, during, after, within} {
		proxy := cut(t, strings.TrimPrefix(s.HTTP, "http://"), point, 1)
		c := open(t, client.Config{URL: proxy.url(), Token: token(s.Tokens["acme"])})
		_, err := c.Freeze(t.Context(), api.FreezeOrder{Scope: "customer", Name: "acme", Reason: point})
		if fault.KindOf(err) != fault.Unavailable || proxy.accepted.Load() != 1 {
			t.Errorf("%s: %v, %d connections", point, err, proxy.accepted.Load())
		}
	}
}

// TestUnreachable: what was never sent is sent again, a few times.
func TestUnreachable(t *testing.T) {
	listener := testkit.Value(net.Listen("tcp", "127.0.0.1:0"))(t)
	address := listener.Addr().String()
	_ = listener.Close()
	begun := time.Now()
	_, err := open(t, client.Config{URL: "http://" + address, MaxWait: 500 * time.Millisecond}).Sign(t.Context(), order("customer"))
	if fault.KindOf(err) != fault.Unavailable || !strings.Contains(err.Error(), address) || time.Since(begun) > 3*time.Second {
		t.Errorf("%v after %v", err, time.Since(begun))
	}
	var added atomic.Bool
	time.AfterFunc(300*time.Millisecond, func() {
		again, err := net.Listen("tcp", address)
		if err != nil {
			return
		}
		server := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			added.Store(true)
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"id":"x"}`)
		})}
		t.Cleanup(func() { _ = server.Close() })
		_ = server.Serve(again)
	})
	name := "acme"
	if _, err := open(t, client.Config{URL: "http://" + address}).AddCustomer(t.Context(), api.CustomerChange{Name: &name}); err != nil || !added.Load() {
		t.Errorf("%v", err)
	}
}

// TestFailures: connections that fail are not opened for ever.
func TestFailures(t *testing.T) {
	t.Parallel() // it waits
	proxy := cut(t, "", before, 100)
	_, err := open(t, client.Config{URL: proxy.url()}).Sign(t.Context(), order("customer"))
	if fault.KindOf(err) != fault.Unavailable || proxy.accepted.Load() != 5 {
		t.Errorf("%d connections, %v", proxy.accepted.Load(), err)
	}
}

// TestRetryAfter: 429 and 503 with Retry-After are tried again, for a signature only, and not for longer than MaxWait.
func TestRetryAfter(t *testing.T) {
	refusals := func(n int64, kind fault.Kind, after string) (*atomic.Int64, string) {
		var asked atomic.Int64
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if asked.Add(1) > n {
				w.Header().Set("Content-Type", "application/json")
				_, _ = io.WriteString(w, `{"status":"signed","request":"file","items":[]}`)
				return
			}
			if after != "" {
				w.Header().Set("Retry-After", after)
			}
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(kind.Status())
			_, _ = io.WriteString(w, `{"type":"`+kind.Problem()+`","detail":"busy"}`)
		}))
		t.Cleanup(server.Close)
		return &asked, server.URL
	}
	sign := func(url string, wait time.Duration) error {
		_, err := open(t, client.Config{URL: url, MaxWait: wait}).Sign(t.Context(), order("customer"))
		return err
	}
	for _, kind := range []fault.Kind{fault.Limited, fault.Unavailable} {
		asked, url := refusals(8, kind, "0") // more often than a connection may fail
		if err := sign(url, time.Minute); err != nil || asked.Load() != 9 {
			t.Errorf("%v: %v, %d", kind, err, asked.Load())
		}
		_, url = refusals(1, kind, "1")
		begun := time.Now()
		if err := sign(url, time.Minute); err != nil || time.Since(begun) < time.Second {
			t.Errorf("%v after %v", err, time.Since(begun))
		}
		asked, url = refusals(1, kind, "3600")
		if err := sign(url, time.Minute); fault.KindOf(err) != kind || asked.Load() != 1 {
			t.Errorf("%v: %v, %d", kind, err, asked.Load())
		}
		asked, url = refusals(1, kind, "")
		if err := sign(url, time.Minute); fault.KindOf(err) != kind || asked.Load() != 1 {
			t.Errorf("%v: %v, %d", kind, err, asked.Load())
		}
		asked, url = refusals(1, kind, "0")
		if err := sign(url, -1); fault.KindOf(err) != kind || asked.Load() != 1 {
			t.Errorf("%v: %v, %d", kind, err, asked.Load())
		}
		asked, url = refusals(1, kind, "0")
		if _, err := open(t, client.Config{URL: url}).Freeze(t.Context(), api.FreezeOrder{Scope: "all", Reason: "x"}); fault.KindOf(err) != kind || asked.Load() != 1 {
			t.Errorf("%v: %v, %d", kind, err, asked.Load())
		}
	}
	for _, kind := range []fault.Kind{fault.Vendor, fault.Auth, fault.Internal, fault.Conflict} {
		asked, url := refusals(1, kind, "0")
		if err := sign(url, time.Minute); fault.KindOf(err) != kind || asked.Load() != 1 {
			t.Errorf("%v: %v, %d", kind, err, asked.Load())
		}
	}
}
