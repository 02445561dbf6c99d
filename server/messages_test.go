package server_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"hsmsign/agent/policy"
	"hsmsign/api"
	"hsmsign/internal/servicekit"
	"hsmsign/internal/testkit"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
	"hsmsign/server/notify"
	"hsmsign/server/notify/notifytest"
)

// The metrics of the outbox, without a channel, with one that is down, and with one that works. A reload replaces the channels.
func TestMessages(t *testing.T) {
	s := servicekit.Start(t, watched(nil))
	asking(t, s)
	about := ask(t, s, "acme")
	scraped := func() scraped {
		s.Server.ReadFigures(t.Context())
		all, _ := scrape(t, s)
		return all
	}
	const waiting, late, sent, failed = "hsmsign_messages_waiting{kind=pending}", "hsmsign_messages_late_seconds{kind=pending}",
		"hsmsign_messages_total{channel=smtp,kind=pending,result=sent}", "hsmsign_messages_total{channel=smtp,kind=pending,result=failed}"
	if all := scraped(); all[waiting] != 1 || all[late] != 0 || all[failed]+all[sent] != 0 {
		t.Errorf("without a channel: %v waiting, %v late", all[waiting], all[late])
	}
	s.Channels = notify.Channels{SMTP: &notify.SMTP{Host: "127.0.0.1", Port: 1, From: "hsmsign@example.com", To: []string{"ada@example.com"}}}
	testkit.OK(t, s.Server.Reload(t.Context(), true))
	testkit.Until(t, "a failure", func() bool { all := scraped(); return all[failed] == 1 && all[late] > 0 && all[waiting] == 1 })
	mails := testkit.Value(notifytest.NewSMTP(nil, false))(t)
	t.Cleanup(mails.Stop)
	s.Channels = notify.Channels{SMTP: &notify.SMTP{Host: mails.Host, Port: mails.Port, From: "hsmsign@example.com", To: []string{"ada@example.com"}}}
	testkit.OK(t, s.Ledger.Hasten(t.Context(), about))
	testkit.OK(t, s.Server.Reload(t.Context(), true))
	testkit.Until(t, "the mail", func() bool { all := scraped(); return all[sent] == 1 && all[late] == 0 && all[waiting] == 0 })
	if len(mails.Mails()) != 1 {
		t.Errorf("%+v", mails.Mails())
	}
}

// asking adds the caller "asks", who waits for "fay".
func asking(t *testing.T, s *servicekit.Service) {
	t.Helper()
	one, none := 1, 0
	s.Roles["asks"] = policy.RoleConfig{
		May: []string{policy.Sign, policy.Freeze}, Customers: []string{"*"}, PerSecond: 1000, PerDay: 1000, UnfreezeApprovals: 1,
		Approvals: policy.ApprovalsConfig{NewCustomer: &one, NewKey: &one, SameKey: &none},
	}
	s.Roles["approving"] = policy.RoleConfig{May: []string{policy.Approve}, Customers: []string{"*"}}
	for name, c := range map[string]policy.CallerConfig{"asks": {Role: "asks", Owners: []string{"ada"}}, "fay": {Role: "approving", Person: "fay"}} {
		secret, entry := policy.NewToken(time.Now().Add(time.Hour))
		c.Tokens, s.Tokens[name] = []string{entry}, secret
		s.Callers[name] = c
	}
	testkit.OK(t, s.Server.Reload(t.Context(), true))
}

// post sends an order of a caller, and returns the id of the request.
func post(t *testing.T, s *servicekit.Service, caller, path string, order any, status int) record.ID {
	t.Helper()
	answer := servicekit.Do(t, http.DefaultClient, s.Tokens[caller], http.MethodPost, s.HTTP+path, string(testkit.Value(json.Marshal(order))(t)), "Content-Type", "application/json")
	var found struct{ ID, RequestID string }
	if answer.StatusCode != status || json.Unmarshal([]byte(strings.ReplaceAll(answer.Body, "request_id", "requestid")), &found) != nil {
		t.Fatalf("%s: %d %s", path, answer.StatusCode, answer.Body)
	}
	if found.ID+found.RequestID == "" { // the answer is about no request
		return record.ID{}
	}
	return testkit.Value(record.ParseID(found.ID + found.RequestID))(t)
}

// ask asks for a request of a new customer.
func ask(t *testing.T, s *servicekit.Service, customer string) record.ID {
	t.Helper()
	return post(t, s, "asks", "/v1/requests", api.SignOrder{CSR: servicekit.CSR(testkit.Key(customer)), Customer: customer}, http.StatusAccepted)
}

// decide approves or rejects what was asked for a customer.
func decide(t *testing.T, s *servicekit.Service, id record.ID, customer, what string) {
	t.Helper()
	d := api.Decision{Customer: customer, CSRSHA256: api.SHA256(testkit.CSR(testkit.Key(customer)).Raw), Reason: "a test"}
	post(t, s, "fay", "/v1/requests/"+id.String()+"/"+what, d, http.StatusOK)
}

// Whoever may approve is told once of each question, by a link and without personal data. What was decided meanwhile is not sent.
func TestNotices(t *testing.T) {
	s := servicekit.Start(t, watched(nil))
	asking(t, s)
	// Nobody can be told: two questions are answered, and a third one is not.
	decide(t, s, ask(t, s, "approved inc"), "approved inc", "approve")
	rejected := ask(t, s, "rejected inc")
	decide(t, s, rejected, "rejected inc", "reject")
	if all := testkit.Value(s.Ledger.Backlogs(t.Context()))(t); len(all) != 0 {
		t.Errorf("answered: %+v", all)
	}
	waits := ask(t, s, "acme secret")
	if again := ask(t, s, "acme secret"); again != waits {
		t.Errorf("asked again as %s", again)
	}
	// Messages that somebody has written into the database.
	for _, about := range []record.ID{rejected, record.NewID()} {
		testkit.OK(t, s.Ledger.Post(t.Context(), ledger.Message{Kind: ledger.MessagePending, About: about}, 0))
	}
	mails := testkit.Value(notifytest.NewSMTP(nil, false))(t)
	t.Cleanup(mails.Stop)
	s.Channels = notify.Channels{Link: "https://sign.example.com:8443", SMTP: &notify.SMTP{Host: mails.Host, Port: mails.Port, From: "hsmsign@example.com", To: []string{"fay@example.com"}}}
	testkit.OK(t, s.Server.Reload(t.Context(), true))
	testkit.Until(t, "the rest is dropped", func() bool {
		all, _ := scrape(t, s)
		return all["hsmsign_messages_total{channel=none,kind=pending,result=dropped}"] == 2 && len(mails.Mails()) == 1
	})
	post(t, s, "asks", "/v1/freeze", api.FreezeOrder{Scope: "customer", Name: "acme secret", Reason: "a test"}, http.StatusOK)
	thaw := post(t, s, "asks", "/v1/unfreeze", api.FreezeOrder{Scope: "customer", Name: "acme secret", Reason: "a test"}, http.StatusAccepted)
	testkit.Until(t, "a mail about the freeze", func() bool { return len(mails.Mails()) == 2 })
	for i, about := range []record.ID{waits, thaw} {
		mail := mails.Mails()[i]
		if !strings.Contains(mail.Data, "https://sign.example.com:8443/v1/requests/"+about.String()) || mail.To != "fay@example.com" {
			t.Errorf("mail %d: %+v", i, mail)
		}
		for _, personal := range []string{"secret", "asks", "Acme", "a test"} {
			if strings.Contains(mail.Data, personal) {
				t.Errorf("mail %d has %q: %s", i, personal, mail.Data)
			}
		}
	}
}
