package server

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"hsmsign/internal/testkit"
	"hsmsign/server/authn"
)

// A token in a path is in no log and in no answer, wherever the path leads.
func TestDropInTokenInPath(t *testing.T) {
	f := newDropIns(t)
	token := f.tokens["bolt"]
	for _, path := range []string{"/t/" + token + fleetJSON, "/t/" + token + "/x", "/t/" + token, "/t/" + token + "/../v1/me", "//t/" + token + fleetJSON, "/t/lost-" + token[:40] + "/v1/me", "/t//" + fleetJSON, "/t/" + token[8:60] + "/x"} {
		for _, method := range []string{http.MethodPost, http.MethodGet} {
			for _, caller := range []string{"", "acme"} {
				header := map[string]string{}
				if caller != "" {
					header["Authorization"] = "Bearer " + f.tokens[caller]
				}
				a := send(t, f.http, method, path, header, fleetBody(newCSR("drop-in")))
				if text := string(a.body) + fmt.Sprint(a.header); strings.Contains(text, token[8:40]) {
					t.Errorf("%s %s: the answer repeats the token: %s", method, path, text)
				}
			}
		}
	}
	f.log.await(t, `"route":"POST /t/{token}/api/v1/deliver-apple-csr","status":200`)
	if log := f.log.String(); strings.Contains(log, token[8:40]) {
		t.Errorf("log: %s", log)
	}
}

// A name that is not the server's is refused in the form of the route, too.
func TestDropInHost(t *testing.T) {
	f := newDropIns(t)
	for path, want := range map[string]string{fleetJSON: "this server is not \"evil.example\"", MDMCertPath: `{"result":"failure","reason":"this server is not `} {
		a := sendTo(t, f.http, http.MethodPost, path, "evil.example")
		if !strings.HasPrefix(string(a.body), want) || a.header.Get("Content-Type") == "application/problem+json" {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
}

// A client that does not wait gets one line before it gives up, and the signature when it asks again.
func TestDropInTime(t *testing.T) {
	f := newDropIns(t)
	slow := f.slowKey(t)
	routeOf(t, f.routes, FleetPath).within = time.Second
	began := time.Now()
	a := f.post(t, "acme", fleetJSON, fleetBody(newCSR("drop-in")))
	if took := time.Since(began); a.status != http.StatusServiceUnavailable || a.header.Get("Retry-After") == "" || strings.ContainsAny(string(a.body), "\r\n") || took > 5*time.Second {
		t.Errorf("%v: %d %s", took, a.status, a.body)
	}
	if running, _ := f.queue.load(); running != 1 {
		t.Errorf("%d signatures run", running)
	}
	close(slow)
	routeOf(t, f.routes, FleetPath).within = time.Minute
	testkit.Until(t, "the signature ends", func() bool { running, _ := f.queue.load(); return running == 0 })
	if a = f.post(t, "acme", fleetJSON, fleetBody(newCSR("drop-in"))); a.status != http.StatusOK {
		t.Errorf("again: %d %s", a.status, a.body)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if f.awaitLate(ctx); ctx.Err() != nil {
		t.Error("a signature has not ended")
	}
	// A body that does not come ends earlier, too.
	routeOf(t, f.routes, FleetPath).within = 100 * time.Millisecond
	conn := testkit.Value(net.Dial("tcp", f.http.Listener.Addr().String()))(t)
	defer func() { _ = conn.Close() }()
	testkit.OK(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
	testkit.Value(fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nContent-Length: 1000\r\n\r\n{", fleetJSON, f.tokens["acme"]))(t)
	answer := testkit.Value(http.ReadResponse(bufio.NewReader(conn), nil))(t)
	defer func() { _ = answer.Body.Close() }()
	if answer.StatusCode != http.StatusBadRequest {
		t.Errorf("a body that does not come: %d", answer.StatusCode)
	}
}

// Bodies of senders that are not known yet are bounded in number and in time.
func TestDropInStrangers(t *testing.T) {
	f := newDropIns(t)
	f.cfg.Limits.Stranger = 500 * time.Millisecond
	var all []net.Conn
	for range strangerEach {
		conn := testkit.Value(net.Dial("tcp", f.http.Listener.Addr().String()))(t)
		defer func() { _ = conn.Close() }()
		testkit.OK(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
		testkit.Value(fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{", MDMCertPath))(t)
		all = append(all, conn)
	}
	testkit.Until(t, "all are read", func() bool {
		f.strangers.mu.Lock()
		defer f.strangers.mu.Unlock()
		return f.strangers.all == strangerEach
	})
	a := f.post(t, "", MDMCertPath, `{"key":"x"}`)
	if a.status != http.StatusOK || !strings.Contains(string(a.body), "too many requests at once whose sender is not known") || a.header.Get("Retry-After") != "1" {
		t.Errorf("one more: %d %s", a.status, a.body)
	}
	if a := f.post(t, "acme", fleetJSON, fleetBody(newCSR("drop-in"))); a.status != http.StatusOK {
		t.Errorf("a known caller: %d %s", a.status, a.body)
	}
	for _, conn := range all {
		answer := testkit.Value(http.ReadResponse(bufio.NewReader(conn), nil))(t)
		_ = answer.Body.Close()
	}
	testkit.Until(t, "the places are free", func() bool {
		f.strangers.mu.Lock()
		defer f.strangers.mu.Unlock()
		return f.strangers.all == 0 && len(f.strangers.each) == 0
	})
	if _, err := f.strangers.enter(authn.Connection{}.Remote); err != nil {
		t.Error(err)
	}
}
