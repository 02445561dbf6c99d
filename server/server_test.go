package server_test

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"hsmsign/agent/policy"
	"hsmsign/api"
	"hsmsign/internal/servicekit"
	"hsmsign/internal/testkit"
	"hsmsign/request"
	"hsmsign/server/authn"
)

// decoded reads JSON.
func decoded[T any](t *testing.T, text string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return v
}

// wanted checks the status of an answer, and, of an error, its problem.
func wanted(t *testing.T, what string, a servicekit.Answer, status int, rule string) {
	t.Helper()
	if a.StatusCode != status {
		t.Errorf("%s: %d, want %d: %s", what, a.StatusCode, status, a.Body)
		return
	}
	if status < 400 {
		return
	}
	p := decoded[api.Problem](t, a.Body)
	if a.Header.Get("Content-Type") != "application/problem+json" || p.Status != status && status != http.StatusMethodNotAllowed || p.Detail == "" || p.Fix == "" || p.RequestID != a.Header.Get("X-Request-Id") || rule != "" && p.Rule != rule {
		t.Errorf("%s: %s", what, a.Body)
	}
	if retry := a.Header.Get("Retry-After") != ""; retry != (status == 429 || status == 503) {
		t.Errorf("%s: Retry-After %q", what, a.Header.Get("Retry-After"))
	}
}

// One request with each credential does the whole job, and the same CSR gets the stored answer.
func TestSign(t *testing.T) {
	s := servicekit.Start(t, servicekit.Options{Callers: map[string]policy.CallerConfig{"local": {Role: "admin", Person: "bo", UID: []int{os.Getuid()}}}})
	csr := servicekit.CSR(testkit.Key("customer"))
	plain, mtls := s.Client(t, nil), s.Client(t, &s.Cert)
	const query = "/v1/requests?customer=acme"
	first := servicekit.Do(t, plain, s.Tokens["backend"], "POST", s.URL+query, csr)
	wanted(t, "a token", first, 200, "")
	report := request.Verify([]byte(first.Body), request.VerifyOptions{TrustRoots: []*x509.Certificate{s.Root}})
	if !report.OK() {
		t.Fatalf("%+v", report.Findings)
	}
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte("backend:"+s.Tokens["backend"]))
	for what, a := range map[string]servicekit.Answer{
		"a client certificate": servicekit.Do(t, mtls, "", "POST", s.URL+query, csr),
		"Basic":                servicekit.Do(t, plain, "", "POST", s.URL+query, csr, "Authorization", basic),
		"loopback":             servicekit.Do(t, plain, s.Tokens["backend"], "POST", s.HTTP+query, csr),
		"a Unix socket":        servicekit.Do(t, s.UnixClient(t), "", "POST", "http://localhost"+query, csr),
		"the caller's own":     servicekit.Do(t, plain, s.Tokens["acme"], "POST", s.URL+"/v1/requests", csr),
		"a form":               servicekit.Do(t, plain, s.Tokens["backend"], "POST", s.URL+query, csr, "Content-Type", "application/x-www-form-urlencoded"),
	} {
		wanted(t, what, a, 200, "")
		if a.Body != first.Body || a.Header.Get("Location") != first.Header.Get("Location") {
			t.Errorf("%s: another answer", what)
		}
	}
	if n := s.Key.Calls.Load(); n > 2 { // one of them is the probe
		t.Errorf("%d signatures", n)
	}
	order, err := json.Marshal(api.SignOrder{CSR: csr, Customer: "acme", Receipt: true})
	testkit.OK(t, err)
	a := servicekit.Do(t, plain, s.Tokens["backend"], "POST", s.URL+"/v1/requests", string(order), "Content-Type", "application/json")
	wanted(t, "JSON", a, 200, "")
	result := decoded[api.SignResult](t, a.Body)
	if result.Status != api.StatusStored || result.Request != first.Body || !strings.Contains(result.Receipt, "c2sp.org/tlog-proof") || result.UseBefore == "" || "/v1/requests/"+result.RequestID != first.Header.Get("Location") {
		t.Errorf("%+v", result)
	}
	if report, err := s.Ledger.Verify(t.Context(), nil); err != nil || len(report.Defects) > 0 {
		t.Errorf("%+v, %v", report, err)
	}
}

// What a check says is what the request gets, and it leaves no trace.
func TestCheck(t *testing.T) {
	s := servicekit.Start(t, servicekit.Options{})
	client, csr := s.Client(t, nil), servicekit.CSR(testkit.Key("customer"))
	testkit.Until(t, "the service is ready", func() bool { return servicekit.Do(t, client, "", "GET", s.URL+"/readyz", "").StatusCode == 200 })
	before := testkit.Value(s.Ledger.Head(t.Context()))(t)
	signatures := s.Key.Calls.Load()
	check := func(query string) servicekit.Answer {
		return servicekit.Do(t, client, s.Tokens["acme"], "POST", s.URL+"/v1/requests?check=1"+query, csr)
	}
	a := check("")
	wanted(t, "allowed", a, 200, "")
	if r := decoded[api.SignResult](t, a.Body); r.Status != api.StatusAllowed || r.Request != "" {
		t.Errorf("%+v", r)
	}
	wanted(t, "refused", check("&customer=other"), 403, policy.RuleCustomer)
	if after := testkit.Value(s.Ledger.Head(t.Context()))(t); after.Size != before.Size || s.Key.Calls.Load() != signatures {
		t.Errorf("%d entries instead of %d", after.Size, before.Size)
	}
	wanted(t, "signed", servicekit.Do(t, client, s.Tokens["acme"], "POST", s.URL+"/v1/requests", csr), 200, "")
	if r := decoded[api.SignResult](t, check("").Body); r.Status != api.StatusStored {
		t.Errorf("%+v", r)
	}
}

// A caller sees and changes what is about its customers. Everything else does not exist for it.
func TestScope(t *testing.T) {
	s := servicekit.Start(t, servicekit.Options{})
	client := s.Client(t, nil)
	mtls := s.Client(t, &s.Cert)
	id := func(customer, key string) string {
		a := servicekit.Do(t, mtls, "", "POST", s.URL+"/v1/requests?customer="+customer, servicekit.CSR(testkit.Key(key)))
		wanted(t, customer, a, 200, "")
		return strings.TrimPrefix(a.Header.Get("Location"), "/v1/requests/")
	}
	own, foreign := id("acme", "customer"), id("bolt", "other")
	customers := decoded[api.List[api.Customer]](t, servicekit.Do(t, mtls, "", "GET", s.URL+"/v1/customers", "").Body).Items
	if len(customers) != 2 || customers[1].Name != "bolt" {
		t.Fatalf("%+v", customers)
	}
	foreignEntry, head := -1, testkit.Value(s.Ledger.Head(t.Context()))(t)
	for i := range int(head.Size) {
		if r := testkit.Value(s.Ledger.Record(t.Context(), int64(i)))(t); r.Customer == "bolt" {
			foreignEntry = i
		}
	}
	get := func(path string) servicekit.Answer {
		return servicekit.Do(t, client, s.Tokens["acme"], "GET", s.URL+path, "")
	}
	for _, path := range []string{
		"/v1/requests/" + own, "/v1/proof/" + own, "/v1/requests", "/v1/customers", "/v1/customers/" + customers[0].ID, "/v1/entries", "/v1/entries?customer=acme", "/v1/export", "/v1/export?as=csv",
		"/v1/due", "/v1/me", "/v1/status", "/v1/vendor", "/v1/checkpoint", "/v1/openapi.yaml",
	} {
		a := get(path)
		wanted(t, path, a, 200, "")
		if strings.Contains(a.Body, "bolt") || strings.Contains(a.Body, foreign) || strings.Contains(a.Body, customers[1].ID) {
			t.Errorf("%s: it says something of another customer: %s", path, a.Body)
		}
	}
	for _, path := range []string{
		"/v1/requests/" + foreign, "/v1/proof/" + foreign, "/v1/customers/" + customers[1].ID, "/v1/entries?customer=bolt", "/v1/requests?customer=bolt",
		fmt.Sprint("/v1/entries/", foreignEntry), "/v1/entries/0", "/v1/requests/" + strings.Repeat("0", 32), "/v1/requests/x", "/v1/entries/x", "/v1/entries/-1", "/v1/entries/99999",
	} {
		wanted(t, path, get(path), 404, "")
	}
	nobody := strings.ReplaceAll(get("/v1/requests/"+strings.Repeat("0", 32)).Body, strings.Repeat("0", 32), "ID")
	other := strings.ReplaceAll(get("/v1/requests/"+foreign).Body, foreign, "ID")
	if drop := func(s string) string { return s[:strings.Index(s, "request_id")] }; drop(nobody) != drop(other) {
		t.Errorf("one that is not the caller's and one that does not exist differ:\n%s%s", nobody, other)
	}
	post := func(method, path, body string) servicekit.Answer {
		return servicekit.Do(t, client, s.Tokens["acme"], method, s.URL+path, body, "Content-Type", "application/json")
	}
	wanted(t, "change", post("PATCH", "/v1/customers/"+customers[0].ID, `{"contact":"it@acme.example"}`), 200, "")
	wanted(t, "another's", post("PATCH", "/v1/customers/"+customers[1].ID, `{"contact":"x"}`), 404, "")
	wanted(t, "rename out", post("PATCH", "/v1/customers/"+customers[0].ID, `{"name":"bolt2"}`), 403, policy.RuleCustomer)
	wanted(t, "add", post("POST", "/v1/customers", `{"name":"new"}`), 403, policy.RuleCustomer)
	wanted(t, "freeze another's", post("POST", "/v1/freeze", `{"scope":"customer","name":"bolt","reason":"x"}`), 403, policy.RuleCustomer)
	wanted(t, "freeze all", post("POST", "/v1/freeze", `{"scope":"all","reason":"x"}`), 403, policy.RuleCustomer)
	wanted(t, "freeze", post("POST", "/v1/freeze", `{"scope":"customer","name":"acme","reason":"stolen"}`), 200, "")
	wanted(t, "frozen", servicekit.Do(t, client, s.Tokens["acme"], "POST", s.URL+"/v1/requests", servicekit.CSR(testkit.Key("customer"))), 403, "ledger.frozen")
	wanted(t, "a stored request that is frozen", get("/v1/requests/"+own), 403, "ledger.frozen")
	wanted(t, "unfreeze", post("POST", "/v1/unfreeze", `{"scope":"customer","name":"acme","reason":"found"}`), 200, "")
	wanted(t, "again", get("/v1/requests/"+own), 200, "")
	// Without the verb read there is nothing to list; a signer fetches what it asked for.
	signer := func(path string) servicekit.Answer {
		return servicekit.Do(t, client, s.Tokens["backend"], "GET", s.URL+path, "")
	}
	wanted(t, "a signer's request", signer("/v1/requests/"+own), 200, "")
	for _, path := range []string{"/v1/requests", "/v1/entries", "/v1/entries/1", "/v1/export", "/v1/checkpoint", "/v1/customers", "/v1/due", "/v1/status"} {
		wanted(t, path, signer(path), 403, policy.RuleVerb)
	}
	reader := servicekit.Do(t, client, s.Tokens["reader"], "POST", s.URL+"/v1/requests?customer=acme", servicekit.CSR(testkit.Key("customer")))
	wanted(t, "a reader signs", reader, 403, policy.RuleVerb)
}

// Whoever is not known is told the same, whatever the reason, and nothing else.
func TestUnknownCallers(t *testing.T) {
	foreign := testkit.NewCA(t, "foreign")
	s := servicekit.Start(t, servicekit.Options{})
	expired := s.CA.Issue(t, "expired", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	other, stranger := s.CA.Issue(t, "other", nil), foreign.Issue(t, "ada", nil)
	s.Callers["late"] = policy.CallerConfig{Role: "admin", Person: "late", ClientCert: policy.ClientCertConfig{SPKI: []string{servicekit.Pin(expired)}}}
	s.Callers["away"] = policy.CallerConfig{Role: "admin", Person: "away", ClientCert: policy.ClientCertConfig{SPKI: []string{servicekit.Pin(other)}}, From: []string{"192.0.2.0/24"}}
	testkit.OK(t, s.Server.Reload(t.Context(), true))
	wrong := s.Tokens["backend"][:len(s.Tokens["backend"])-9] + "aaaaaaaaa"
	want := ""
	for _, tt := range []struct {
		what    string
		cert    *tls.Certificate
		token   string
		headers []string
	}{
		{"nothing", nil, "", nil},
		{"an empty token", nil, "", []string{"Authorization", "Bearer "}},
		{"not a token", nil, "x", nil},
		{"a wrong token", nil, wrong, nil},
		{"another scheme", nil, "", []string{"Authorization", "Digest username=x"}},
		{"Basic with another name", nil, "", []string{"Authorization", "Basic " + base64.StdEncoding.EncodeToString([]byte("ada:"+s.Tokens["backend"]))}},
		{"Basic that is not base64", nil, "", []string{"Authorization", "Basic !!!"}},
		{"a certificate of another CA", &stranger, "", nil},
		{"an expired certificate", &expired, "", nil},
		{"a certificate from another network", &other, "", nil},
		{"certificate and token of different callers", &s.Cert, s.Tokens["backend"], nil},
		{"a token and the certificate of nobody", &stranger, s.Tokens["backend"], nil},
		{"forwarded headers", nil, "", []string{"X-Forwarded-For", "127.0.0.1", "X-Client-Cert", "ada", "X-Remote-User", "ada", "Forwarded", "for=127.0.0.1"}},
	} {
		for _, path := range []string{"/v1/me", "/v1/nothing", "/v1/requests/" + strings.Repeat("0", 32)} {
			a := servicekit.Do(t, s.Client(t, tt.cert), tt.token, "GET", s.URL+path, "", tt.headers...)
			wanted(t, tt.what, a, 401, "")
			body := strings.Replace(a.Body, a.Header.Get("X-Request-Id"), "ID", 1)
			if want == "" {
				want = body
			}
			if body != want || a.Header.Get("WWW-Authenticate") == "" {
				t.Errorf("%s: %s", tt.what, a.Body)
			}
		}
	}
	if token := servicekit.Do(t, s.UnixClient(t), s.Tokens["backend"], "GET", "http://localhost/v1/me", ""); token.StatusCode != 401 {
		t.Errorf("a token on a Unix socket: %d", token.StatusCode)
	}
	if strings.Contains(s.Log(), wrong) || strings.Contains(s.Log(), s.Tokens["backend"]) {
		t.Error("the log has a token")
	}
}

// A reload takes effect on connections that are open, and one that is wrong changes nothing.
func TestReload(t *testing.T) {
	s := servicekit.Start(t, servicekit.Options{})
	mtls, plain := s.Client(t, &s.Cert), s.Client(t, nil)
	wanted(t, "before", servicekit.Do(t, mtls, "", "GET", s.URL+"/v1/me", ""), 200, "")
	wanted(t, "before", servicekit.Do(t, plain, s.Tokens["backend"], "GET", s.URL+"/v1/me", ""), 200, "")
	raw := testkit.Value(tls.Dial("tcp", strings.TrimPrefix(s.URL, "https://"), &tls.Config{RootCAs: pool(s), Certificates: []tls.Certificate{s.Cert}, ServerName: "localhost"}))(t)
	defer func() { _ = raw.Close() }()
	say(t, raw, "GET /v1/me HTTP/1.1\r\nHost: localhost\r\n\r\n")
	reader := bufio.NewReader(raw)
	if r := testkit.Value(http.ReadResponse(reader, nil))(t); r.StatusCode != 200 {
		t.Fatal(r.Status)
	}
	callers := s.Callers
	s.Callers = map[string]policy.CallerConfig{"x": {}}
	if err := s.Server.Reload(t.Context(), true); err == nil || !strings.Contains(s.Log(), "reload failed") {
		t.Errorf("a wrong configuration: %v", err)
	}
	wanted(t, "after a wrong one", servicekit.Do(t, mtls, "", "GET", s.URL+"/v1/me", ""), 200, "")
	s.Callers = callers
	delete(s.Callers, "ada")
	testkit.OK(t, s.Server.Reload(t.Context(), true))
	testkit.OK(t, raw.SetReadDeadline(time.Now().Add(10*time.Second)))
	rest := make([]byte, 4096)
	for { // the answer is read already; then the end
		if _, err := reader.Read(rest); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("the connection of a caller that is gone is open")
			}
			break
		}
	}
	wanted(t, "gone", servicekit.Do(t, mtls, "", "GET", s.URL+"/v1/me", ""), 401, "")
	wanted(t, "stays", servicekit.Do(t, plain, s.Tokens["backend"], "GET", s.URL+"/v1/me", ""), 200, "")
	policies := 0
	for i := range testkit.Value(s.Ledger.Head(t.Context()))(t).Size {
		if testkit.Value(s.Ledger.Record(t.Context(), i))(t).Entry.Kind == "policy" {
			policies++
		}
	}
	if policies != 2 {
		t.Errorf("%d policy entries; want those of the start and of the reload", policies)
	}
}

func pool(s *servicekit.Service) *x509.CertPool {
	roots := x509.NewCertPool()
	roots.AddCert(s.CA.Cert)
	return roots
}

// Certificates under a CA name callers; a CRL takes effect at once, also on a connection that is open.
func TestCallersUnderCA(t *testing.T) {
	ca := testkit.NewCA(t, "callers")
	options := servicekit.Options{Callers: map[string]policy.CallerConfig{
		"portal": {Role: "admin", Owners: []string{"ada"}, ClientCert: policy.ClientCertConfig{SAN: []string{"dns:portal.example"}}},
	}}
	options.Clients = testkit.Value(authn.NewAuthorities([]*x509.Certificate{ca.Cert}, nil))(t)
	name := func(c *x509.Certificate) { c.DNSNames = []string{"portal.example"} }
	cert, second := ca.Issue(t, "portal", name), ca.Issue(t, "portal", name)
	s := servicekit.Start(t, options)
	client := s.Client(t, &cert)
	wanted(t, "by its name", servicekit.Do(t, client, "", "GET", s.URL+"/v1/me", ""), 200, "")
	forged := s.CA.Issue(t, "portal", name)
	wanted(t, "the name under another CA", servicekit.Do(t, s.Client(t, &forged), "", "GET", s.URL+"/v1/me", ""), 401, "")
	s.SetClients(testkit.Value(authn.NewAuthorities([]*x509.Certificate{ca.Cert}, ca.CRL(t, time.Now().Add(time.Hour), cert.Leaf)))(t))
	testkit.OK(t, s.Server.Reload(t.Context(), false))
	wanted(t, "revoked", servicekit.Do(t, client, "", "GET", s.URL+"/v1/me", ""), 401, "")
	wanted(t, "not revoked", servicekit.Do(t, s.Client(t, &second), "", "GET", s.URL+"/v1/me", ""), 200, "")
}

// A TLS certificate with the vendor's key would make the vendor's key sign handshakes.
func TestVendorKeyIsNotForTLS(t *testing.T) {
	s := servicekit.Start(t, servicekit.Options{})
	s.SetTLS(s.CA.IssueFor(t, testkit.Key(servicekit.VendorKey), "server", nil))
	if err := s.Server.Reload(t.Context(), true); err == nil || !strings.Contains(err.Error(), "vendor") {
		t.Errorf("%v", err)
	}
}

// held asks for a signature and returns when the key store is making it. It is made when finish is called.
func held(t *testing.T, s *servicekit.Service) (answers <-chan servicekit.Answer, finish func()) {
	t.Helper()
	client := s.Client(t, nil)
	testkit.Until(t, "the service is ready", func() bool { return servicekit.Do(t, client, "", "GET", s.URL+"/readyz", "").StatusCode == 200 })
	begun, end, answered := make(chan bool, 1), make(chan bool), make(chan servicekit.Answer, 1)
	s.Key.Fail = func() error { begun <- true; <-end; return nil }
	go func() {
		answered <- servicekit.Do(t, client, s.Tokens["backend"], "POST", s.URL+"/v1/requests?customer=acme", servicekit.CSR(testkit.Key("customer")))
	}()
	<-begun
	return answered, func() { close(end) }
}

// Requests that have begun are finished; nothing new is accepted.
func TestDrain(t *testing.T) {
	s := servicekit.Start(t, servicekit.Options{})
	answers, finish := held(t, s)
	s.Stopping()
	testkit.Until(t, "nothing new is accepted", func() bool {
		conn, err := net.DialTimeout("tcp", strings.TrimPrefix(s.HTTP, "http://"), time.Second)
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	})
	finish()
	wanted(t, "the request that had begun", <-answers, 200, "")
	testkit.OK(t, s.Stop())
	if _, err := os.Lstat(s.Socket); err == nil {
		t.Error("the socket is left")
	}
}
