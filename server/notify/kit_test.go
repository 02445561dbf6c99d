package notify_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"hsmsign/internal/testkit"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
	"hsmsign/ledger/sqlite"
	"hsmsign/server/notify"
	"hsmsign/server/notify/notifytest"
)

// outbox is a ledger with a clock, and what notifiers log.
type outbox struct {
	*ledger.Ledger
	cfg ledger.Config

	mu   sync.Mutex
	time time.Time
	log  bytes.Buffer
}

func newOutbox(t *testing.T) *outbox {
	t.Helper()
	o := &outbox{time: time.Now().UTC()}
	store := testkit.Value(sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "ledger.db"), true))(t)
	t.Cleanup(func() { _ = store.DB.Close() })
	key, verifier, err := ledger.GenerateKey("example.com/notify")
	testkit.OK(t, err)
	o.cfg = ledger.Config{Store: store, Key: key, Verifier: verifier, Now: o.now}
	testkit.Value(ledger.Init(t.Context(), o.cfg))(t)
	o.Ledger = o.open(t)
	return o
}

// open opens the ledger as another process does.
func (o *outbox) open(t *testing.T) *ledger.Ledger {
	t.Helper()
	l := testkit.Value(ledger.Open(t.Context(), o.cfg))(t)
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func (o *outbox) now() time.Time {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.time
}

func (o *outbox) pass(d time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.time = o.time.Add(d)
}

// Write implements io.Writer, for the log.
func (o *outbox) Write(data []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.log.Write(data)
}

// logged returns the messages of the log, one a line.
func (o *outbox) logged(t *testing.T) (messages, text string) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	var all []string
	for line := range strings.Lines(o.log.String()) {
		var r struct{ Msg, Receiver string }
		testkit.OK(t, json.Unmarshal([]byte(line), &r))
		all = append(all, strings.TrimSpace(r.Receiver+" "+r.Msg))
	}
	return strings.Join(all, "\n"), o.log.String()
}

// notifier returns a notifier of the outbox.
func (o *outbox) notifier(c notify.Channels) *notify.Notifier {
	return notify.New(notify.Config{Ledger: o.Ledger, Channels: c, Log: slog.New(slog.NewJSONHandler(o, nil)), Now: o.now, Result: result})
}

// result makes a mail whose attachment is the payload.
func result(_ context.Context, m ledger.Message) (notify.Mail, error) {
	return notify.Mail{To: "it@acme.example", Subject: "Your answer", Text: "It is attached.\n", Name: "answer.p7", Data: m.Payload}, nil
}

func (o *outbox) post(t *testing.T, kind, payload string) (about record.ID) {
	t.Helper()
	m := ledger.Message{Kind: kind, About: record.NewID()}
	if payload != "" {
		m.Payload = []byte(payload)
	}
	testkit.OK(t, o.Post(t.Context(), m, 0))
	return m.About
}

// waiting returns how many messages wait.
func (o *outbox) waiting(t *testing.T) (n int64) {
	t.Helper()
	for _, b := range testkit.Value(o.Backlogs(t.Context()))(t) {
		n += b.Waiting
	}
	return n
}

// all handles what is due.
func all(t *testing.T, n *notify.Notifier) (handled int) {
	t.Helper()
	for n.Next(t.Context()) {
		handled++
	}
	return handled
}

// ca is the CA of the doubles.
type ca struct {
	*testkit.CA
	cert tls.Certificate
}

func newCA(t *testing.T) ca {
	t.Helper()
	c := testkit.NewCA(t, "mail")
	return ca{c, c.Issue(t, "mail.example.com", nil)}
}

func (c ca) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(c.Cert)
	return pool
}

// smtp starts a mail server with STARTTLS, and returns the settings for it.
func (c ca) smtp(t *testing.T, to ...string) (*notifytest.SMTP, *notify.SMTP) {
	t.Helper()
	server := testkit.Value(notifytest.NewSMTP(&c.cert, false))(t)
	t.Cleanup(server.Stop)
	settings := &notify.SMTP{
		Host: server.Host, Port: server.Port, From: "hsmsign <hsmsign@example.com>", To: to, Username: notifytest.Username, Password: notifytest.Password, CA: c.pool(),
	}
	testkit.OK(t, settings.Check())
	return server, settings
}

// webhook starts a webhook with TLS, and returns the settings for it.
func (c ca) webhook(t *testing.T) (*notifytest.Webhook, *notify.Webhook) {
	t.Helper()
	server := notifytest.NewWebhook(&c.cert)
	t.Cleanup(server.Stop)
	return server, testkit.Value(notify.NewWebhook(server.URL, notifytest.Secret, c.pool()))(t)
}

const link = "https://sign.example.com:8443"

// secretless checks that a text contains no secret of the doubles.
func secretless(t *testing.T, text string) {
	t.Helper()
	for _, secret := range []string{notifytest.Password, notifytest.Secret, strings.TrimPrefix(notifytest.Secret, "whsec_"), "path-secret", fmt.Sprintf("%x", notifytest.Password)} {
		if strings.Contains(text, secret) {
			t.Errorf("a secret is in %q", text)
		}
	}
}
