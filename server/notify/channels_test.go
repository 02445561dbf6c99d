package notify_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"net/mail"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
	"hsmsign/server/notify"
	"hsmsign/server/notify/notifytest"
)

func failAt(recipient string, code int, text string) notifytest.Fault {
	return notifytest.Fault{Recipient: recipient, AtRcpt: code, Text: text}
}

func closeAt(where string) notifytest.Fault { return notifytest.Fault{CloseAt: where} }

func delayed(d time.Duration) notifytest.Fault { return notifytest.Fault{Delay: d} }

// decoded returns the content of a base64 part.
func decoded(t *testing.T, part *multipart.Part) string {
	t.Helper()
	if part.Header.Get("Content-Transfer-Encoding") != "base64" {
		t.Errorf("%v", part.Header)
	}
	return string(testkit.Value(io.ReadAll(base64.NewDecoder(base64.StdEncoding, part)))(t))
}

// raw starts a server that sends bytes to each connection and then reads.
func raw(t *testing.T, text func() string) (host string, port int) {
	t.Helper()
	l := testkit.Value(net.Listen("tcp", "127.0.0.1:0"))(t)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = conn.Close() }() // the client has ended
				for s := text(); s != ""; s = text() {
					if _, err := io.WriteString(conn, s); err != nil {
						return
					}
				}
				_, _ = io.Copy(io.Discard, conn) // until the client closes it
			}()
		}
	}()
	return "127.0.0.1", l.Addr().(*net.TCPAddr).Port //nolint:forcetypeassert // it listens on TCP
}

// A mail server that fails in any way keeps the message in the outbox. The error says why, without the password.
func TestSMTPFails(t *testing.T) {
	o, c := newOutbox(t), newCA(t)
	mails, good := c.smtp(t, "ada@example.com")
	m := ledger.Message{ID: record.NewID(), Created: o.now()}
	content := notify.Mail{To: "ada@example.com", Subject: "x", Text: "x"}
	silentHost, silentPort := raw(t, func() string { return "" })
	_, chattyPort := raw(t, func() string { return strings.Repeat("220-x", 10_000) })
	for name, tt := range map[string]struct {
		fault  notifytest.Fault
		change func(s *notify.SMTP)
		want   string
		wait   time.Duration
	}{
		"4xx":              {fault: failAt("", 451, "try later"), want: "451"},
		"5xx":              {fault: failAt("", 550, "ada@example.com is unknown"), want: "(the recipient) is unknown"},
		"5xx at the data":  {fault: notifytest.Fault{AtData: 554, Text: "spam"}, want: "spam"},
		"closed in data":   {fault: closeAt("data"), want: "EOF"},
		"closed after it":  {fault: closeAt("answer"), want: "EOF"},
		"slow":             {fault: delayed(2 * time.Second), want: "did not answer", wait: 300 * time.Millisecond},
		"silent":           {change: func(s *notify.SMTP) { s.Host, s.Port = silentHost, silentPort }, want: "did not answer", wait: 300 * time.Millisecond},
		"endless":          {change: func(s *notify.SMTP) { s.Port = chattyPort }, want: "sends too much"},
		"refused":          {change: func(s *notify.SMTP) { s.Port = 1 }, want: "refused"},
		"another CA":       {change: func(s *notify.SMTP) { s.CA = nil }, want: "certificate"},
		"another name":     {change: func(s *notify.SMTP) { s.Host = "127.0.0.2" }, want: ""},
		"a wrong password": {change: func(s *notify.SMTP) { s.Password = "a-wrong-password" }, want: "repeats them"},
	} {
		t.Run(name, func(t *testing.T) {
			mails.Fail(tt.fault)
			defer mails.Fail(notifytest.Fault{})
			smtp := *good
			if tt.change != nil {
				tt.change(&smtp)
			}
			ctx := t.Context()
			if tt.wait > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, tt.wait)
				defer cancel()
			}
			before, begun := len(mails.Mails()), time.Now()
			err := smtp.Send(ctx, m, content)
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "ada@") || strings.Contains(err.Error(), smtp.Password) || len(err.Error()) > 300 {
				t.Errorf("%v", err)
			}
			if took := time.Since(begun); took > 5*time.Second || len(mails.Mails()) != before {
				t.Errorf("after %v, %d mails", took, len(mails.Mails()))
			}
		})
	}
	testkit.OK(t, good.Send(t.Context(), m, content))
}

// A server without STARTTLS gets no mail and no password, unless it is on this host and needs no password.
func TestSMTPNeedsTLS(t *testing.T) {
	o, c := newOutbox(t), newCA(t)
	m := ledger.Message{ID: record.NewID(), Created: o.now()}
	content := notify.Mail{To: "ada@example.com", Subject: "x", Text: "x"}
	server := testkit.Value(notifytest.NewSMTP(nil, false))(t)
	t.Cleanup(server.Stop)
	local := notify.SMTP{Host: server.Host, Port: server.Port, From: "hsmsign@example.com"}
	testkit.OK(t, local.Send(t.Context(), m, content))
	for _, smtp := range []notify.SMTP{
		{Host: server.Host, Port: server.Port, From: "hsmsign@example.com", CA: c.pool()},
		{Host: server.Host, Port: server.Port, From: "hsmsign@example.com", Username: notifytest.Username, Password: notifytest.Password},
	} {
		if err := smtp.Send(t.Context(), m, content); err == nil || !strings.Contains(err.Error(), "STARTTLS") {
			t.Errorf("%s: %v", smtp.Describe(), err)
		}
	}
	if got := server.Mails(); len(got) != 1 || got[0].TLS || got[0].Login != "" {
		t.Errorf("%+v", got)
	}
	for _, smtp := range []notify.SMTP{{Host: "mail.example.com"}, {Host: "127.0.0.1", Port: 465}, {Host: "192.0.2.1", Port: 25}} {
		if text := smtp.Describe(); !strings.Contains(text, "TLS") || strings.Contains(text, "without") {
			t.Error(text)
		}
	}
}

// The settings that cannot work are refused with one line and a fix.
func TestSMTPCheck(t *testing.T) {
	many := strings.Fields(strings.Repeat("a@b.example ", notify.MaxTo+1))
	for name, tt := range map[string]struct {
		smtp notify.SMTP
		want string
	}{
		"no host":        {notify.SMTP{From: "a@b.example"}, "host"},
		"a host, a port": {notify.SMTP{Host: "mail.example:587", From: "a@b.example"}, "host"},
		"a URL":          {notify.SMTP{Host: "smtp://mail.example", From: "a@b.example"}, "host"},
		"a port":         {notify.SMTP{Host: "mail.example", Port: 70000, From: "a@b.example"}, "port 70000"},
		"no sender":      {notify.SMTP{Host: "mail.example"}, "from"},
		"a header":       {notify.SMTP{Host: "mail.example", From: "a@b.example\nBcc: x@y.example"}, "from"},
		"no recipient":   {notify.SMTP{Host: "mail.example", From: "a@b.example", To: []string{"a@b.example", "nobody"}}, "number 2 in to"},
		"twice":          {notify.SMTP{Host: "mail.example", From: "a@b.example", To: []string{"a@b.example", "a@b.example"}}, "twice"},
		"many":           {notify.SMTP{Host: "mail.example", From: "a@b.example", To: many}, "at most 20"},
		"no password":    {notify.SMTP{Host: "mail.example", From: "a@b.example", Username: "u"}, "belong together"},
		"no user":        {notify.SMTP{Host: "mail.example", From: "a@b.example", Password: "p"}, "belong together"},
		"two lines":      {notify.SMTP{Host: "mail.example", From: "a@b.example", Username: "u", Password: "p\nq"}, "control character"},
	} {
		if err := tt.smtp.Check(); fault.KindOf(err) != fault.Usage || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A webhook that fails in any way keeps the message in the outbox.
func TestWebhookFails(t *testing.T) {
	o, c := newOutbox(t), newCA(t)
	hook, webhook := c.webhook(t)
	other := notifytest.NewWebhook(nil)
	t.Cleanup(other.Stop)
	m := ledger.Message{ID: record.NewID(), About: record.NewID(), Created: o.now()}
	for name, tt := range map[string]struct {
		answer http.HandlerFunc
		want   string
	}{
		"500": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }, "answered 500"},
		"410": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(410) }, "answered 410"},
		"redirected": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
		}, "answered 307"},
		"slow":   {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "did not answer"},
		"closed": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "EOF"},
		"huge header": {func(w http.ResponseWriter, _ *http.Request) {
			for i := range 100 {
				w.Header().Set(fmt.Sprint("X-", i), strings.Repeat("x", 2000))
			}
		}, "server"},
	} {
		t.Run(name, func(t *testing.T) {
			hook.Answer(tt.answer)
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			err := webhook.Send(ctx, m, link)
			if err == nil || !strings.Contains(err.Error(), tt.want) || len(err.Error()) > 300 {
				t.Errorf("%v", err)
			}
			secretless(t, fmt.Sprint(err))
		})
	}
	hook.Answer(func(w http.ResponseWriter, _ *http.Request) { // without an end
		for {
			if _, err := w.Write(make([]byte, 64<<10)); err != nil {
				return
			}
		}
	})
	begun := time.Now()
	testkit.OK(t, webhook.Send(t.Context(), m, link))
	if took := time.Since(begun); took > 2*time.Second || len(other.Calls()) != 0 {
		t.Errorf("%v, the redirect was followed %d times", took, len(other.Calls()))
	}
	foreign := testkit.Value(notify.NewWebhook(hook.URL, notifytest.Secret, nil))(t)
	if err := foreign.Send(t.Context(), m, link); err == nil || !strings.Contains(fault.Hint(err), "ca: FILE") {
		t.Errorf("another CA: %v", err)
	}
	hook.Stop()
	err := webhook.Send(t.Context(), m, link)
	if err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("down: %v", err)
	}
	secretless(t, fmt.Sprint(err))
}

// The signature is the one of the specification's example secret, and a changed body, id or secret is noticed.
func TestWebhookSignature(t *testing.T) {
	o := newOutbox(t)
	hook := notifytest.NewWebhook(nil)
	t.Cleanup(hook.Stop)
	m := ledger.Message{ID: record.NewID(), About: record.NewID(), Created: o.now()}
	right := testkit.Value(notify.NewWebhook(hook.URL, notifytest.Secret, nil))(t)
	wrong := testkit.Value(notify.NewWebhook(hook.URL, "whsec_"+base64.StdEncoding.EncodeToString(make([]byte, 32)), nil))(t)
	testkit.OK(t, right.Send(t.Context(), m, link))
	testkit.OK(t, wrong.Send(t.Context(), m, link))
	if calls := hook.Calls(); calls[0].Err != nil || calls[1].Err == nil || calls[0].ID != "msg_"+m.ID.String() {
		t.Errorf("%+v", calls)
	}
	if text := right.Describe(); strings.Contains(text, "hook") || !strings.HasPrefix(text, "http://127.0.0.1:") {
		t.Errorf("%s", text)
	}
}

func TestWebhookCheck(t *testing.T) {
	const good = "https://hooks.example.com/a?b=c"
	for name, tt := range map[string]struct{ url, secret string }{
		"http":         {"http://hooks.example.com/secret-path", notifytest.Secret},
		"a user":       {"https://u:secret-path@hooks.example.com/", notifytest.Secret},
		"a fragment":   {good + "#x", notifytest.Secret},
		"no host":      {"https:///x", notifytest.Secret},
		"no URL":       {"secret-path\x7f", notifytest.Secret},
		"a file":       {"file:///secret-path", notifytest.Secret},
		"no prefix":    {good, strings.TrimPrefix(notifytest.Secret, "whsec_")},
		"no base64":    {good, "whsec_!!!"},
		"short":        {good, "whsec_" + base64.StdEncoding.EncodeToString(make([]byte, 23))},
		"long":         {good, "whsec_" + base64.StdEncoding.EncodeToString(make([]byte, 65))},
		"empty secret": {good, ""},
	} {
		if _, err := notify.NewWebhook(tt.url, tt.secret, nil); fault.KindOf(err) != fault.Usage || strings.Contains(err.Error(), "secret-path") || strings.Contains(err.Error(), "MfKQ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, url := range []string{good, "http://127.0.0.1:8080/x", "http://[::1]/", "http://localhost/x"} {
		if _, err := notify.NewWebhook(url, notifytest.Secret, nil); err != nil {
			t.Errorf("%s: %v", url, err)
		}
	}
}

// Files of the spool are whole mails that only the service can read.
func TestSpool(t *testing.T) {
	o, c := newOutbox(t), newCA(t)
	mails, smtp := c.smtp(t)
	dir := t.TempDir()
	n := o.notifier(notify.Channels{SMTP: smtp, Spool: dir})
	payload := strings.Repeat("0a1b", 10_000)
	about := o.post(t, ledger.MessageMDMCert, payload)
	all(t, n)
	files := testkit.Value(os.ReadDir(dir))(t)
	if len(files) != 1 || !strings.HasPrefix(files[0].Name(), about.String()+"-") || o.waiting(t) != 0 || len(mails.Seen()) != 0 {
		t.Fatalf("%v, %d wait", files, o.waiting(t))
	}
	if info := testkit.Value(files[0].Info())(t); info.Mode() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	f := testkit.Value(os.Open(filepath.Join(dir, files[0].Name())))(t)
	defer f.Close()
	m := testkit.Value(mail.ReadMessage(f))(t)
	id := strings.TrimSuffix(strings.TrimPrefix(files[0].Name(), about.String()+"-"), ".eml")
	if m.Header.Get("To") != "<it@acme.example>" || m.Header.Get("Message-ID") != "<"+id+"@example.com>" || m.Header.Get("From") == "" {
		t.Errorf("%v", m.Header)
	}
}

// A process that was killed between the file and the ledger writes no second file.
func TestSpoolAgain(t *testing.T) {
	o, dir := newOutbox(t), t.TempDir()
	about := o.post(t, ledger.MessageMDMCert, "answer")
	m := testkit.Value(o.Take(t.Context(), notify.Lease))(t)
	written := filepath.Join(dir, about.String()+"-"+m.ID.String()+".eml")
	testkit.OK(t, os.WriteFile(written, []byte("by the process that was killed"), 0o600))
	o.pass(notify.Lease)
	all(t, o.notifier(notify.Channels{Spool: dir}))
	if files := testkit.Value(os.ReadDir(dir))(t); len(files) != 1 || o.waiting(t) != 0 || string(testkit.Value(os.ReadFile(written))(t)) != "by the process that was killed" {
		t.Errorf("%v, %d wait", files, o.waiting(t))
	}
	next := o.post(t, ledger.MessageMDMCert, "answer") // without a sender
	m = testkit.Value(o.Take(t.Context(), notify.Lease))(t)
	testkit.OK(t, os.Symlink("/nowhere", filepath.Join(dir, next.String()+"-"+m.ID.String()+".eml")))
	o.pass(notify.Lease)
	if all(t, o.notifier(notify.Channels{Spool: dir})); o.waiting(t) != 1 {
		t.Error("a link counts as a file")
	}
}

// A spool that cannot be written, or is full, keeps the messages in the outbox and is logged once.
func TestSpoolFails(t *testing.T) {
	base := t.TempDir()
	at := func(name string) string { return filepath.Join(base, name) }
	for _, name := range []string{"files", "bytes", "others", "target"} {
		testkit.OK(t, os.Mkdir(at(name), 0o700))
	}
	for i := range notify.MaxSpoolFiles {
		testkit.OK(t, os.WriteFile(filepath.Join(at("files"), fmt.Sprint(i)), nil, 0o600))
	}
	testkit.OK(t, os.WriteFile(filepath.Join(at("bytes"), "x"), nil, 0o600))
	testkit.OK(t, os.Truncate(filepath.Join(at("bytes"), "x"), notify.MaxSpoolBytes-100))
	testkit.OK(t, os.Chmod(at("others"), 0o777)) // #nosec G302 -- it must be refused
	testkit.OK(t, os.Symlink(at("target"), at("link")))
	testkit.OK(t, os.WriteFile(at("file"), nil, 0o600))
	for name, want := range map[string]string{"files": "is full", "bytes": "is full", "others": "others can write", "link": "symbolic link", "missing": "does not exist", "file": "not a folder"} {
		t.Run(name, func(t *testing.T) {
			o := newOutbox(t)
			n := o.notifier(notify.Channels{Spool: at(name)})
			for range 3 {
				o.post(t, ledger.MessageMDMCert, "x")
			}
			for range 4 {
				all(t, n)
				o.pass(5 * time.Minute)
			}
			messages, text := o.logged(t)
			if o.waiting(t) != 3 || messages != "spool messages are not delivered; they are tried again" || !strings.Contains(text, want) {
				t.Errorf("%d wait, log %s", o.waiting(t), text)
			}
		})
	}
	// What made it full is gone.
	o := newOutbox(t)
	n := o.notifier(notify.Channels{Spool: at("files")})
	o.post(t, ledger.MessageMDMCert, "x")
	all(t, n)
	testkit.OK(t, os.Remove(filepath.Join(at("files"), "7")))
	o.pass(time.Minute)
	if all(t, n); o.waiting(t) != 0 {
		t.Error("it is not written when there is room")
	}
	if messages, _ := o.logged(t); !strings.HasSuffix(messages, "spool messages are delivered again") {
		t.Errorf("log %s", messages)
	}
	readOnly(t, at("target"))
}

// readOnly checks a folder that cannot be written: root can write it, so then the folder is one of the kernel.
func readOnly(t *testing.T, dir string) {
	t.Helper()
	if os.Getuid() == 0 {
		dir = "/proc/self"
	}
	testkit.OK(t, ignoreProc(dir))
	o := newOutbox(t)
	n := o.notifier(notify.Channels{Spool: dir})
	o.post(t, ledger.MessageMDMCert, "x")
	all(t, n)
	if messages, text := o.logged(t); o.waiting(t) != 1 || !strings.Contains(messages, "not delivered") {
		t.Errorf("%d wait, log %s", o.waiting(t), text)
	}
}

func ignoreProc(dir string) error {
	if strings.HasPrefix(dir, "/proc") {
		return nil
	}
	return os.Chmod(dir, 0o500) // #nosec G302 -- the folder is to be read-only
}
