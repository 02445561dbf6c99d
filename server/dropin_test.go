package server

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"hsmsign/api"
	"hsmsign/fault"
	"hsmsign/internal/testkit"
	"hsmsign/ledger"
	"hsmsign/lifecycle/mdmcert"
	"hsmsign/server/dropin"
	"hsmsign/server/notify"
)

// replay sends bytes, and returns the bytes of the answer without the lines that are never the same.
func (f *dropInFixture) replay(t *testing.T, sent string) (answer string, body []byte) {
	t.Helper()
	conn := testkit.Value(net.Dial("tcp", f.http.Listener.Addr().String()))(t)
	defer func() { _ = conn.Close() }()
	testkit.OK(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	testkit.Value(io.WriteString(conn, sent))(t)
	var raw bytes.Buffer
	response := testkit.Value(http.ReadResponse(bufio.NewReader(io.TeeReader(conn, &raw)), nil))(t)
	defer func() { _ = response.Body.Close() }()
	body = testkit.Value(io.ReadAll(response.Body))(t)
	return regexp.MustCompile(`(?m)^(Date|X-Request-Id): .*\r\n`).ReplaceAllString(raw.String(), ""), body
}

// answerOf returns an answer of the service without the lines that are never the same.
func answerOf(status, contentType, body string, more ...string) string {
	return "HTTP/1.1 " + status + "\r\n" + strings.Join(append([]string{"Cache-Control: no-store", fmt.Sprintf("Content-Length: %d", len(body)), "Content-Type: " + contentType}, more...), "\r\n") +
		"\r\nX-Content-Type-Options: nosniff\r\n\r\n" + body
}

const (
	plainType   = "text/plain; charset=utf-8"
	mailRefused = "this server sends no mail to the address in a CSR; use a version of Fleet that asks for the answer itself (deliveryMethod=json)"
)

// Each client's bytes, as its code sends them, get the answer that the client reads, byte for byte. The vendor's key is that of the
// golden request.
func TestDropInReplay(t *testing.T) {
	f := newDropIns(t)
	file := strings.TrimSpace(string(testkit.File(t, "golden/customer.req")))
	fleet := answerOf("200 OK", asJSON, `{"csr":"`+base64.StdEncoding.EncodeToString([]byte(file))+`"}`)
	zentral := answerOf("200 OK", asJSON, `{"signed_csr":"`+file+`"}`)
	for name, want := range map[string]string{
		"fleet": fleet, "fleet-path": fleet, "zentral": zentral, "zentral-basic": zentral,
		"fleet-mail":  answerOf("400 Bad Request", plainType, mailRefused, "Connection: close"),
		"fleet-older": answerOf("400 Bad Request", plainType, mailRefused, "Connection: close"),
		"mdmctl":      answerOf("200 OK", asJSON, `{"result":"success"}`),
		"commandment": strings.Replace(answerOf("200 OK", asJSON, `{"result":"success"}`), "\r\nX-C", "\r\nConnection: close\r\nX-C", 1),
	} {
		sent := f.recorded(t, name, "acme")
		if name == "zentral" {
			sent = f.signedBy(t, sent, f.role, time.Now())
		}
		got, _ := f.replay(t, sent)
		if sortedHead(got) != sortedHead(want) {
			t.Errorf("%s:\n%q\nwant\n%q", name, got, want)
		}
	}
	if f.sts.Calls() != 1 {
		t.Errorf("%d calls of STS", f.sts.Calls())
	}
	messages := f.taken(t)
	if len(messages) != 2 {
		t.Fatalf("%d mails", len(messages))
	}
	mail, err := f.deliveries().Mail(t.Context(), messages[1])
	testkit.OK(t, err)
	content := testkit.Value(mdmcert.Decrypt(mail.Data, testkit.GoldenKey(t)))(t)
	if mail.To != "mdm@acme.example" || string(content) != file || bytes.ContainsAny(mail.Data, "\r\n ") || !strings.HasSuffix(mail.Name, ".plist.b64.p7") {
		t.Errorf("mail %+v of %d bytes", mail, len(content))
	}
}

// sortedHead returns an answer with its header lines in any one order.
func sortedHead(answer string) string {
	head, body, _ := strings.Cut(answer, "\r\n\r\n")
	lines := strings.Split(head, "\r\n")
	for i := range lines {
		for j := i; j > 1 && lines[j] < lines[j-1]; j-- {
			lines[j], lines[j-1] = lines[j-1], lines[j]
		}
	}
	return strings.Join(lines, "\r\n") + "\r\n\r\n" + body
}

const fleetJSON = FleetPath + "?deliveryMethod=json"

// Without its switch a wire form does not exist; with it, only its own routes do.
func TestDropInOff(t *testing.T) {
	f := newDropIns(t)
	csr := newCSR("drop-in")
	for name, tt := range map[string]struct {
		on     DropIn
		exists map[string]bool
	}{
		"none":    {DropIn{}, nil},
		"fleet":   {DropIn{Fleet: true}, map[string]bool{FleetPath: true, OlderFleetPath: true, "/t/" + f.tokens["acme"] + FleetPath: true, "/t/" + f.tokens["acme"] + OlderFleetPath: true}},
		"zentral": {DropIn{Zentral: true}, map[string]bool{ZentralPath: true}},
		"mdmcert": {DropIn{MDMCert: true}, map[string]bool{MDMCertPath: true}},
	} {
		next := *f.Server.state.Load()
		next.DropIn = tt.on
		f.Server.state.Store(&next)
		for _, path := range []string{FleetPath, OlderFleetPath, "/t/" + f.tokens["acme"] + FleetPath, "/t/" + f.tokens["acme"] + OlderFleetPath, ZentralPath, MDMCertPath} {
			caller := "acme"
			if strings.HasPrefix(path, "/t/") && tt.exists[path] {
				caller = ""
			}
			a := f.post(t, caller, path, fleetBody(csr))
			if found := a.status != http.StatusNotFound; found != tt.exists[path] {
				t.Errorf("%s: %s answers %d %s", name, path, a.status, a.body)
			}
			if strings.Contains(string(a.body), f.tokens["acme"]) {
				t.Errorf("%s: the answer repeats the token: %s", name, a.body)
			}
		}
	}
}

// A service that cannot mail does not answer orders of which the answer is a mail.
func TestDropInNeedsMail(t *testing.T) {
	f := newDropIns(t)
	next := *f.Server.state.Load()
	next.Channels = notify.Channels{Webhook: &notify.Webhook{}}
	if err := f.check(&next); fault.KindOf(err) != fault.Usage || !strings.Contains(err.Error(), "mdmcert") || fault.Hint(err) == "" {
		t.Errorf("%v", err)
	}
	next.Channels.SMTP = &notify.SMTP{}
	testkit.OK(t, f.check(&next))
	next.DropIn.MDMCert, next.Channels = false, notify.Channels{}
	testkit.OK(t, f.check(&next))
}

// The customer is that of the credential. What a body claims chooses nothing.
func TestDropInCustomer(t *testing.T) {
	f := newDropIns(t)
	testkit.OK(t, f.ledger.AddCustomer(t.Context(), "test", "local", ledger.Customer{Name: "bolt-inc", Contact: "it@bolt.example"}))
	zentral := func(csr string) string {
		return `{"b64_csr":"` + b64(csr) + `","fqdn":"acme.example","customer":"acme","iam_request":{"url":"https://evil.example"}}`
	}
	for i, tt := range []struct{ caller, path, body, customer string }{
		{"acme", fleetJSON, fleetBody(newCSR("drop-in")), "acme"},
		{"bolt", fleetJSON, fleetBody(newCSR("drop-in 2")), "bolt-inc"},
		{"bolt", OlderFleetPath + "?alt=json", `{"csr":"` + b64(newCSR("drop-in 3")) + `"}`, "bolt-inc"},
		{"bolt", ZentralPath, zentral(newCSR("drop-in 3")), "bolt-inc"},
	} {
		a := f.post(t, tt.caller, tt.path, tt.body)
		found := testkit.Value(f.ledger.Requests(t.Context(), ledger.Query{Limit: 1}))(t)
		if a.status != http.StatusOK || len(found) != 1 || found[0].Customer != tt.customer || found[0].Actor != tt.caller {
			t.Errorf("%d: %d %s: %+v", i, a.status, a.body, found)
		}
	}
	if f.sts.Calls() != 0 {
		t.Error("the signed request of a caller with a token was verified")
	}
	// The address that is registered for another customer is not used, whether it is named or not.
	for email, want := range map[string]string{"it@bolt.example": `{"result":"success"}`, "IT@bolt.EXAMPLE": `{"result":"success"}`,
		"mdm@acme.example": "is not the one that is registered", "evil@evil.example": "is not the one that is registered"} {
		a := send(t, f.http, http.MethodPost, MDMCertPath, nil, f.order(t, "bolt", newCSR("drop-in 2"), email))
		if a.status != http.StatusOK || !strings.Contains(string(a.body), want) || strings.Contains(want, "not") && strings.Contains(string(a.body), "it@bolt") {
			t.Errorf("%s: %d %s", email, a.status, a.body)
		}
	}
	messages := f.taken(t)
	if len(messages) != 2 {
		t.Fatalf("%d mails", len(messages))
	}
	mail, err := f.deliveries().Mail(t.Context(), messages[0])
	if err != nil || mail.To != "it@bolt.example" {
		t.Errorf("%+v, %v", mail, err)
	}
	// A message that was changed in the database to be about another customer's request is not sent.
	changed := messages[1]
	changed.Customer = testkit.Value(f.ledger.Customers(t.Context(), "acme"))(t)[0].ID
	if _, err := f.deliveries().Mail(t.Context(), changed); !errors.Is(err, notify.ErrNever) {
		t.Errorf("a changed message: %v", err)
	}
}

// A refusal has the form that the client shows: one plain line, or a reason with status 200.
func TestDropInRefusals(t *testing.T) {
	f := newDropIns(t)
	csr := newCSR("drop-in")
	const unknown = "the caller is not known; send a client certificate or a token of a caller in the server's configuration"
	big := strings.Repeat("a", mdmcert.MaxOrder+1)
	for _, tt := range []struct {
		caller, path, body string
		status             int
		want               string
	}{
		{"", fleetJSON, fleetBody(csr), 401, unknown},
		{"far", fleetJSON, fleetBody(csr), 401, unknown},
		{"", "/t/" + f.tokens["acme"][:75] + "x" + fleetJSON, fleetBody(csr), 401, unknown},
		{"acme", "/t/" + f.tokens["acme"] + fleetJSON, fleetBody(csr), 401, unknown}, // two credentials
		{"acme", fleetJSON, "{", 400, "the body is not a JSON object with the string unsignedCsrData"},
		{"acme", fleetJSON, `{"unsignedCsrData":"-----BEGIN"}`, 400, "is not the base64 of a CSR"},
		{"acme", fleetJSON, fleetBody("hello"), 422, "neither PEM nor DER"},
		{"acme", fleetJSON, big, 413, "the body is larger than"},
		{"acme", FleetPath + "?deliveryMethod=mail", fleetBody(csr), 400, "another parameter than deliveryMethod=json"},
		{"acme", fleetJSON + "&customer=bolt", fleetBody(csr), 400, "another parameter than deliveryMethod=json"},
		{"lost", fleetJSON, fleetBody(csr), 403, `caller lost may not ask for requests of the customer "lost"`},
		{"auditor", fleetJSON, fleetBody(csr), 403, "caller auditor may not ask for requests"},
		{"", ZentralPath, `{"b64_csr":"` + b64(csr) + `"}`, 401, unknown},
		{"", ZentralPath, `{"b64_csr":"` + b64(csr) + `","iam_request":{"url":"https://sts.amazonaws.com"}}`, 401, unknown},
		{"", ZentralPath, `{"b64_csr":5}`, 400, "the body is not a JSON object"},
		{"", ZentralPath, big, 413, "the body is larger than"},
		{"lost", ZentralPath, `{"b64_csr":"` + b64(csr) + `"}`, 403, "caller lost may not"},
		{"", MDMCertPath, `{"key":"none"}`, 200, `{"result":"failure","reason":"` + unknown},
		{"", MDMCertPath, `{"key":5}`, 200, `{"result":"failure","reason":"the body is not a JSON object`},
		{"", MDMCertPath, big, 200, `{"result":"failure","reason":"the body is larger than`},
		{"", MDMCertPath, `{"key":"` + f.tokens["acme"] + `"}`, 200, `{"result":"failure","reason":"unusable order`},
		{"acme", MDMCertPath, f.order(t, "acme", csr, "mdm@acme.example"), 200, unknown}, // two credentials
		{"", MDMCertPath, f.order(t, "far", csr, "mdm@acme.example"), 200, unknown},
		{"", MDMCertPath, f.order(t, "bolt", csr, "mdm@acme.example"), 200, "no email address is registered for the customer of this key"},
		{"", MDMCertPath, f.order(t, "acme", "hello", "mdm@acme.example"), 200, `{"result":"failure","reason":`},
	} {
		a := f.post(t, tt.caller, tt.path, tt.body)
		text := string(a.body)
		if a.status != tt.status || !strings.Contains(text, tt.want) || strings.ContainsAny(text, "\r\n") || len(text) > 500 {
			t.Errorf("%s %s: %d %q, want %d %q", tt.caller, tt.path, a.status, text, tt.status, tt.want)
		}
		if challenge := a.header.Get("WWW-Authenticate") != ""; challenge != (tt.status == 401) {
			t.Errorf("%s: WWW-Authenticate with %d", tt.path, tt.status)
		}
		if wantType := map[bool]string{true: asJSON, false: plainType}[strings.HasPrefix(tt.path, MDMCertPath)]; a.header.Get("Content-Type") != wantType {
			t.Errorf("%s: %s", tt.path, a.header.Get("Content-Type"))
		}
	}
	if n := len(f.taken(t)); n != 0 {
		t.Errorf("%d mails", n)
	}
	for name, token := range f.tokens {
		if strings.Contains(f.log.String(), token) {
			t.Errorf("the log has the token of %s", name)
		}
	}
}

// What the service's own failures say stays hidden in the plain forms too, and they say when to ask again.
func TestDropInHidden(t *testing.T) {
	f := newDropIns(t)
	f.sts.Misbehave(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "10.0.0.7 is down", http.StatusInternalServerError)
	})
	a := f.post(t, "", ZentralPath, f.zentralBody(t, f.role, time.Now()))
	if a.status != http.StatusServiceUnavailable || a.header.Get("Retry-After") != "5" || strings.Contains(string(a.body), "10.0.0.7") || !strings.HasPrefix(string(a.body), "the key store, the ledger") {
		t.Errorf("%d %v %s", a.status, a.header, a.body)
	}
	testkit.Value(f.store.DB.ExecContext(t.Context(), "ALTER TABLE outbox RENAME TO elsewhere"))(t)
	a = f.post(t, "", MDMCertPath, f.order(t, "acme", newCSR("drop-in"), "mdm@acme.example"))
	if a.status != http.StatusOK || strings.Contains(string(a.body), "outbox") || !strings.HasPrefix(string(a.body), `{"result":"failure","reason":"the server failed at this request`) {
		t.Errorf("%d %v %s", a.status, a.header, a.body)
	}
	// More mails than a day has, and more requests than a second has.
	testkit.Value(f.store.DB.ExecContext(t.Context(), "ALTER TABLE elsewhere RENAME TO outbox"))(t)
	for i := range dropin.PerDay + 1 {
		a = f.post(t, "", MDMCertPath, f.order(t, "acme", newCSR("drop-in"), "mdm@acme.example"))
		if ok := strings.Contains(string(a.body), "success"); ok != (i < dropin.PerDay) {
			t.Errorf("mail %d: %s", i, a.body)
		}
	}
	for range 5 {
		a = f.post(t, "slow", fleetJSON, fleetBody(newCSR("drop-in 2")))
	}
	if a.status != http.StatusTooManyRequests || a.header.Get("Retry-After") != "1" || !strings.HasPrefix(string(a.body), "caller slow may send 1 requests for signatures a second") {
		t.Errorf("%d %v %s", a.status, a.header, a.body)
	}
}

// A request that others have to approve: Fleet and Zentral are told to ask again, and the mail follows the approval.
func TestDropInWaiting(t *testing.T) {
	f := newDropIns(t)
	csr := newCSR("drop-in")
	a := f.post(t, "waits", fleetJSON, fleetBody(csr))
	id := strings.TrimSuffix(strings.TrimPrefix(string(a.body), "waiting for approval "), ", ask again")
	if len(id) != 32 || a.status != http.StatusForbidden || a.header.Get("Content-Type") != plainType {
		t.Fatalf("Fleet: %d %s", a.status, a.body)
	}
	want := "waiting for approval " + id + ", ask again"
	if again := f.post(t, "waits", fleetJSON, fleetBody(csr)); string(again.body) != want {
		t.Errorf("Fleet again: %s", again.body)
	}
	if a = f.post(t, "waits", ZentralPath, `{"b64_csr":"`+b64(csr)+`"}`); a.status != http.StatusConflict || string(a.body) != want {
		t.Errorf("Zentral: %d %s", a.status, a.body)
	}
	a = f.post(t, "", MDMCertPath, f.order(t, "waits", csr, "mdm@acme.example"))
	messages := f.taken(t)
	if a.status != http.StatusOK || string(a.body) != `{"result":"success"}` || len(messages) != 1 || messages[0].About.String() != id {
		t.Fatalf("mdmcert: %d %s, %+v", a.status, a.body, messages)
	}
	if _, err := f.deliveries().Mail(t.Context(), messages[0]); !errors.Is(err, notify.ErrNotYet) {
		t.Errorf("before the approval: %v", err)
	}
	f.log.await(t, `"kind":"pending"`)
	decision := string(testkit.Value(json.Marshal(api.Decision{Customer: "acme", CSRSHA256: api.SHA256(testkit.CSR(testkit.Key("drop-in")).Raw), Reason: "a test"}))(t))
	a = send(t, f.http, http.MethodPost, "/v1/requests/"+id+"/approve", map[string]string{"Authorization": "Bearer " + f.tokens["fay"], "Content-Type": asJSON}, decision)
	if a.status != http.StatusOK {
		t.Fatalf("approve: %d %s", a.status, a.body)
	}
	mail, err := f.deliveries().Mail(t.Context(), messages[0])
	if err != nil || mail.To != "mdm@acme.example" {
		t.Errorf("after the approval: %+v, %v", mail, err)
	}
	if a = f.post(t, "waits", fleetJSON, fleetBody(csr)); a.status != http.StatusOK {
		t.Errorf("Fleet after the approval: %d %s", a.status, a.body)
	}
}

// TestDropInDocument: docs/dropin.md has a row for each route, and no other.
func TestDropInDocument(t *testing.T) {
	text := read(t, "docs/dropin.md")
	inCode := map[string]bool{}
	for _, rt := range dropIns() {
		inCode[rt.pattern] = true
		if rt.on == nil || rt.form == nil || rt.within == 0 || !rt.rated || rt.open {
			t.Errorf("%s is always there, or has no form, time or rate", rt.pattern)
		}
		if !strings.Contains(text, "| `"+rt.pattern+"` |") {
			t.Errorf("%s has no row", rt.pattern)
		}
	}
	for _, row := range regexp.MustCompile("(?m)^\\| `(POST /\\S+)` \\|").FindAllStringSubmatch(text, -1) {
		if !inCode[row[1]] {
			t.Errorf("%s is documented and does not exist", row[1])
		}
	}
	for _, limit := range []string{short(clientWait), short(mdmcertWait), kib(dropin.MaxBody), kib(mdmcert.MaxOrder), fmt.Sprint(dropin.PerDay) + " mails", fmt.Sprint(strangerEach), fmt.Sprint(strangerBodies), short(Limits{}.withDefaults().Stranger)} {
		if !strings.Contains(text, limit) {
			t.Errorf("the document does not say %q", limit)
		}
	}
}
