package notify

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"hsmsign/api"
	"hsmsign/fault"
	"hsmsign/ledger"
)

const (
	webhookWait = 15 * time.Second
	maxAnswer   = 64 << 10 // bytes that are read of an answer

	secretPrefix = "whsec_"
	minSecret    = 24 // bytes
	maxSecret    = 64
)

// Webhook is a server that gets notices as JSON, signed as the Standard Webhooks specification says:
// https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
type Webhook struct {
	url    string
	key    []byte
	client *http.Client
}

// NewWebhook returns a webhook. secret is "whsec_" and the base64 of 24 to 64 random bytes; ca are the CAs of the server, nil: those of
// the system. Proxies are those of the environment. The error is of kind usage, and contains neither URL nor secret.
func NewWebhook(address, secret string, ca *x509.CertPool) (*Webhook, error) {
	u, err := url.Parse(address)
	if err != nil || u.Hostname() == "" || u.User != nil || u.Fragment != "" || u.Scheme != "https" && (u.Scheme != "http" || !isLoopback(u.Hostname())) {
		return nil, fault.Usage.Errorf("webhook: url is not the address of a webhook").Fix("write url: https://HOST/PATH, without a user; http is for loopback addresses only")
	}
	encoded, ok := strings.CutPrefix(secret, secretPrefix)
	key, err := base64.StdEncoding.DecodeString(encoded)
	if !ok || err != nil || len(key) < minSecret || len(key) > maxSecret {
		return nil, fault.Usage.Errorf("webhook: the file of the secret does not contain whsec_ and the base64 of %d to %d bytes", minSecret, maxSecret).
			Fix("make one: (umask 077; echo whsec_$(openssl rand -base64 32) > FILE)")
	}
	return &Webhook{u.String(), key, &http.Client{
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSClientConfig: &tls.Config{RootCAs: ca, MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true, MaxIdleConns: 1, IdleConnTimeout: time.Minute,
			TLSHandshakeTimeout: webhookWait, MaxResponseHeaderBytes: maxAnswer, DisableCompression: true,
		},
		Timeout: webhookWait,
		// A redirect could lead to another host.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// Describe returns the host of the webhook: the rest of its URL may be a secret.
func (w *Webhook) Describe() string {
	u, _ := url.Parse(w.url) // NewWebhook has parsed it
	return u.Scheme + "://" + u.Host
}

// send posts a notice about a request.
func (w *Webhook) send(ctx context.Context, m ledger.Message, link string, now time.Time) error {
	body, err := json.Marshal(api.Notice{Type: api.NoticePending, Timestamp: m.Created.UTC().Format(time.RFC3339), Data: api.NoticeData{RequestID: m.About.String(), URL: link}})
	if err != nil {
		return err
	}
	return w.post(ctx, m, body, now)
}

// post posts the body of a message. Any status of 2xx means that it was accepted.
func (w *Webhook) post(ctx context.Context, m ledger.Message, body []byte, now time.Time) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url, bytes.NewReader(body))
	if err != nil {
		return errors.New("the request cannot be made")
	}
	id, timestamp := "msg_"+m.ID.String(), strconv.FormatInt(now.Unix(), 10)
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("User-Agent", "hsmsign")
	r.Header.Set("Webhook-Id", id)
	r.Header.Set("Webhook-Timestamp", timestamp)
	r.Header.Set("Webhook-Signature", "v1,"+w.sign(id+"."+timestamp+"."+string(body)))
	answer, err := w.client.Do(r)
	if err != nil {
		return w.clean(ctx, err)
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(answer.Body, maxAnswer)) // so that the connection can be used again
	_ = answer.Body.Close()                                            // the status says everything
	if answer.StatusCode/100 != 2 {
		return fault.Unavailable.Errorf("the webhook answered %d", answer.StatusCode)
	}
	return nil
}

// sign returns the signature of a message.
func (w *Webhook) sign(message string) string {
	mac := hmac.New(sha256.New, w.key)
	mac.Write([]byte(message)) // it does not fail
	return base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// clean returns an error without the URL.
func (w *Webhook) clean(ctx context.Context, err error) error {
	if found, ok := errors.AsType[*url.Error](err); ok {
		if found.Timeout() || ctx.Err() != nil {
			return fault.Unavailable.Errorf("the webhook did not answer in %v", webhookWait)
		}
		err = found.Err
	}
	text := strings.ReplaceAll(err.Error(), w.url, "(the webhook)")
	failure := fault.Unavailable.Errorf("%s", fault.Clip(text, 256))
	if certificate := (*tls.CertificateVerificationError)(nil); errors.As(err, &certificate) {
		return failure.Fix("name the CA of the webhook with notify: { webhook: { ca: FILE } }")
	}
	return failure
}
