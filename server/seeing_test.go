package server_test

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"hsmsign/agent/policy"
	"hsmsign/internal/servicekit"
	"hsmsign/internal/testkit"
	"hsmsign/server"
	"hsmsign/server/traces"
	"hsmsign/server/traces/tracestest"
)

// traced starts a service whose spans a collector gets. flush ends the sending of spans.
func traced(t *testing.T) (s *servicekit.Service, c *tracestest.Collector, flush func()) {
	t.Helper()
	c = tracestest.Start()
	t.Cleanup(c.Stop)
	tracer := testkit.Value(traces.New(traces.Config{URL: c.URL, Replica: "test:1", Log: slog.New(slog.DiscardHandler)}))(t)
	t.Cleanup(tracer.Close)
	s = servicekit.Start(t, watched(func(cfg *server.Config) { cfg.Traces = tracer }))
	return s, c, tracer.Close
}

// records returns the records of a log; every line must be one.
func records(t *testing.T, log string) (all []map[string]any) {
	t.Helper()
	for line := range strings.Lines(log) {
		var record map[string]any
		if err := json.Unmarshal([]byte(line), &record); err != nil {
			t.Errorf("not a record: %q: %v", line, err)
		}
		if record["msg"] == "request" {
			all = append(all, record)
		}
	}
	return all
}

// The record and the span of a request say who asked, how, for what, and how it ended; they share an id.
func TestSeen(t *testing.T) {
	s, c, flush := traced(t)
	client := s.Client(t, nil)
	key := testkit.Key("seen")
	answer := servicekit.Do(t, client, s.Tokens["backend"], http.MethodPost, s.URL+"/v1/requests?customer=acme", servicekit.CSR(key), "Accept", "application/json",
		"Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00")
	if answer.StatusCode != http.StatusOK {
		t.Fatalf("%d %s", answer.StatusCode, answer.Body)
	}
	var signed struct {
		RequestID string `json:"request_id"`
		CSR       string `json:"csr_sha256"`
	}
	testkit.OK(t, json.Unmarshal([]byte(answer.Body), &signed))
	refused := servicekit.Do(t, client, s.Tokens["acme"], http.MethodPost, s.URL+"/v1/requests?customer=bolt", servicekit.CSR(key))
	servicekit.Do(t, client, "", http.MethodGet, s.URL+"/v1/me", "")
	servicekit.Do(t, client, "", http.MethodGet, s.URL+"/livez", "")
	flush()

	all := records(t, s.Log())
	if len(all) != 3 {
		t.Errorf("%d records of 3 requests besides a health check", len(all))
	}
	find := func(id string) map[string]any {
		i := slices.IndexFunc(all, func(r map[string]any) bool { return r["id"] == id })
		if i < 0 {
			t.Fatalf("no record %s in %s", id, s.Log())
		}
		return all[i]
	}
	first := find(answer.Header.Get("X-Request-Id"))
	for name, want := range map[string]any{
		"level": "INFO", "caller": "backend", "channel": "tls", "method": "POST", "route": "POST /v1/requests", "status": 200.0, "bytes": float64(len(answer.Body)), "remote": "127.0.0.1",
		"request": signed.RequestID, "csr_sha256": signed.CSR, "kind": nil, "error": nil,
	} {
		if first[name] != want {
			t.Errorf("%s is %v, want %v", name, first[name], want)
		}
	}
	if seconds, ok := first["seconds"].(float64); !ok || seconds <= 0 || seconds > 60 || !strings.HasPrefix(fmt.Sprint(first["credential"]), "token ") || signed.RequestID == "" {
		t.Errorf("record %v", first)
	}
	second := find(refused.Header.Get("X-Request-Id"))
	if second["level"] != "WARN" || second["kind"] != "forbidden" || second["rule"] != policy.RuleCustomer || second["caller"] != "acme" || second["status"] != 403.0 {
		t.Errorf("record %v", second)
	}

	names, roots := map[string]tracestest.Span{}, map[string]tracestest.Span{}
	for _, span := range c.Spans() {
		if span.Parent == "" {
			roots[span.Attributes["hsmsign.id"]] = span
		}
	}
	root, ok := roots[fmt.Sprint(first["id"])]
	if !ok || len(roots) != 2 || root.Name != "POST /v1/requests" || root.Error || root.Attributes["hsmsign.caller"] != "backend" || root.Attributes["hsmsign.request"] != signed.RequestID || len(root.Links) != 1 {
		t.Fatalf("roots %+v", roots)
	}
	for _, span := range c.Spans() {
		if span.Trace == root.Trace && span.ID != root.ID {
			names[span.Name] = span
		}
	}
	for _, stage := range []string{"prepare", "queue", "authorize", "sign", "conclude", "release"} {
		if span, ok := names[stage]; !ok || span.Parent != root.ID || span.Error || span.Begun.Before(root.Begun.Add(-time.Millisecond)) || span.Ended.After(root.Ended.Add(time.Millisecond)) {
			t.Errorf("stage %s: %+v", stage, span)
		}
	}
	if span := roots[fmt.Sprint(second["id"])]; span.Attributes["hsmsign.rule"] != policy.RuleCustomer || span.Attributes["http.response.status_code"] != "403" || span.Error {
		t.Errorf("refused: %+v", span)
	}
}

// hostile is in everything that the requests of TestNothingSecret contain.
const hostile = "x\x1b[31mred\r\nlevel=ERROR\n{\"msg\":\"forged\"}\u2028"

// Whatever a request contains, and wherever: no token, CSR or name of a customer is in the metrics or spans, and no token or CSR
// in the log, of which no record can be forged.
func TestNothingSecret(t *testing.T) {
	s, c, flush := traced(t)
	client := s.Client(t, nil)
	csr := servicekit.CSR(testkit.Key("nothing secret"))
	block, _ := pem.Decode([]byte(csr))
	secrets := []string{s.Tokens["backend"], s.Tokens["reader"], "hunter2", string(block.Bytes[40:80]), strings.Split(csr, "\n")[3]}
	stranger, _ := policy.NewToken(time.Now().Add(time.Hour))
	secrets = append(secrets, stranger, stranger[:40])
	send := func(token, method, target, body string, headers ...string) {
		t.Helper()
		servicekit.Do(t, client, token, method, s.URL+target, body, headers...)
	}
	// The record of a request follows its answer, and later ones of strangers need not be in the log.
	rawTLS(t, s, "hunter2"+stranger[:30]+" / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
	testkit.Until(t, "the first request is in the log", func() bool { return strings.Contains(s.Log(), `"method":"_OTHER"`) })
	escaped := url.QueryEscape("customer-7 " + hostile)
	for _, token := range []string{s.Tokens["backend"], s.Tokens["reader"], stranger, stranger[:40], ""} {
		send(token, "POST", "/v1/requests?customer="+escaped, csr)
		send(token, "POST", "/v1/requests?customer=customer-7", csr)
		send(token, "POST", "/v1/requests?customer=customer-7", csr[:300])
		send(token, "POST", "/v1/requests?customer=customer-7&"+s.Tokens["backend"]+"="+stranger, csr)
		send(token, "POST", "/v1/requests?customer="+s.Tokens["backend"]+"&vendor="+stranger, csr)
		send(token, "POST", "/v1/requests", `{"csr": "`+strings.ReplaceAll(csr, "\n", `\n`)+`", "customer": "customer-7", "`+stranger+`": 1}`, "Content-Type", "application/json")
		send(token, "GET", "/v1/"+s.Tokens["backend"]+"/"+url.PathEscape(hostile), "")
		send(token, "GET", "/v1/requests/"+stranger, "")
		send(token, "GET", "/v1/customers/"+s.Tokens["reader"], "")
		send(token, "GET", "/v1/me", "", "User-Agent", "Mozilla/5 "+stranger, "Traceparent", stranger, "Content-Type", s.Tokens["backend"], "X-Forwarded-For", s.Tokens["backend"])
		send(token, "POST", "/v1/verify", csr, "Content-Type", stranger, "Content-Encoding", stranger)
		send(token, "GET", "/v1/me", "", "Host", strings.ToLower(stranger)+".example")
	}
	send("", "GET", "/v1/me", "", "Authorization", "Basic aHVudGVyMjpodW50ZXIy")
	send("", "GET", "/v1/me", "", "Authorization", "hunter2 "+stranger)
	rawTLS(t, s, "GET /v1/me HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer "+stranger+"\r\nX: a\x1b[31m\x00\r\n\r\n")
	metrics := servicekit.Do(t, http.DefaultClient, "", http.MethodGet, s.Metrics+"/metrics", "").Body
	flush()
	log, spans := s.Log(), c.Raw()
	if len(c.Spans()) < 20 || len(records(t, log)) < 30 {
		t.Fatalf("%d spans, log %s", len(c.Spans()), log)
	}
	for where, text := range map[string]string{"log": log, "metrics": metrics, "spans": spans} {
		for _, secret := range secrets {
			if secret != "" && strings.Contains(strings.ToLower(text), strings.ToLower(secret)) {
				t.Errorf("%s contain %.24q", where, secret)
			}
		}
		if strings.ContainsAny(text, "\x1b\r\x00") && where != "spans" {
			t.Errorf("%s contain control characters", where)
		}
		if where != "log" && strings.Contains(text, "customer-7") {
			t.Errorf("%s contain the name of a customer", where)
		}
	}
	for line := range strings.Lines(log) {
		if strings.Contains(line, `"msg":"forged"`) || strings.HasPrefix(line, "level=") || len(line) > 4096 {
			t.Errorf("a record was forged: %.200q", line)
		}
	}
}

// rawTLS sends bytes over TLS and waits for the end of the answer.
func rawTLS(t *testing.T, s *servicekit.Service, text string) {
	t.Helper()
	roots := s.Client(t, nil).Transport.(*http.Transport).TLSClientConfig //nolint:forcetypeassert // servicekit made it
	conn := testkit.Value((&tls.Dialer{NetDialer: &net.Dialer{Timeout: 10 * time.Second}, Config: roots}).DialContext(t.Context(), "tcp", strings.TrimPrefix(s.URL, "https://")))(t)
	defer func() { _ = conn.Close() }() // the answer was read
	testkit.OK(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
	_ = testkit.Value(io.WriteString(conn, text))(t)
	_, _ = bufio.NewReader(conn).ReadString('\n') // a refusal, or nothing
}

// Unknown callers do not fill the log, whatever they are refused for.
func TestStrangersLog(t *testing.T) {
	s := servicekit.Start(t, watched(nil))
	client := s.Client(t, nil)
	const flood = 60
	for range flood {
		servicekit.Do(t, client, "", http.MethodGet, s.URL+"/v1/me", "")
		servicekit.Do(t, client, s.Tokens["backend"], http.MethodGet, s.URL+"/v1/me", "", "Host", "evil.example")
	}
	servicekit.Do(t, client, s.Tokens["backend"], http.MethodGet, s.URL+"/v1/me", "")
	logged, known := 0, 0
	for _, r := range records(t, s.Log()) {
		if r["caller"] == "" {
			logged++
		} else {
			known++
		}
	}
	all, _ := scrape(t, s)
	if dropped := all["hsmsign_log_dropped_total"]; known != 1 || logged < 10 || logged > 2*flood-20 || int(dropped)+logged != 2*flood {
		t.Errorf("%d records about unknown callers, %v dropped, %d about known ones", logged, dropped, known)
	}
}
