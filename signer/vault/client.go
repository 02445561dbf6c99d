package vault

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"hsmsign/signer/kms"
)

const (
	// maxAnswer is far larger than the answers to the requests of this package, except a list of many keys.
	maxAnswer = 1 << 20
	// maxExchange limits an exchange whose context has no deadline.
	maxExchange = 30 * time.Second
)

// dial creates the client. It reads the CA file and sends nothing.
func (s *session) dial(ctx context.Context) error {
	roots, err := kms.Roots(s.ca)
	if err != nil {
		return err
	}
	s.transport = kms.Transport(roots)
	s.client = &http.Client{
		Transport: s.transport, Timeout: maxExchange,
		// A standby that does not forward requests redirects them. The token must not be sent to another server.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	s.caller = kms.New(s.policy, s.classify)
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	s.end = end
	s.identity = newIdentity(life, s)
	return nil
}

// answer is an answer of Vault to a request.
type answer struct {
	RequestID string          `json:"request_id"`
	Data      json.RawMessage `json:"data"`
	Auth      *grant          `json:"auth"`
	Warnings  []string        `json:"warnings"`
	Errors    []string        `json:"errors"`

	raw []byte
}

// grant is the token in an answer to a login or a renewal.
type grant struct {
	ClientToken   string `json:"client_token"`
	LeaseDuration int64  `json:"lease_duration"` // in seconds; 0: the token does not expire
	Renewable     bool   `json:"renewable"`
}

// request is one request of the API.
type request struct {
	path   string
	query  string             // "": none
	body   any                // nil: the request reads, and is a GET; otherwise it is a POST
	token  string             // "": without one
	root   bool               // the path exists in the root namespace only
	secret string             // in the body of a login; a refusal is then that of the secret, not of a token
	decode func(answer) error // reads the answer; nil: it is not read. It may be called several times
}

// send sends a request once. Its errors are an *apiError for an answer of Vault, errors of net/http, errDamaged and those of
// decode.
func (s *session) send(ctx context.Context, r request) error {
	method, target := http.MethodGet, s.url(r.path)
	if r.query != "" {
		target += "?" + r.query
	}
	var body io.Reader
	if r.body != nil {
		text, err := json.Marshal(r.body)
		if err != nil {
			return err
		}
		method, body = http.MethodPost, bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return err
	}
	// Vault answers requests without this header too, unless its agent requires it against requests that a browser makes.
	req.Header.Set("X-Vault-Request", "true")
	req.Header.Set("User-Agent", "hsmsign")
	if r.token != "" {
		req.Header.Set("X-Vault-Token", r.token)
	}
	if s.namespace != "" && !r.root {
		req.Header.Set("X-Vault-Namespace", s.namespace)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return &sendError{r.name(), errors.Unwrap(err)}
	}
	defer resp.Body.Close() //nolint:errcheck // it was only read
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return &sendError{r.name(), err}
	}
	return r.read(resp, text)
}

// read reads an answer.
func (r request) read(resp *http.Response, text []byte) error {
	var a answer
	err := json.Unmarshal(text, &a)
	isVault := err == nil && (a.Errors != nil || resp.StatusCode < http.StatusMultipleChoices)
	switch {
	case resp.StatusCode == http.StatusNoContent:
		a = answer{}
	case resp.StatusCode >= http.StatusMultipleChoices:
		return &apiError{status: resp.StatusCode, messages: r.redact(a.Errors), action: r.name(), vault: isVault, login: r.secret != "", location: resp.Header.Get("Location")}
	case len(text) > maxAnswer:
		return fmt.Errorf("%w: %s: it is longer than %d bytes", errDamaged, r.name(), maxAnswer)
	case !isVault:
		return fmt.Errorf("%w: %s", errDamaged, r.name())
	}
	a.raw = text
	if r.decode == nil {
		return nil
	}
	return r.decode(a)
}

// redact removes what the request proved itself with from the messages of an answer: they come from the network.
func (r request) redact(messages []string) []string {
	for _, value := range []string{r.token, r.secret} {
		for i := range messages {
			if value != "" {
				messages[i] = strings.ReplaceAll(messages[i], value, "REDACTED")
			}
		}
	}
	return messages
}

// name returns what errors call the request, which is also its permission: "read transit/keys/vendor".
func (r request) name() string {
	verb := "read "
	switch {
	case r.query == listQuery:
		verb = "list "
	case r.body != nil:
		verb = "update "
	}
	return verb + r.path[len("/v1/"):]
}

// listQuery makes a GET a list. Vault's own method, LIST, does not pass every proxy.
const listQuery = "list=true"

// call sends a request with the token, and with retries.
func (s *session) call(ctx context.Context, r request) error {
	if err := s.identity.prepare(ctx); err != nil {
		return err
	}
	_, err := kms.Do(ctx, s.caller, func(ctx context.Context) (struct{}, error) { return struct{}{}, s.authorized(ctx, r) })
	return err
}

// dataInto returns a decode that reads the data of an answer.
func dataInto(v any) func(a answer) error {
	return func(a answer) error {
		if err := json.Unmarshal(a.Data, v); err != nil {
			return fmt.Errorf("%w: its data: %w", errDamaged, err)
		}
		return nil
	}
}
