package server_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"hsmsign/agent/policy"
	"hsmsign/api"
	"hsmsign/internal/servicekit"
	"hsmsign/internal/testkit"
	"hsmsign/ledger"
	"hsmsign/server"
)

// quick are limits for tests that wait until they are over.
func quick(cfg *server.Config) {
	cfg.Limits = server.Limits{Header: 300 * time.Millisecond, Body: 600 * time.Millisecond, Idle: time.Second}
}

// raw opens a connection to the loopback listener.
func raw(t *testing.T, s *servicekit.Service) net.Conn {
	t.Helper()
	conn := testkit.Value(net.Dial("tcp", strings.TrimPrefix(s.HTTP, "http://")))(t)
	t.Cleanup(func() { _ = conn.Close() })
	testkit.OK(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	return conn
}

// say writes to a connection.
func say(t *testing.T, conn net.Conn, format string, args ...any) {
	t.Helper()
	testkit.Value(fmt.Fprintf(conn, format, args...))(t)
}

// trickle sends a text byte by byte until the other side ends the connection, and returns what it answered.
func trickle(t *testing.T, conn net.Conn, head, endless string, every time.Duration) string {
	t.Helper()
	testkit.Value(io.WriteString(conn, head))(t)
	go func() {
		for {
			for _, b := range []byte(endless) {
				if _, err := conn.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(every)
			}
		}
	}()
	answer, err := io.ReadAll(conn)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the connection is still open")
	}
	return string(answer)
}

func TestSlow(t *testing.T) {
	s := servicekit.Start(t, servicekit.Options{Change: quick})
	head := "POST /v1/requests?customer=acme HTTP/1.1\r\nHost: localhost\r\n"
	for what, parts := range map[string][2]string{
		"header":       {head, "X-A: b\r\n"},
		"body":         {head + "Authorization: Bearer " + s.Tokens["backend"] + "\r\nContent-Length: 60000\r\n\r\n", "A"},
		"chunked body": {head + "Authorization: Bearer " + s.Tokens["backend"] + "\r\nTransfer-Encoding: chunked\r\n\r\n", "1\r\nA\r\n"},
		"no TLS":       {"", "\x16"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			begun := time.Now()
			answer := trickle(t, raw(t, s), parts[0], parts[1], 20*time.Millisecond)
			if took := time.Since(begun); took > 10*time.Second {
				t.Errorf("it took %v", took)
			}
			if strings.Contains(answer, " 200 ") || strings.Contains(what, "body") && !strings.Contains(answer, "was not received") {
				t.Errorf("%q", answer)
			}
		})
	}
	t.Run("TLS handshake", func(t *testing.T) {
		t.Parallel()
		conn := testkit.Value(net.Dial("tcp", strings.TrimPrefix(s.URL, "https://")))(t)
		defer func() { _ = conn.Close() }()
		testkit.OK(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
		trickle(t, conn, "\x16\x03\x01\x40\x00", "\x01", 20*time.Millisecond)
	})
}

// Ten thousand connections that do nothing keep nobody out.
func TestIdleConnections(t *testing.T) {
	s := servicekit.Start(t, servicekit.Options{Change: func(cfg *server.Config) { cfg.Limits.Connections = 500 }})
	keep := raw(t, s)
	ask := func() int {
		say(t, keep, "GET /v1/me HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n\r\n", s.Tokens["backend"])
		response, err := http.ReadResponse(bufio.NewReader(keep), nil)
		if err != nil {
			return 0
		}
		_, _ = io.Copy(io.Discard, response.Body)
		return response.StatusCode
	}
	if got := ask(); got != 200 {
		t.Fatal(got)
	}
	address := strings.TrimPrefix(s.HTTP, "http://")
	for range 20 { // 500 are open at once: with the ends of the server 1,000 file descriptors
		var open []net.Conn
		for range 500 {
			conn, err := net.Dial("tcp", address)
			testkit.OK(t, err)
			open = append(open, conn)
		}
		testkit.Until(t, "the connections are accepted", func() bool { return s.Server.Connections() > 450 })
		if a := servicekit.Do(t, &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 20 * time.Second}, s.Tokens["backend"], "GET", s.HTTP+"/v1/me", ""); a.StatusCode != 200 {
			t.Errorf("%d: %s", a.StatusCode, a.Body)
		}
		if n := s.Server.Connections(); n > 500 {
			t.Errorf("%d connections are open", n)
		}
		for _, conn := range open {
			_ = conn.Close()
		}
	}
	if got := ask(); got != 200 {
		t.Errorf("the connection of a known caller: %d", got)
	}
}

func TestBodies(t *testing.T) {
	s := servicekit.Start(t, servicekit.Options{Change: quick})
	client, csr := s.Client(t, nil), servicekit.CSR(testkit.Key("customer"))
	post := func(path, body string, headers ...string) servicekit.Answer {
		return servicekit.Do(t, client, s.Tokens["backend"], "POST", s.URL+path, body, headers...)
	}
	sign := "/v1/requests?customer=acme"
	nested := strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000)
	for what, tt := range map[string]struct {
		answer servicekit.Answer
		status int
		rule   string
	}{
		"empty":                {post(sign, ""), 422, ""},
		"huge":                 {post(sign, strings.Repeat("A", 1<<20)), 413, ""},
		"larger than a CSR":    {post(sign, strings.Repeat("A", 100_000)), 422, "csr.size"},
		"not a CSR":            {post(sign, "hello"), 422, ""},
		"a private key":        {post(sign, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"), 422, ""},
		"two CSRs":             {post(sign, csr+csr), 422, ""},
		"deep DER":             {post(sign, strings.Repeat("\x30\x80", 30_000)), 422, ""},
		"multipart":            {post(sign, csr, "Content-Type", "multipart/form-data; boundary=x"), 415, ""},
		"compressed":           {post(sign, csr, "Content-Encoding", "gzip"), 415, ""},
		"JSON of another form": {post("/v1/requests", `{"csr":"x","extra":1}`, "Content-Type", "application/json"), 400, ""},
		"two JSON values":      {post("/v1/requests", `{"csr":"x"}{}`, "Content-Type", "application/json"), 400, ""},
		"deep JSON":            {post("/v1/requests", nested[:100_000], "Content-Type", "application/json"), 400, ""},
		"JSON of wrong types":  {post("/v1/requests", `{"csr":7}`, "Content-Type", "application/json"), 400, ""},
		"unknown parameter":    {post(sign+"&custmer=x", csr), 400, ""},
		"repeated parameter":   {post(sign+"&customer=bolt", csr), 400, ""},
		"unknown format":       {post(sign+"&format=x", csr), 400, ""},
		"check that is no":     {post(sign+"&check=x", csr), 400, ""},
		"unknown vendor":       {post(sign+"&vendor=x", csr), 403, policy.RuleVendor},
		"vendor's own CSR":     {post(sign, servicekit.CSR(testkit.Key(servicekit.VendorKey))), 422, ""},
		"another method":       {servicekit.Do(t, client, s.Tokens["backend"], "DELETE", s.URL+sign, ""), 405, ""},
		"verify nothing":       {post("/v1/verify", ""), 200, ""},
		"verify something":     {post("/v1/verify", "<plist>"), 200, ""},
		"verify too much":      {post("/v1/verify", strings.Repeat("A", 2<<20)), 413, ""},
		"customer of spaces":   {post("/v1/requests?customer=%20acme", csr), 400, ""},
		"customer with a line": {post("/v1/requests?customer=acme%0d%0aX-Evil:%201", csr), 400, ""},
		"customer with ANSI":   {post("/v1/requests?customer=%1b%5b2Jacme", csr), 400, ""},
		"customer too long":    {post("/v1/requests?customer="+strings.Repeat("a", 2000), csr), 400, ""},
		"no customer":          {post("/v1/requests", csr), 400, ""},
	} {
		wanted(t, what, tt.answer, tt.status, tt.rule)
		if tt.answer.Header.Get("X-Evil") != "" {
			t.Errorf("%s: a header of the caller's", what)
		}
	}
	report := decoded[api.VerifyResult](t, post("/v1/verify", "<plist>").Body)
	if report.OK || len(report.Findings) == 0 {
		t.Errorf("%+v", report)
	}
	// An endless body is read no further than its limit.
	conn := raw(t, s)
	say(t, conn, "POST %s HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nTransfer-Encoding: chunked\r\n\r\n", sign, s.Tokens["backend"])
	go func() {
		chunk := []byte("10000\r\n" + strings.Repeat("A", 0x10000) + "\r\n")
		for {
			if _, err := conn.Write(chunk); err != nil {
				return
			}
		}
	}()
	response := testkit.Value(http.ReadResponse(bufio.NewReader(conn), nil))(t)
	if response.StatusCode != 413 {
		t.Errorf("an endless body: %s", response.Status)
	}
	// A caller that is not known sends no body at all.
	stranger := raw(t, s)
	say(t, stranger, "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n", sign)
	if response := testkit.Value(http.ReadResponse(bufio.NewReader(stranger), nil))(t); response.StatusCode != 401 {
		t.Errorf("without a caller: %s", response.Status)
	}
}

func TestHeaders(t *testing.T) {
	s := servicekit.Start(t, servicekit.Options{})
	conn := raw(t, s)
	go func() {
		_, _ = fmt.Fprintf(conn, "GET /v1/me HTTP/1.1\r\nHost: localhost\r\nX: %s\r\n\r\n", strings.Repeat("a", 1<<20))
	}()
	if response := testkit.Value(http.ReadResponse(bufio.NewReader(conn), nil))(t); response.StatusCode != 431 {
		t.Errorf("a large header: %s", response.Status)
	}
	// DNS rebinding: a web page at evil.example whose name has the loopback address.
	client := s.Client(t, nil)
	for _, host := range []string{"evil.example", "evil.example:8080", "localhost.evil.example", "169.254.169.254"} {
		a := servicekit.Do(t, client, s.Tokens["backend"], "POST", s.HTTP+"/v1/requests?customer=acme", servicekit.CSR(testkit.Key("customer")), "Host", host)
		wanted(t, host, a, 400, "")
		if !strings.Contains(a.Body, "this server is not") {
			t.Errorf("%s: %s", host, a.Body)
		}
		for _, path := range []string{"/readyz", "/livez"} {
			wanted(t, host+path, servicekit.Do(t, client, "", "GET", s.HTTP+path, "", "Host", host), 400, "")
		}
	}
}

// A page of another web site cannot use the client certificate of a browser.
func TestCrossOrigin(t *testing.T) {
	s := servicekit.Start(t, servicekit.Options{})
	mtls, csr := s.Client(t, &s.Cert), servicekit.CSR(testkit.Key("customer"))
	browser := []string{"User-Agent", "Mozilla/5.0", "Content-Type", "application/x-www-form-urlencoded"}
	origin := strings.Replace(s.URL, "127.0.0.1", "localhost", 1)
	for what, tt := range map[string]struct {
		headers []string
		status  int
	}{
		"a program":                    {nil, 200},
		"another site":                 {[]string{"Sec-Fetch-Site", "cross-site"}, 403},
		"another host of this site":    {[]string{"Sec-Fetch-Site", "same-site"}, 403},
		"another origin":               {[]string{"Origin", "https://evil.example"}, 403},
		"a page without an origin":     {[]string{"Origin", "null"}, 403},
		"a browser that does not say":  {nil, 403},
		"a browser with cookies":       {[]string{"Cookie", "a=b", "User-Agent", "x"}, 403},
		"this server's page":           {[]string{"Sec-Fetch-Site", "same-origin"}, 200},
		"this server's page, by names": {[]string{"Origin", s.URL}, 200},
		"another port of this host":    {[]string{"Origin", origin + "1"}, 403},
	} {
		headers := tt.headers
		if what != "a program" {
			headers = slices.Concat(browser, tt.headers)
		}
		a := servicekit.Do(t, mtls, "", "POST", s.URL+"/v1/requests?customer=acme", csr, headers...)
		rule := ""
		if tt.status == 403 {
			rule = "server.cross-origin"
		}
		wanted(t, what, a, tt.status, rule)
		if a.Header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s: it allows other origins", what)
		}
	}
}

// Paths with tricks are no paths.
func TestPaths(t *testing.T) {
	s := servicekit.Start(t, servicekit.Options{})
	for _, path := range []string{
		"/v1/requests/../me", "/v1//me", "/v1/./me", "/v1/requests/..%2fme", "/v1/requests/%2e%2e", "/v1/requests/%00", "/v1/customers/../../etc/passwd", "/v1/me/", "//v1/me", "/v1/entries/0x1", "/v1/entries/%2b1",
		"/v1/proof/" + strings.Repeat("g", 32), "/V1/me", "/v1/requests/" + strings.Repeat("a", 10_000),
	} {
		conn := raw(t, s)
		say(t, conn, "GET %s HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nConnection: close\r\n\r\n", path, s.Tokens["reader"])
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || response.StatusCode != 404 && response.StatusCode != 400 {
			t.Errorf("%s: %v, %v", path, response, err)
		}
	}
}

// What callers write stays within one field of one line of the log, and no secret is in it.
func TestLog(t *testing.T) {
	s := servicekit.Start(t, servicekit.Options{})
	client, csr := s.Client(t, nil), servicekit.CSR(testkit.Key("customer"))
	evil := "%0a%7b%22level%22:%22FORGED%22%7d%1b%5b31m"
	for _, path := range []string{"/v1/requests?customer=" + evil, "/v1/requests?customer=x&vendor=" + evil, "/" + evil, "/v1/requests/" + evil, "/v1/requests?" + evil + "=1"} {
		servicekit.Do(t, client, s.Tokens["backend"], "POST", s.URL+path, csr)
	}
	servicekit.Do(t, client, s.Tokens["backend"], "POST", s.URL+"/v1/requests?customer=acme", csr, "X-Request-Id", "forged-id")
	log := s.Log()
	for line := range strings.Lines(log) {
		if r := decoded[map[string]any](t, line); r["level"] == "FORGED" || r["msg"] == "" {
			t.Errorf("%s", line)
		}
	}
	for _, secret := range []string{s.Tokens["backend"], s.Tokens["backend"][20:40], csr[60:120], "\x1b", "forged-id"} {
		if strings.Contains(log, secret) {
			t.Errorf("the log has %q", secret)
		}
	}
	if !strings.Contains(log, `"caller":"backend"`) || !strings.Contains(log, `"route":"POST /v1/requests"`) {
		t.Errorf("%s", log)
	}
}

// Strangers do not fill the log.
func TestFloodOfStrangers(t *testing.T) {
	s := servicekit.Start(t, servicekit.Options{})
	client := s.Client(t, nil)
	const requests = 500
	for range requests {
		wanted(t, "a stranger", servicekit.Do(t, client, "", "GET", s.HTTP+"/v1/me", ""), 401, "")
	}
	if n := strings.Count(s.Log(), `"kind":"unauthenticated"`); n == 0 || n == requests {
		t.Errorf("%d records of %d requests", n, requests)
	}
}

// One valid token that floods refusals fills neither the ledger nor the other callers' time.
func TestFloodOfRefusals(t *testing.T) {
	s := servicekit.Start(t, servicekit.Options{Roles: map[string]policy.RoleConfig{
		"acme": {May: []string{policy.Sign}, Customers: []string{"acme"}, PerSecond: 50, PerDay: 50, Approvals: policy.NoApprovals()},
	}})
	client := s.Client(t, nil)
	testkit.Until(t, "the service is ready", func() bool { return servicekit.Do(t, client, "", "GET", s.URL+"/readyz", "").StatusCode == 200 })
	before := testkit.Value(s.Ledger.Head(t.Context()))(t).Size
	var mu sync.Mutex
	statuses := map[int]int{}
	var all sync.WaitGroup
	for i := range 8 {
		csr := servicekit.CSR(testkit.Key(fmt.Sprint("flood ", i)))
		all.Go(func() {
			for range 100 {
				a := servicekit.Do(t, client, s.Tokens["acme"], "POST", s.URL+"/v1/requests?customer=bolt", csr)
				mu.Lock()
				statuses[a.StatusCode]++
				mu.Unlock()
			}
		})
	}
	all.Wait()
	if statuses[403] == 0 || statuses[403]+statuses[429] != 800 || statuses[429] == 0 {
		t.Errorf("%v", statuses)
	}
	if grown := testkit.Value(s.Ledger.Head(t.Context()))(t).Size - before; grown != 8 {
		t.Errorf("%d entries for 8 CSRs", grown)
	}
	wanted(t, "another caller", servicekit.Do(t, client, s.Tokens["backend"], "POST", s.URL+"/v1/requests?customer=acme", servicekit.CSR(testkit.Key("customer"))), 200, "")
}

// Over the limits of its role a caller is refused.
func TestLimits(t *testing.T) {
	s := servicekit.Start(t, servicekit.Options{Roles: map[string]policy.RoleConfig{
		"acme":   {May: []string{policy.Sign}, Customers: []string{"acme"}, PerSecond: 1, PerDay: 1000, Approvals: policy.NoApprovals()},
		"signer": {May: []string{policy.Sign}, Customers: []string{"*"}, PerSecond: 1000, PerDay: 3, Approvals: policy.NoApprovals()},
	}})
	client, csr := s.Client(t, nil), servicekit.CSR(testkit.Key("customer"))
	var mu sync.Mutex
	statuses := map[int]int{}
	var all sync.WaitGroup
	for range 30 {
		all.Go(func() {
			a := servicekit.Do(t, client, s.Tokens["acme"], "POST", s.URL+"/v1/requests", csr)
			mu.Lock()
			statuses[a.StatusCode]++
			mu.Unlock()
		})
	}
	all.Wait()
	if statuses[200] == 0 || statuses[429] == 0 || statuses[200]+statuses[429] != 30 {
		t.Errorf("a second: %v", statuses)
	}
	ask := func(i int) servicekit.Answer {
		return servicekit.Do(t, client, s.Tokens["backend"], "POST", s.URL+"/v1/requests?customer=acme", servicekit.CSR(testkit.Key(fmt.Sprint("limit ", i))))
	}
	for i := range 3 {
		wanted(t, "within the day", ask(i), 200, "")
	}
	wanted(t, "a day", ask(3), 429, "policy.per-day")
	wanted(t, "a stored request", ask(2), 200, "")
	me := decoded[api.Me](t, servicekit.Do(t, client, s.Tokens["backend"], "GET", s.URL+"/v1/me", "").Body)
	if me.Left == nil || *me.Left != 0 || me.PerDay != 3 || me.PerSecond != 1000 {
		t.Errorf("%+v", me)
	}
}

// A caller with as many requests at once as it may have is refused before the body of one more is read.
func TestBodiesThatDoNotCome(t *testing.T) {
	s := servicekit.Start(t, servicekit.Options{Change: func(cfg *server.Config) { cfg.Limits.Each = 4 }})
	testkit.Until(t, "one is refused", func() bool { // the others keep their places
		conn := raw(t, s)
		say(t, conn, "POST /v1/requests?customer=acme HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nContent-Length: 10\r\n\r\n", s.Tokens["backend"])
		testkit.OK(t, conn.SetReadDeadline(time.Now().Add(200*time.Millisecond)))
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		return err == nil && response.StatusCode == 429
	})
}

// A token with one changed character is refused like one that is not known, wherever it was changed.
func TestChangedTokens(t *testing.T) {
	s := servicekit.Start(t, servicekit.Options{})
	token := []byte(s.Tokens["backend"])
	wrong := func(at int) string {
		c := bytes.Clone(token)
		c[at] = map[bool]byte{true: 'b', false: 'a'}[c[at] == 'a']
		return string(c)
	}
	client := &http.Client{Timeout: time.Minute}
	for _, at := range []int{8, 20, len(token) - 20, len(token) - 1} {
		wanted(t, fmt.Sprint("position ", at), servicekit.Do(t, client, wrong(at), "GET", s.HTTP+"/v1/me", ""), 401, "")
	}
}

// A freeze that commits while a signature is in the key store stops its release, on every replica.
func TestFreeze(t *testing.T) {
	s := servicekit.Start(t, servicekit.Options{})
	client := s.Client(t, nil)
	answers, finish := held(t, s)
	testkit.OK(t, s.Ledger.Freeze(context.Background(), "ada", "local", ledger.Freeze{Scope: ledger.FreezeAll, Reason: "stolen token"}))
	finish()
	wanted(t, "in the key store", <-answers, 403, "ledger.frozen")
	wanted(t, "after it", servicekit.Do(t, client, s.Tokens["backend"], "POST", s.URL+"/v1/requests?customer=acme", servicekit.CSR(testkit.Key("customer"))), 403, "ledger.frozen")
	me := decoded[api.Me](t, servicekit.Do(t, client, s.Tokens["backend"], "GET", s.URL+"/v1/me", "").Body)
	if len(me.Frozen) != 1 || me.Frozen[0].Reason != "stolen token" {
		t.Errorf("%+v", me.Frozen)
	}
}

// A handshake without the private key of a pinned certificate fails.
func TestStolenCertificate(t *testing.T) {
	s := servicekit.Start(t, servicekit.Options{})
	other := s.CA.Issue(t, "other", nil)
	stolen := tls.Certificate{Certificate: s.Cert.Certificate, PrivateKey: other.PrivateKey}
	client := s.Client(t, &stolen)
	r := testkit.Value(http.NewRequestWithContext(t.Context(), "GET", s.URL+"/v1/me", nil))(t)
	if response, err := client.Do(r); err == nil {
		t.Errorf("%s", response.Status)
		_ = response.Body.Close()
	}
}
