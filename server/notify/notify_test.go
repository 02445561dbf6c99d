package notify_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"mime/multipart"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"hsmsign/api"
	"hsmsign/internal/testkit"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
	"hsmsign/server/notify"
)

// A notice goes to each address and to the webhook, once. It contains the link and the id of the request, and nothing else that is
// not the same in each notice.
func TestNotice(t *testing.T) {
	o, c := newOutbox(t), newCA(t)
	mails, smtp := c.smtp(t, "ada@example.com", "bo@example.com")
	hook, webhook := c.webhook(t)
	n := o.notifier(notify.Channels{Link: link, SMTP: smtp, Webhook: webhook})
	testkit.OK(t, o.AddCustomer(t.Context(), "caller-of-acme", "tls", ledger.Customer{Name: "acme-customer"}))
	first, second := o.post(t, ledger.MessagePending, ""), o.post(t, ledger.MessagePending, "")
	if handled := all(t, n); handled != 2 || o.waiting(t) != 0 || len(mails.Mails()) != 4 || len(hook.Calls()) != 2 {
		t.Fatalf("%d handled, %d wait, %d mails, %d calls", handled, o.waiting(t), len(mails.Mails()), len(hook.Calls()))
	}
	texts := map[string]bool{}
	for i, m := range mails.Mails() {
		about := []record.ID{first, first, second, second}[i]
		if m.From != "hsmsign@example.com" || m.To != []string{"ada@example.com", "bo@example.com"}[i%2] || !m.TLS || m.Login == "" {
			t.Errorf("%+v", m)
		}
		parsed := testkit.Value(m.Message())(t)
		id := parsed.Header.Get("Message-ID")
		if parsed.Header.Get("Auto-Submitted") != "auto-generated" || !strings.HasSuffix(id, "@example.com>") || parsed.Header.Get("Subject") != "hsmsign: a request waits for approval" {
			t.Errorf("%v", parsed.Header)
		}
		date := testkit.Value(parsed.Header.Date())(t)
		if age := o.now().Sub(date); age < 0 || age > time.Minute {
			t.Errorf("date %v", date)
		}
		if !strings.Contains(m.Data, link+"/v1/requests/"+about.String()+"\r\n") {
			t.Errorf("no link to %s in %s", about, m.Data)
		}
		texts[strings.NewReplacer(about.String(), "ID", id, "MESSAGE", m.To, "TO").Replace(m.Data)] = true
	}
	if len(texts) != 1 {
		t.Errorf("notices differ in more than the request and the recipient: %v", texts)
	}
	for i, call := range hook.Calls() {
		about := []record.ID{first, second}[i]
		var notice api.Notice
		testkit.OK(t, json.Unmarshal([]byte(call.Body), &notice))
		if call.Err != nil || notice.Type != "request.pending" || notice.Data != (api.NoticeData{RequestID: about.String(), URL: link + "/v1/requests/" + about.String()}) {
			t.Errorf("%+v", call)
		}
		texts[strings.ReplaceAll(call.Body, about.String(), "ID")] = true
	}
	if len(texts) != 2 {
		t.Errorf("notices differ in more than the request: %v", texts)
	}
	for text := range texts {
		for _, personal := range []string{"acme", "caller-of", "CN=", "O="} {
			if strings.Contains(text, personal) {
				t.Errorf("%q is in %s", personal, text)
			}
		}
	}
}

// A notice without an address for links has the id only.
func TestNoticeWithoutLink(t *testing.T) {
	o, c := newOutbox(t), newCA(t)
	mails, smtp := c.smtp(t, "ada@example.com")
	hook, webhook := c.webhook(t)
	n := o.notifier(notify.Channels{SMTP: smtp, Webhook: webhook})
	about := o.post(t, ledger.MessagePending, "")
	all(t, n)
	if m := mails.Mails()[0].Data; strings.Contains(m, "/v1/") || !strings.Contains(m, "hsmsign approve "+about.String()) {
		t.Errorf("%s", m)
	}
	if body := hook.Calls()[0].Body; strings.Contains(body, "url") || !strings.Contains(body, about.String()) {
		t.Errorf("%s", body)
	}
}

// A receiver that fails gets the message later, the same, and the others get no second one.
func TestOneReceiverFails(t *testing.T) {
	o, c := newOutbox(t), newCA(t)
	mails, smtp := c.smtp(t, "ada@example.com", "bo@example.com")
	hook, webhook := c.webhook(t)
	n := o.notifier(notify.Channels{Link: link, SMTP: smtp, Webhook: webhook})
	hook.SetNow(o.now)
	mails.Fail(failAt("bo@example.com", 450, "bo@example.com is away"))
	hook.Answer(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
	o.post(t, ledger.MessagePending, "")
	all(t, n)
	for range 2 {
		o.pass(notify.LongestPause)
		all(t, n)
	}
	if len(mails.Mails()) != 1 || len(hook.Calls()) != 3 || o.waiting(t) != 1 {
		t.Fatalf("%d mails, %d calls, %d wait", len(mails.Mails()), len(hook.Calls()), o.waiting(t))
	}
	mails.Fail(failAt("", 0, ""))
	hook.Answer(nil)
	o.pass(notify.LongestPause)
	all(t, n)
	if got := mails.Mails(); len(got) != 2 || got[0].To != "ada@example.com" || got[1].To != "bo@example.com" || o.waiting(t) != 0 {
		t.Errorf("%+v, %d wait", got, o.waiting(t))
	}
	for _, call := range hook.Calls() {
		if call.Err != nil || call.ID != hook.Calls()[0].ID || call.Body != hook.Calls()[0].Body {
			t.Errorf("another delivery: %+v", call)
		}
	}
	messages, text := o.logged(t)
	if strings.Count(messages, "messages are not delivered") != 2 || strings.Count(messages, "delivered again") != 2 || strings.Contains(text, "bo@example.com") || !strings.Contains(text, "(the recipient) is away") {
		t.Errorf("log %s", text)
	}
	secretless(t, text)
}

// A notifier that ends between the confirmation of the mail server and the ledger's leaves the message to another one after the lease,
// which sends the same bytes.
func TestKilledBetween(t *testing.T) {
	o, c := newOutbox(t), newCA(t)
	mails, smtp := c.smtp(t, "ada@example.com")
	o.post(t, ledger.MessageMDMCert, "answer")
	dying := o.open(t)
	n := notify.New(notify.Config{Ledger: dying, Channels: notify.Channels{SMTP: smtp}, Log: slog.New(slog.DiscardHandler), Now: o.now, Result: func(ctx context.Context, m ledger.Message) (notify.Mail, error) {
		return result(ctx, m)
	}})
	mails.Fail(closeAt("answer"))
	m := testkit.Value(dying.Take(t.Context(), notify.Lease))(t) // and then the process is killed
	testkit.OK(t, smtpIgnoring(t, smtp, *m))
	mails.Fail(closeAt(""))
	next := o.notifier(notify.Channels{SMTP: smtp})
	if handled := all(t, next) + all(t, n); handled != 0 {
		t.Fatal("during the lease")
	}
	o.pass(notify.Lease)
	if handled := all(t, next); handled != 1 || o.waiting(t) != 0 {
		t.Fatalf("%d handled", handled)
	}
	got := mails.Seen()
	if len(got) != 2 || got[0].Data != got[1].Data || !strings.Contains(got[0].Data, "Message-ID: <"+m.ID.String()+"@example.com>") {
		t.Errorf("%+v", got)
	}
}

// smtpIgnoring sends a mail whose confirmation is lost.
func smtpIgnoring(t *testing.T, smtp *notify.SMTP, m ledger.Message) error {
	t.Helper()
	content := testkit.Value(result(t.Context(), m))(t)
	if err := smtp.Send(t.Context(), m, content); err == nil {
		return errors.New("the confirmation was not lost")
	}
	return nil
}

// Two replicas with one outbox send each message once.
func TestReplicas(t *testing.T) {
	o, c := newOutbox(t), newCA(t)
	mails, smtp := c.smtp(t, "ada@example.com")
	const messages = 20
	for range messages {
		o.post(t, ledger.MessagePending, "")
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	for _, l := range []*ledger.Ledger{o.Ledger, o.open(t)} {
		n := notify.New(notify.Config{Ledger: l, Channels: notify.Channels{SMTP: smtp}, Log: slog.New(slog.NewJSONHandler(o, nil)), Now: o.now})
		running.Go(func() { n.Run(ctx) })
	}
	testkit.Until(t, "all are sent", func() bool { return o.waiting(t) == 0 })
	cancel()
	running.Wait()
	ids := map[string]bool{}
	for _, m := range mails.Mails() {
		ids[testkit.Value(m.Message())(t).Header.Get("Message-ID")] = true
	}
	if len(mails.Mails()) != messages || len(ids) != messages {
		t.Errorf("%d mails, %d messages", len(mails.Mails()), len(ids))
	}
}

// An answer for a customer is attached byte for byte.
func TestAnswer(t *testing.T) {
	o, c := newOutbox(t), newCA(t)
	mails, smtp := c.smtp(t)
	n := o.notifier(notify.Channels{SMTP: smtp})
	payload := strings.Repeat("0a1b2c3d", 1000) // without a final newline
	o.pass(24 * time.Hour)                      // the date is that of the message
	created := o.now().Truncate(time.Second)
	o.post(t, ledger.MessageMDMCert, payload)
	o.post(t, ledger.MessagePending, "") // nobody gets it
	if all(t, n) != 1 || len(mails.Mails()) != 1 {
		t.Fatalf("%+v", mails.Mails())
	}
	m := testkit.Value(mails.Mails()[0].Message())(t)
	if date := testkit.Value(m.Header.Date())(t); !date.Equal(created) {
		t.Errorf("date %v, want %v", date, created)
	}
	_, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	testkit.OK(t, err)
	parts := multipart.NewReader(m.Body, params["boundary"])
	text := testkit.Value(parts.NextPart())(t)
	if got := string(testkit.Value(io.ReadAll(text))(t)); strings.ReplaceAll(got, "\r\n", "\n") != "It is attached.\n" {
		t.Errorf("text %q", got)
	}
	file := testkit.Value(parts.NextPart())(t)
	if data := decoded(t, file); data != payload || file.FileName() != "answer.p7" || mails.Mails()[0].To != "it@acme.example" {
		t.Errorf("%s: %d bytes, to %s", file.FileName(), len(data), mails.Mails()[0].To)
	}
}

// Whatever an address, a subject or a file name contains, no header is added.
func TestHeaderInjection(t *testing.T) {
	o, c := newOutbox(t), newCA(t)
	mails, smtp := c.smtp(t)
	m := ledger.Message{ID: record.NewID(), Created: o.now()}
	const evil = "x\r\nBcc: evil@example.com\r\n\r\nbody"
	for _, to := range []string{"a@b.example\r\nBcc: evil@example.com", "a@b.example, evil@example.com", "\"a\r\nBcc: evil@example.com\" <a@b.example>", "", "a@b.example>\r\nRCPT TO:<evil@example.com"} {
		if err := smtp.Send(t.Context(), m, notify.Mail{To: to, Subject: "x"}); err == nil {
			t.Errorf("%q was accepted", to)
		}
	}
	testkit.OK(t, smtp.Send(t.Context(), m, notify.Mail{To: "\"B, o\" <a@b.example>", Subject: evil, Text: "a\n.\nMAIL FROM:<evil@example.com>\n", Name: "../" + evil, Data: []byte("x")}))
	testkit.OK(t, smtp.Send(t.Context(), m, notify.Mail{To: "a@b.example", Subject: strings.Repeat("x", 10_000)}))
	if len(mails.Mails()) != 2 || len(mails.Mails()[1].Data) > 2000 {
		t.Fatalf("%+v", mails.Mails())
	}
	parsed := testkit.Value(mails.Mails()[0].Message())(t)
	names := []string{"Auto-Submitted", "Content-Type", "Date", "From", "Message-Id", "Mime-Version", "Subject", "To"}
	for name := range parsed.Header {
		if !slices.Contains(names, name) {
			t.Errorf("header %s", name)
		}
	}
	if strings.Contains(mails.Mails()[0].Data, "\r\nBcc:") || strings.Contains(mails.Mails()[0].Data, "../") || mails.Mails()[0].To != "a@b.example" {
		t.Errorf("%s", mails.Mails()[0].Data)
	}
}

// What Result says about a message: later, never, and a failure.
func TestResult(t *testing.T) {
	o, c := newOutbox(t), newCA(t)
	mails, smtp := c.smtp(t)
	var err error
	counts := map[string]int{}
	n := notify.New(notify.Config{
		Ledger: o.Ledger, Channels: notify.Channels{SMTP: smtp}, Log: slog.New(slog.NewJSONHandler(o, nil)), Now: o.now,
		Result: func(ctx context.Context, m ledger.Message) (notify.Mail, error) {
			mail, _ := result(ctx, m)
			return mail, err
		},
		Count: func(kind, channel, result string) { counts[kind+" "+channel+" "+result]++ },
	})
	about := o.post(t, ledger.MessageMDMCert, "x")
	err = fmt.Errorf("%w: an approval is missing", notify.ErrNotYet)
	all(t, n)
	for range 100 { // longer than a failing message is kept
		o.pass(time.Hour)
		all(t, n)
	}
	err = nil
	if all(t, n); len(mails.Mails()) != 0 {
		t.Error("before it is due")
	}
	testkit.OK(t, o.Hasten(t.Context(), about))
	if all(t, n); len(mails.Mails()) != 1 || o.waiting(t) != 0 {
		t.Errorf("%d mails after the approval", len(mails.Mails()))
	}
	err = fmt.Errorf("%w: it was rejected", notify.ErrNever)
	o.post(t, ledger.MessageMDMCert, "x")
	if all(t, n); len(mails.Mails()) != 1 || o.waiting(t) != 0 {
		t.Error("a message that is never sent is kept")
	}
	err = errors.New("the ledger does not answer")
	o.post(t, ledger.MessageMDMCert, "x")
	for range 5 {
		all(t, n)
		o.pass(time.Minute)
	}
	if o.waiting(t) != 1 {
		t.Error("a message whose mail cannot be made is not kept")
	}
	if counts["mdmcert smtp sent"] != 1 || counts["mdmcert none dropped"] != 1 || len(counts) != 2 {
		t.Errorf("counts %v", counts)
	}
	if messages, _ := o.logged(t); messages != "a message is not sent\nresults messages are not delivered; they are tried again" {
		t.Errorf("log %s", messages)
	}
}

// Messages that nobody can send are kept for 7 days, and are sent when there is a channel before.
func TestNoChannel(t *testing.T) {
	o, c := newOutbox(t), newCA(t)
	n := o.notifier(notify.Channels{})
	o.post(t, ledger.MessagePending, "")
	o.post(t, ledger.MessageMDMCert, "x")
	o.pass(ledger.UnsentFor - time.Minute)
	if n.Sweep(t.Context()); all(t, n) != 0 || o.waiting(t) != 2 || len(n.Kinds()) != 0 {
		t.Fatalf("%d wait", o.waiting(t))
	}
	mails, smtp := c.smtp(t, "ada@example.com")
	smtp.To = nil
	n.Use(notify.Channels{SMTP: smtp})
	if all(t, n) != 1 || len(mails.Mails()) != 1 {
		t.Errorf("%+v", mails.Mails())
	}
	o.pass(2 * time.Minute)
	n.Sweep(t.Context())
	if messages, _ := o.logged(t); o.waiting(t) != 0 || messages != "messages were dropped" {
		t.Errorf("%d wait, log %s", o.waiting(t), messages)
	}
}

// A notifier ends soon after its context, also while a mail server is slow, and the message is due again.
func TestStops(t *testing.T) {
	o, c := newOutbox(t), newCA(t)
	mails, smtp := c.smtp(t, "ada@example.com")
	mails.Fail(delayed(500 * time.Millisecond))
	n := o.notifier(notify.Channels{SMTP: smtp})
	o.post(t, ledger.MessagePending, "")
	o.post(t, ledger.MessagePending, "")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { n.Run(ctx); close(done) }()
	testkit.Until(t, "a connection", func() bool { return mails.Connections() > 0 })
	cancel()
	select {
	case <-done:
	case <-time.After(notify.StopWait):
		t.Fatal("it does not end")
	}
	if len(mails.Mails()) != 1 || o.waiting(t) != 1 {
		t.Errorf("%d mails, %d wait: the delivery that ran ends, and no other begins", len(mails.Mails()), o.waiting(t))
	}
}

// The lease is longer than a delivery, so that replicas do not send the same message at the same time.
func TestTimes(t *testing.T) {
	if notify.Lease < notify.DeliverWait+20*time.Second || notify.DeliverWait < notify.SMTPWait+notify.WebhookWait {
		t.Error("a delivery may be longer than its lease")
	}
}
