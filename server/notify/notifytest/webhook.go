package notifytest

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Secret is the secret of the webhook.
const Secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw" // #nosec G101 -- of a double

// Call is a request to the webhook.
type Call struct {
	ID   string // Webhook-Id
	Body string
	Err  error // why the request is not genuine
}

// Webhook is a server that verifies what it gets. Safe for concurrent use.
type Webhook struct {
	URL string

	server *httptest.Server
	mu     sync.Mutex
	calls  []Call
	answer http.HandlerFunc
	now    func() time.Time
}

// NewWebhook starts a webhook on a loopback address; with a certificate it has TLS.
func NewWebhook(cert *tls.Certificate) *Webhook {
	w := &Webhook{now: time.Now}
	w.server = httptest.NewUnstartedServer(http.HandlerFunc(w.serve))
	w.server.Config.ErrorLog = log.New(io.Discard, "", 0)
	if cert == nil {
		w.server.Start()
	} else {
		w.server.TLS = &tls.Config{Certificates: []tls.Certificate{*cert}, MinVersion: tls.VersionTLS12}
		w.server.StartTLS()
	}
	w.URL = w.server.URL + "/hook/path-secret"
	return w
}

// Stop ends the server.
func (w *Webhook) Stop() {
	w.server.CloseClientConnections()
	w.server.Close()
}

// Answer sets what answers the calls that follow; nil: status 204.
func (w *Webhook) Answer(answer http.HandlerFunc) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answer = answer
}

// SetNow sets the clock that timestamps are compared with.
func (w *Webhook) SetNow(now func() time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = now
}

// Calls returns the calls.
func (w *Webhook) Calls() []Call {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]Call{}, w.calls...)
}

func (w *Webhook) serve(out http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 64<<10))
	w.mu.Lock()
	now := w.now
	w.mu.Unlock()
	if err == nil {
		err = Verify(r, body, now())
	}
	w.mu.Lock()
	w.calls = append(w.calls, Call{ID: r.Header.Get("webhook-id"), Body: string(body), Err: err})
	answer := w.answer
	w.mu.Unlock()
	if answer != nil {
		answer(out, r)
		return
	}
	out.WriteHeader(http.StatusNoContent)
}

// Verify checks a request as the Standard Webhooks specification says, for Secret.
func Verify(r *http.Request, body []byte, now time.Time) error {
	if r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" {
		return fmt.Errorf("%s of %q", r.Method, r.Header.Get("Content-Type"))
	}
	id, stamp := r.Header.Get("webhook-id"), r.Header.Get("webhook-timestamp")
	seconds, err := strconv.ParseInt(stamp, 10, 64)
	if err != nil || id == "" || strings.Contains(id, ".") {
		return fmt.Errorf("webhook-id %q, webhook-timestamp %q", id, stamp)
	}
	if age := now.Sub(time.Unix(seconds, 0)); age.Abs() > 5*time.Minute {
		return fmt.Errorf("the timestamp is %v old", age)
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(Secret, "whsec_"))
	if err != nil {
		return err
	}
	mac := hmac.New(sha256.New, key)
	_, _ = fmt.Fprintf(mac, "%s.%s.%s", id, stamp, body) // it does not fail
	for _, signature := range strings.Fields(r.Header.Get("webhook-signature")) {
		version, encoded, _ := strings.Cut(signature, ",")
		found, err := base64.StdEncoding.DecodeString(encoded)
		if version == "v1" && err == nil && hmac.Equal(found, mac.Sum(nil)) {
			return nil
		}
	}
	return errors.New("the signature is wrong")
}
