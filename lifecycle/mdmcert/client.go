package mdmcert

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"hsmsign/fault"
)

// Service is mdmcert.download, or a server of its kind.
type Service struct {
	Address string       // "https://mdmcert.download", with or without the path of orders; http on loopback only
	APIKey  string       // of the client product; a secret
	Client  *http.Client // nil: a client with http.DefaultTransport
}

// The error families of Send.
var (
	// ErrAddress means an unusable server address.
	ErrAddress = fault.Usage.New("unusable server address")
	// ErrRefused means that the service refuses the order.
	ErrRefused = fault.Refused.New("the service refused")
	// ErrNoAnswer means that the service did not answer, or not in its form. It may have accepted the order.
	ErrNoAnswer = fault.Unavailable.New("no answer from the service")
)

const (
	orderPath   = "/api/v1/signrequest"
	sendTimeout = 30 * time.Second
	maxAnswer   = 64 << 10 // bytes; the service sends less than 200
)

// Send posts the order. The service mails its answer, for Decrypt. Send ends within 30 seconds and follows no redirect. Its
// errors wrap ErrAddress, ErrRefused or ErrNoAnswer and do not contain the API key.
func (s Service) Send(ctx context.Context, order Order) error {
	address, err := s.address()
	if err != nil {
		return err
	}
	data, err := json.Marshal(body{inPEM("CERTIFICATE REQUEST", order.CSR), order.Email, s.APIKey, inPEM("CERTIFICATE", order.EncryptFor)})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	status, answer, err := s.post(ctx, address, data)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoAnswer, err)
	}
	var r result
	decoded := json.Unmarshal(answer, &r) == nil
	switch {
	case decoded && r.Result == success && status == http.StatusOK:
		return nil
	case decoded && r.Result == failure && status < http.StatusInternalServerError:
		// A service may quote the order; the API key must not get into a log.
		return fmt.Errorf("%w: %q", ErrRefused, fault.Clip(s.redact(r.Reason), 128))
	case status >= http.StatusMultipleChoices && status < http.StatusBadRequest:
		return fmt.Errorf("%w: it answers %d with a redirect, which is not followed", ErrRefused, status)
	}
	return fmt.Errorf("%w: it answers %d without a result", ErrNoAnswer, status)
}

func (s Service) redact(text string) string {
	if s.APIKey == "" {
		return text
	}
	return strings.ReplaceAll(text, s.APIKey, "REDACTED")
}

// CheckAddress checks the server's address without calling it. Errors wrap ErrAddress.
func (s Service) CheckAddress() error {
	_, err := s.address()
	return err
}

// address returns the URL for orders. The API key and the names in the CSR need https.
func (s Service) address() (string, error) {
	u, err := url.Parse(s.Address)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return "", fault.Errorf("%w: it is not an absolute URL without user, query and fragment", ErrAddress).Fix("write https://HOST")
	}
	ip := net.ParseIP(u.Hostname())
	loopback := u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
	if u.Scheme != "https" && (u.Scheme != "http" || !loopback) {
		return "", fault.Errorf("%w: %q: only https is used, and http on loopback", ErrAddress, u.Redacted()).Fix("write https://HOST")
	}
	return strings.TrimSuffix(strings.TrimRight(u.String(), "/"), orderPath) + orderPath, nil // the user may name the whole path
}

func (s Service) post(ctx context.Context, address string, data []byte) (status int, answer []byte, err error) {
	var client http.Client
	if s.Client != nil {
		client = *s.Client
	}
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(data))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "hsmsign")
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err == nil && len(answer) > maxAnswer {
		err = fmt.Errorf("more than %d bytes", maxAnswer)
	}
	return resp.StatusCode, answer, err
}

// inPEM returns the base64 of PEM.
func inPEM(label string, der []byte) string {
	return base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: label, Bytes: der}))
}
