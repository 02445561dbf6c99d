package notify_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"hsmsign/api"
	"hsmsign/api/ledgerapi"
	"hsmsign/fault"
	"hsmsign/internal/testkit"
	"hsmsign/server/notify"
	"hsmsign/server/notify/notifytest"
)

// dueList is a list with a number of push certificates, each with a name that a stranger chose.
func dueList(n int, name string) notify.DueList {
	list := notify.DueList{Origin: "example.com/mdm", Days: 30, At: time.Now()}
	for i := range n {
		list.Items = append(list.Items, ledgerapi.Due{
			LedgerDue: api.LedgerDue{What: "push certificate", Customer: fmt.Sprint(name, i), Contact: "Jo", Account: fmt.Sprint("mdm", i, "@acme.example"), At: "2027-03-01T00:00:00Z"},
			Deadline:  time.Date(2027, 3, 1, 0, 0, 0, 0, time.UTC), Open: true,
		})
	}
	return list
}

// What is due goes to each address and to the webhook, with what people need to renew.
func TestSendDue(t *testing.T) {
	c := newCA(t)
	mails, smtp := c.smtp(t, "ada@example.com", "bo@example.com")
	hook, webhook := c.webhook(t)
	channels := notify.Channels{SMTP: smtp, Webhook: webhook}
	list := dueList(2, "acme")
	list.Items = append(list.Items, ledgerapi.Due{LedgerDue: api.LedgerDue{What: "request", Customer: "bolt", Request: "77", At: "2026-11-01T00:00:00Z", UseBefore: "2027-01-02T00:00:00Z"}, Open: true},
		ledgerapi.Due{LedgerDue: api.LedgerDue{What: "watched certificate", Source: "mdm.example.com:443", At: "2026-11-22T00:00:00Z", Error: &api.Error{Message: "connection refused"}}, Open: true})
	if sent := testkit.Value(channels.SendDue(t.Context(), list))(t); sent != 3 || len(mails.Mails()) != 2 || len(hook.Calls()) != 1 {
		t.Fatalf("%d sent, %d mails, %d calls", sent, len(mails.Mails()), len(hook.Calls()))
	}
	for i, to := range []string{"ada@example.com", "bo@example.com"} {
		m := mails.Mails()[i]
		text := strings.ReplaceAll(m.Data, "\r\n", "\n")
		for _, want := range []string{
			"Subject: hsmsign: 4 things are due (example.com/mdm)\n", "\n- push certificate: acme1\n  expires 2027-03-01\n  Apple Account to use: mdm1@acme.example\n  contact: Jo\n",
			"\n- request: bolt\n  issued 2026-11-01, not redeemed, use before 2027-01-02\n  request: 77\n", "\n- watched certificate: mdm.example.com:443\n  not read: connection refused\n", "repeated until it is done",
		} {
			if !strings.Contains(text, want) || m.To != to || !m.TLS {
				t.Errorf("to %s, no %q in %s", m.To, want, text)
			}
		}
	}
	var notice api.DueNotice
	call := hook.Calls()[0]
	testkit.OK(t, json.Unmarshal([]byte(call.Body), &notice))
	if d := notice.Data; call.Err != nil || notice.Type != "ledger.due" || d.Origin != "example.com/mdm" || d.WithinDays != 30 || d.Total != 4 || len(d.Due) != 4 || d.Due[1] != list.Items[1].LedgerDue {
		t.Errorf("%v, %+v", call.Err, notice)
	}
}

// A long list is cut, and names of strangers neither end a line nor make the message longer.
func TestSendDueLong(t *testing.T) {
	c := newCA(t)
	mails, smtp := c.smtp(t, "ada@example.com")
	hook, webhook := c.webhook(t)
	channels := notify.Channels{SMTP: smtp, Webhook: webhook}
	list := dueList(5000, "x\r\nBcc: evil@example.com\r\n\r\n<&>"+strings.Repeat("\u2028", 2000))
	testkit.Value(channels.SendDue(t.Context(), list))(t)
	var notice api.DueNotice
	call := hook.Calls()[0]
	testkit.OK(t, json.Unmarshal([]byte(call.Body), &notice))
	shown := len(notice.Data.Due)
	if notice.Data.Total != 5000 || shown < 10 || shown > 1000 || len(call.Body) > 64<<10 || call.Err != nil {
		t.Errorf("%d of %d, %d bytes, %v", shown, notice.Data.Total, len(call.Body), call.Err)
	}
	m := mails.Mails()[0]
	if message := testkit.Value(m.Message())(t); message.Header.Get("Bcc") != "" || message.Header.Get("Subject") != "hsmsign: 5000 things are due (example.com/mdm)" {
		t.Errorf("%v", message.Header)
	}
	if strings.Contains(m.Data, "\nBcc:") || len(m.Data) > 256<<10 || !strings.Contains(m.Data, fmt.Sprintf("and %d more; see them with: hsmsign ledger due --within 30d", 5000-shown)) {
		t.Errorf("%d bytes: %.2000s", len(m.Data), m.Data)
	}
}

// A receiver that fails does not keep the others from being told, and the error is one line that names the channel.
func TestSendDueFails(t *testing.T) {
	c := newCA(t)
	mails, smtp := c.smtp(t, "ada@example.com", "bo@example.com")
	hook, webhook := c.webhook(t)
	channels := notify.Channels{SMTP: smtp, Webhook: webhook}
	check := func(sent int, err error, wantSent int, want ...string) {
		t.Helper()
		if sent != wantSent || fault.KindOf(err) != fault.Unavailable || strings.Contains(err.Error(), "\n") {
			t.Errorf("%d sent, %v", sent, err)
		}
		for _, text := range want {
			if !strings.Contains(err.Error(), text) {
				t.Errorf("no %q in %v", text, err)
			}
		}
		secretless(t, fmt.Sprint(err))
	}
	mails.Fail(failAt("ada@example.com", 450, "ada@example.com is away"))
	sent, err := channels.SendDue(t.Context(), dueList(1, "acme"))
	check(sent, err, 2, "smtp: ", "(the recipient) is away")
	hook.Answer(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
	mails.Fail(notifytest.Fault{AtRcpt: 550, Text: "no such user"})
	sent, err = channels.SendDue(t.Context(), dueList(1, "acme"))
	check(sent, err, 0, "smtp: ", "no such user", "webhook: the webhook answered 500")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := channels.SendDue(ctx, dueList(1, "acme")); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// Without anybody to tell the settings are refused.
func TestCheckDue(t *testing.T) {
	webhook := testkit.Value(notify.NewWebhook("https://hooks.example.com", notifytest.Secret, nil))(t)
	for _, tt := range []struct {
		channels notify.Channels
		ok       bool
	}{
		{notify.Channels{}, false}, {notify.Channels{Spool: "/var/spool"}, false}, {notify.Channels{SMTP: &notify.SMTP{Host: "mail.example.com"}}, false},
		{notify.Channels{SMTP: &notify.SMTP{To: []string{"ada@example.com"}}}, true}, {notify.Channels{Webhook: webhook}, true},
	} {
		if err := tt.channels.CheckDue(); (err == nil) != tt.ok || err != nil && (fault.KindOf(err) != fault.Usage || !strings.Contains(fault.Hint(err), "write notify:")) {
			t.Errorf("%+v: %v", tt.channels, err)
		}
	}
}
