//go:build linux

package main

import (
	"bytes"
	"encoding/pem"
	"errors"
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
