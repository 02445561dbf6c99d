package server

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"hsmsign/api"
	"hsmsign/fault"
)

// fail sends an error as a problem (RFC 9457), unless an answer has begun.
func (c *call) fail(err error) {
	c.err = err
	if c.written.status != 0 { // the end of the answer cannot be written, so that nobody takes a part for the whole
		_ = http.NewResponseController(c.w).SetWriteDeadline(time.Unix(1, 0))
		return
	}
	kind, problem := fault.KindOf(err), c.problem(err)
	if problem.Status < http.StatusBadRequest { // defects of the ledger: an error never looks like an answer
		problem.Status = http.StatusInternalServerError
	}
	if kind == fault.Unauthenticated && !c.console {
		c.w.Header().Set("WWW-Authenticate", `Bearer realm="hsmsign"`)
	}
	if after := retryAfter(kind, err, c.begun); after > 0 {
		c.w.Header().Set("Retry-After", strconv.Itoa(int((after+time.Second-1)/time.Second)))
	}
	if c.r.ContentLength != 0 && !c.read {
		c.w.Header().Set("Connection", "close") // otherwise net/http receives the body before it answers
	}
	if c.w.Header().Get("Allow") != "" {
		problem.Status = http.StatusMethodNotAllowed
	}
	if c.form != nil {
		c.form(c, problem)
		return
	}
	c.w.Header().Set("Content-Type", "application/problem+json")
	data, _ := json.Marshal(problem) // it has no value that cannot be encoded
	c.send(problem.Status, append(data, '\n'))
}

// problem returns what the caller is told of an error. What it is not told is logged.
func (c *call) problem(err error) api.Problem {
	problem := api.NewProblem(err)
	if text := hidden[fault.KindOf(err)]; text != "" && !errors.As(err, new(*Retry)) {
		c.reason = err
		problem.Detail, problem.Fix = text, "ask the operators of the server, whose log has the id "+c.id
	}
	problem.RequestID, problem.Findings = c.id, c.findings
	return problem
}

// hidden is what callers are told of errors that are about the server: the errors themselves name files, hosts and key stores.
var hidden = map[fault.Kind]string{
	fault.Internal: "the server failed at this request", fault.Interrupted: "the server is stopping, or the request took too long",
	fault.Vendor: "the server cannot use its vendor identity", fault.Auth: "the key store refused the server's credentials",
	fault.Unavailable: "the key store, the ledger, the entitlement program, AWS STS or the sign-in provider does not answer", fault.Defects: "the ledger is not what its signed checkpoint says",
}

// retryAfter returns when to try again; 0: not at all.
func retryAfter(kind fault.Kind, err error, now time.Time) time.Duration {
	if fault.Rule(err) == "policy.per-day" {
		return now.UTC().Truncate(24 * time.Hour).Add(24 * time.Hour).Sub(now)
	}
	if retry, ok := errors.AsType[*Retry](err); ok {
		return retry.After
	}
	switch kind {
	case fault.Limited:
		return time.Minute
	case fault.Unavailable, fault.Vendor, fault.Auth, fault.Interrupted:
		return 5 * time.Second
	}
	return 0
}

// send writes an answer.
func (c *call) send(status int, data []byte) {
	c.w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	c.w.WriteHeader(status)
	c.written.status = status
	n, _ := c.w.Write(data) // the other side is gone
	c.written.bytes = int64(n)
}

// json answers with an object.
func (c *call) json(status int, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	c.w.Header().Set("Content-Type", "application/json")
	c.send(status, append(data, '\n'))
	return nil
}

// wantsJSON returns whether the caller asks for JSON.
func (c *call) wantsJSON() bool {
	for _, accepted := range strings.Split(strings.Join(c.r.Header.Values("Accept"), ","), ",") {
		mediaType, _, _ := strings.Cut(accepted, ";")
		if strings.TrimSpace(strings.ToLower(mediaType)) == "application/json" {
			return true
		}
	}
	return false
}

// mediaType returns the type of the body, in lower case, without parameters.
func (c *call) mediaType() string {
	mediaType, _, _ := strings.Cut(c.r.Header.Get("Content-Type"), ";")
	return strings.ToLower(strings.TrimSpace(mediaType))
}

// body reads the body.
func (c *call) body() ([]byte, error) {
	if c.data != nil {
		return c.data, nil
	}
	if encoding := c.r.Header.Get("Content-Encoding"); encoding != "" && encoding != "identity" {
		return nil, fault.WrongType.Errorf("the body has the encoding %q", fault.Clip(encoding, 32)).Fix("send it without Content-Encoding")
	}
	data, err := io.ReadAll(c.r.Body)
	if err == nil {
		c.bodyRead()
	}
	if large, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, fault.TooLarge.Errorf("the body is larger than %d bytes", large.Limit).Fix("send less: GET /v1/openapi.yaml says what the body is")
	}
	if err != nil {
		return nil, fault.Usage.Errorf("the body was not received: %w", err).Fix("send it whole, within 15 seconds")
	}
	return data, nil
}

// decode reads a JSON body into v.
func (c *call) decode(v any) error {
	if mediaType := c.mediaType(); mediaType != "application/json" {
		return fault.WrongType.Errorf("the body has the type %q", fault.Clip(mediaType, 64)).Fix("send it as application/json")
	}
	data, err := c.body()
	if err != nil {
		return err
	}
	return decodeJSON(data, v)
}

// decodeJSON reads one JSON value without unknown members.
func decodeJSON(data []byte, v any) error {
	dec := json.NewDecoder(strings.NewReader(string(data)))
	dec.DisallowUnknownFields()
	err := dec.Decode(v)
	if err == nil {
		if _, end := dec.Token(); end != io.EOF {
			err = errors.New("there is more after the value")
		}
	}
	if err != nil {
		return fault.Usage.Errorf("the body is not the JSON that is expected: %s", fault.Clip(err.Error(), 128)).Fix("GET /v1/openapi.yaml describes it")
	}
	return nil
}
