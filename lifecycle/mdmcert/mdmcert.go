// Package mdmcert speaks to mdmcert.download, or a service of its kind, which signs CSRs for users without an MDM vendor.
//
//	err := mdmcert.Service{Address: "https://mdmcert.download", APIKey: key}.Send(ctx, mdmcert.Order{...})
//	// the answer comes by mail
//	request, err := mdmcert.Decrypt(attachment, private)
//
// Everything here is a function of its arguments, and safe for concurrent use.
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

// Order is what mdmcert.download is asked for: to sign a CSR as its MDM vendor, and to mail the Push Certificate Request,
// encrypted to a certificate of the asker's.
type Order struct {
	CSR        []byte // DER
	Email      string // as registered with the service; the answer goes there
	EncryptFor []byte // certificate, DER; see NewRecipient
}

// Service is a server of the kind of mdmcert.download.
type Service struct {
	Address string       // "https://mdmcert.download"; http on loopback only
	APIKey  string       // of the product that asks; a secret
	Client  *http.Client // nil: one with the transport http.DefaultTransport
}

// The errors of Send, found with errors.Is.
var (
	// ErrAddress: the server's address cannot be used.
	ErrAddress = fault.Usage.New("unfit server address")
	// ErrRefused: the service answered, and will not sign.
	ErrRefused = fault.Refused.New("the service refused")
	// ErrNoAnswer: nothing was heard, or nothing that can be understood; the service may have taken the order.
	ErrNoAnswer = fault.Unavailable.New("no answer from the service")
)

const (
	orderPath   = "/api/v1/signrequest"
	sendTimeout = 30 * time.Second
	maxAnswer   = 64 << 10 // bytes; a real one has less than 200
)

// Send places the order. The answer comes by mail, to be read with Decrypt. Send ends within 30 seconds, follows no
// redirect, and keeps the API key out of its errors.
func (s Service) Send(ctx context.Context, order Order) error {
	address, err := s.address()
	if err != nil {
		return err
	}
	body, err := json.Marshal(struct {
		CSR     string `json:"csr"`
		Email   string `json:"email"`
		Key     string `json:"key"`
		Encrypt string `json:"encrypt"`
	}{inPEM("CERTIFICATE REQUEST", order.CSR), order.Email, s.APIKey, inPEM("CERTIFICATE", order.EncryptFor)})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	status, answer, err := s.post(ctx, address, body)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoAnswer, err)
	}
	var result struct{ Result, Reason string }
	understood := json.Unmarshal(answer, &result) == nil
	switch {
	case understood && result.Result == "success" && status == http.StatusOK:
		return nil
	case understood && result.Result == "failure" && status < http.StatusInternalServerError:
		// A service that quotes what it was sent must not put the key into a log.
		return fmt.Errorf("%w: %q", ErrRefused, fault.Clip(s.redact(result.Reason), 128))
	case status >= http.StatusMultipleChoices && status < http.StatusBadRequest:
		return fmt.Errorf("%w: it answers %d and sends us elsewhere, which is not followed", ErrRefused, status)
	}
	return fmt.Errorf("%w: it answers %d and no result", ErrNoAnswer, status)
}

func (s Service) redact(text string) string {
	if s.APIKey == "" {
		return text
	}
	return strings.ReplaceAll(text, s.APIKey, "REDACTED")
}

// CheckAddress says, without calling it, whether the server's address can be used; errors wrap ErrAddress.
func (s Service) CheckAddress() error {
	_, err := s.address()
	return err
}

// address is where orders go. The API key and the CSR's names cross the network, so only https will do.
func (s Service) address() (string, error) {
	u, err := url.Parse(s.Address)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return "", fmt.Errorf("%w: write https://HOST, without user, query or fragment", ErrAddress)
	}
	ip := net.ParseIP(u.Hostname())
	loopback := u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
	if u.Scheme != "https" && (u.Scheme != "http" || !loopback) {
		return "", fmt.Errorf("%w: %q: only https is used, and http on loopback", ErrAddress, u.Redacted())
	}
	return strings.TrimSuffix(u.String(), "/") + orderPath, nil
}

func (s Service) post(ctx context.Context, address string, body []byte) (status int, answer []byte, err error) {
	var client http.Client
	if s.Client != nil {
		client = *s.Client
	}
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(body))
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

// inPEM is the base64 of PEM, as the service wants it.
func inPEM(label string, der []byte) string {
	return base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: label, Bytes: der}))
}
