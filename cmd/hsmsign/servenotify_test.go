//go:build linux

package main

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"hsmsign/internal/testkit"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
	"hsmsign/ledger/sqlite"
	"hsmsign/server/notify/notifytest"
)

// mailed makes a site with a mail server, and returns the store of its ledger.
func mailed(t *testing.T) (*site, *notifytest.SMTP, *ledger.Store, *ledger.Ledger) {
	t.Helper()
	s := newSite(t, 1, "", "")
	cert := s.ca.Issue(t, "mail.example.com", nil)
	mails := testkit.Value(notifytest.NewSMTP(&cert, false))(t)
	t.Cleanup(mails.Stop)
	s.write(t, "ca.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.ca.Cert.Raw}))
	s.write(t, "smtp-password", []byte(notifytest.Password+"\n"))
	s.write(t, "webhook-secret", []byte(notifytest.Secret+"\n"))
	s.notify = map[string]any{"smtp": map[string]any{
		"host": mails.Host, "port": mails.Port, "from": "hsmsign@example.com", "to": []string{"ada@example.com"},
		"username": notifytest.Username, "password-file": "smtp-password", "ca": "ca.pem",
	}}
	store := testkit.Value(sqlite.Open(t.Context(), filepath.Join(s.dir, "ledger.db"), false))(t)
	t.Cleanup(func() { _ = store.DB.Close() })
	key := strings.TrimSpace(string(testkit.Value(os.ReadFile(filepath.Join(s.dir, "checkpoint.key")))(t)))
	l := testkit.Value(ledger.Open(t.Context(), ledger.Config{Store: store, Key: key, Verifier: testkit.Value(ledger.VerifierKey(key))(t)}))(t)
	t.Cleanup(func() { _ = l.Close() })
	return s, mails, store, l
}

// asked records that somebody must approve the first signature for a customer, and returns the id of the request.
func asked(t *testing.T, l *ledger.Ledger, customer string) record.ID {
	t.Helper()
	_, err := l.Authorize(t.Context(), record.Use{
		Customer: customer, Actor: "backend", Channel: "tls", CSR: []byte("csr of " + customer), SPKI: []byte("key of " + customer), Vendor: []byte("vendor"), Chain: []byte("chain"), Digest: "SHA-256",
		Ask: &record.Ask{Need: map[string]int{record.EventNewCustomer: 1}, Expiry: time.Hour, Requester: record.Requester{Caller: "backend", Owners: []string{"ada"}}},
	})
	waiting, ok := errors.AsType[*record.Waiting](err)
	if !ok {
		t.Fatalf("nobody was asked: %v", err)
	}
	return waiting.ID
}

// A service that is killed when the mail server has a mail, and before the ledger knows it, sends the same mail again: the same bytes,
// and so the same Message-ID. A channel that is configured later is used after SIGHUP.
func TestServeNotifies(t *testing.T) {
	t.Parallel()
	s, mails, store, l := mailed(t)
	held := make(chan struct{})
	mails.Fail(notifytest.Fault{Hold: held})
	first := asked(t, l, "first")
	sv := s.service(t)
	testkit.Eventually(t, "the mail server has the mail", func() bool { return len(mails.Seen()) == 1 })
	sv.kill()
	mails.Fail(notifytest.Fault{})
	close(held)
	// The two minutes of the lease are over.
	testkit.Value(store.DB.ExecContext(t.Context(), "UPDATE outbox SET lease = 0"))(t)
	sv.start(t)
	testkit.Eventually(t, "the mail is sent again", func() bool { return len(mails.Seen()) == 2 })
	if seen := mails.Seen(); seen[0].Data != seen[1].Data || !strings.Contains(seen[0].Data, sv.url+"/v1/requests/"+first.String()) || !strings.Contains(seen[0].Data, "Message-ID: <") {
		t.Errorf("%+v", seen)
	}

	cert := s.ca.Issue(t, "hooks.example.com", nil)
	hook := notifytest.NewWebhook(&cert)
	t.Cleanup(hook.Stop)
	s.notify["webhook"] = map[string]any{"url": hook.URL, "secret-file": "webhook-secret", "ca": "ca.pem"}
	s.config(t, sv.port, sv.socket)
	testkit.OK(t, sv.cmd.Process.Signal(syscall.SIGHUP))
	testkit.Eventually(t, "it has read the configuration", func() bool { return strings.Contains(sv.tail(), `"msg":"reloaded"`) })
	second := asked(t, l, "second")
	testkit.Eventually(t, "the webhook is called", func() bool { return len(hook.Calls()) == 1 && len(mails.Seen()) == 3 })
	if call := hook.Calls()[0]; call.Err != nil || !strings.Contains(call.Body, second.String()) {
		t.Errorf("%+v", call)
	}
	sv.stop(t)
	log := testkit.Value(os.ReadFile(sv.log))(t)
	for _, text := range []string{notifytest.Password, notifytest.Secret, "path-secret", "ada@example.com"} {
		if bytes.Contains(log, []byte(text)) {
			t.Errorf("%q is in the log", text)
		}
	}
	if bytes.Contains(log, []byte("not delivered")) {
		t.Errorf("log %s", log)
	}
}

// ledger due --notify sends what is due by mail and to the webhook, whose secrets are systemd credentials; the exit code says whether all have it.
func TestLedgerDueNotifies(t *testing.T) {
	t.Parallel()
	s, mails, _, _ := mailed(t)
	cert := s.ca.Issue(t, "hooks.example.com", nil)
	hook := notifytest.NewWebhook(&cert)
	t.Cleanup(hook.Stop)
	smtp := fmt.Sprintf("smtp: { host: %s, port: %d, from: hsmsign@example.com, to: [ ada@example.com ], username: %q, password-file: \"credential:secrets_smtp\", ca: ca.pem }", mails.Host, mails.Port, notifytest.Username)
	s.write(t, "due.yaml", []byte("notify: { "+smtp+", webhook: { url: \""+hook.URL+"\", secret-file: \"credential:secrets_webhook\", ca: ca.pem } }\n"))
	s.write(t, "nobody.yaml", []byte("notify: { smtp: { host: mail.example.com, from: hsmsign@example.com } }\n"))
	credentials := filepath.Join(s.dir, "credentials")
	testkit.OK(t, os.Mkdir(credentials, 0o700))
	s.write(t, "credentials/secrets_smtp", []byte(notifytest.Password+"\n"))
	s.write(t, "credentials/secrets_webhook", []byte(notifytest.Secret+"\n"))
	due := func(config string, want int, env ...string) (stdout, stderr string) {
		t.Helper()
		cmd := s.command(t.Context(), "ledger", "due", "--config", config, "--notify")
		cmd.Env = append(cmd.Env, append(env, "HSMSIGN_LAST_CHECKPOINT=last", "HSMSIGN_CERT=")...)
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		err := cmd.Run()
		if code := cmd.ProcessState.ExitCode(); code != want || strings.Contains(errs.String(), notifytest.Password) || strings.Count(errs.String(), "\n") > 1 {
			t.Errorf("%s: exit code %d (%v), want %d: %s", config, code, err, want, errs.String())
		}
		return out.String(), errs.String()
	}
	found := "CREDENTIALS_DIRECTORY=" + credentials
	if _, text := due("due.yaml", 0, found); !strings.Contains(text, "nothing is due") || len(mails.Mails())+len(hook.Calls()) != 0 {
		t.Errorf("nothing is due: %s", text)
	}
	s.run(t, "ledger", "customer", "add", "acme", "--account", "mdm@acme.example")
	s.run(t, "sign", "--customer", "acme", "-o", "acme.req", "customer.csr")
	out, text := due("due.yaml", 0, found)
	if len(mails.Mails()) != 1 || len(hook.Calls()) != 1 || !strings.Contains(out, "not redeemed") || !strings.Contains(text, "sent to 2 receivers") {
		t.Fatalf("%d mails, %d calls: %s%s", len(mails.Mails()), len(hook.Calls()), out, text)
	}
	if mail, call := mails.Mails()[0], hook.Calls()[0]; !strings.Contains(mail.Data, "Apple Account to use: mdm@acme.example") || mail.Login != notifytest.Username || call.Err != nil || !strings.Contains(call.Body, `"account":"mdm@acme.example"`) {
		t.Errorf("%+v, %+v", mail, call)
	}
	hook.Stop()
	if _, text := due("due.yaml", 6, found); !strings.Contains(text, "webhook: ") || strings.Contains(text, "smtp: ") || len(mails.Mails()) != 2 {
		t.Errorf("a webhook that is down: %s", text)
	}
	if _, text := due("due.yaml", 2); !strings.Contains(text, "no such credential") {
		t.Errorf("without systemd: %s", text)
	}
	if _, text := due("nobody.yaml", 2); !strings.Contains(text, "there is nobody to notify; write notify: {") {
		t.Errorf("nobody: %s", text)
	}
}
