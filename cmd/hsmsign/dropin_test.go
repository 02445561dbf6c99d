//go:build linux

package main

import (
	"bytes"
	"encoding/base64"
	"encoding/pem"
	"io"
	"mime"
	"mime/multipart"
	"net/mail"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"hsmsign/internal/servicekit"
	"hsmsign/internal/testkit"
	"hsmsign/ledger"
	"hsmsign/server"
	"hsmsign/server/notify"
	"hsmsign/server/notify/notifytest"
)

// TestMDMCertAgainstService: the program's own client of mdmcert.download works with the service, with a token as the API key.
func TestMDMCertAgainstService(t *testing.T) {
	mails := testkit.Value(notifytest.NewSMTP(nil, false))(t)
	t.Cleanup(mails.Stop)
	s := servicekit.Start(t, servicekit.Options{DropIn: server.DropIn{MDMCert: true}, Channels: notify.Channels{SMTP: &notify.SMTP{Host: mails.Host, Port: mails.Port, From: "hsmsign@example.com"}}})
	testkit.OK(t, s.Ledger.AddCustomer(t.Context(), "test", "local", ledger.Customer{Name: "acme", Contact: "mdm@acme.example"}))
	program, dir := programFile(t), t.TempDir()
	root := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Root.Raw})
	testkit.OK(t, os.WriteFile(filepath.Join(dir, "root.pem"), root, 0o600))
	run := func(want int, args ...string) (stdout, stderr string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), program, args...) // #nosec G204 -- a test's own arguments
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_CONFIG_HOME="+dir, "HSMSIGN_API_KEY="+s.Tokens["acme"], "HSMSIGN_PASSPHRASE=correct horse battery staple")
		var outText, errText strings.Builder
		cmd.Stdout, cmd.Stderr = &outText, &errText
		_ = cmd.Run() // the exit code is checked
		if code := cmd.ProcessState.ExitCode(); code != want || strings.Contains(outText.String()+errText.String(), s.Tokens["acme"]) {
			t.Fatalf("%v: %d: %s%s", args, code, outText.String(), errText.String())
		}
		return outText.String(), errText.String()
	}
	order := []string{"mdmcert", "request", "--server", s.HTTP, "--name", "Acme MDM", "--country", "DE"}
	if _, text := run(3, append(order, "--email", "evil@evil.example", "--out-dir", "refused")...); !strings.Contains(text, "the email address is not the one that is registered") {
		t.Error(text)
	}
	if _, err := os.Stat(filepath.Join(dir, "refused")); err == nil {
		t.Error("a refused order leaves files")
	}
	if _, text := run(0, append(order, "--email", "mdm@acme.example", "--out-dir", "acme")...); !strings.Contains(text, "the service accepted the order") {
		t.Fatal(text)
	}
	testkit.Eventually(t, "the mail", func() bool { return len(mails.Mails()) == 1 })
	sent := mails.Mails()[0]
	name, data := attachment(t, []byte(sent.Data))
	if sent.To != "mdm@acme.example" {
		t.Errorf("to %q", sent.To)
	}
	testkit.OK(t, os.WriteFile(filepath.Join(dir, name), data, 0o600))
	if text, _ := run(0, "mdmcert", "decrypt", "--recipient-key", "acme/recipient.key", "--csr", "acme/push.csr", "--trust-root", "root.pem", "-o", "acme.req", name); !strings.Contains(text, "acme.req: valid") {
		t.Error(text)
	}
}

// attachment returns the attached file of a mail and its name.
func attachment(t *testing.T, message []byte) (name string, data []byte) {
	t.Helper()
	m := testkit.Value(mail.ReadMessage(bytes.NewReader(message)))(t)
	_, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	testkit.OK(t, err)
	parts := multipart.NewReader(m.Body, params["boundary"])
	for {
		part := testkit.Value(parts.NextPart())(t) // the end is an error, too
		if name = part.FileName(); name != "" {
			return name, testkit.Value(io.ReadAll(base64.NewDecoder(base64.StdEncoding, part)))(t)
		}
	}
}
