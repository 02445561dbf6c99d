package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"mime"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"hsmsign/fault"
)

const (
	maxAnswer   = 16 << 20 // bytes, of all answers but exports
	maxFailures = 5        // of connections
	firstPause  = 200 * time.Millisecond
	typeJSON    = "application/json"
	typeProblem = "application/problem+json"
	typeFile    = "application/octet-stream"
	typeText    = "text/plain"
)

// exchange is one request of the API.
type exchange struct {
	method, path string
	query        url.Values
	body         []byte
	bodyType     string
	want         string        // type of the answer
	again        bool          // it may be sent again after the service has received it
	anybody      bool          // it needs no token
	states       []int         // statuses that are answers, besides 200 and 201
	limit        time.Duration // zero: Config.Timeout
	seen         *seen         // what the exchange leaves behind; nil: nobody asks
}

// seen is what an exchange leaves behind besides its answer.
type seen struct {
	status int           // of the answer
	after  time.Duration // header Retry-After; 0: there is none
	again  bool          // it was sent more than once
}

// failure is an error after which the exchange may be sent again.
type failure struct {
	err   error
	after time.Duration // at the earliest; 0: the service did not say
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// call sends a request, and sends it again after a failure that permits it. receive reads the answer.
func (c *Client) call(ctx context.Context, x exchange, receive func(body io.Reader) error) error {
	begun, failures := time.Now(), 0
	var before error // of the try before
	for {
		err := c.try(ctx, x, receive)
		f, again := errors.AsType[*failure](err)
		switch {
		case again:
			before = f.err
		case err != nil && before != nil && ctx.Err() != nil: // the reason why it took too long
			return fmt.Errorf("%w; trying again: %w", before, ctx.Err())
		default:
			return err
		}
		pause := f.after
		if pause == 0 {
			pause = firstPause << failures
			failures++
		}
		pause += rand.N(pause/2 + 1) // #nosec G404 -- so that clients do not come at the same time
		if failures >= maxFailures || time.Since(begun)+pause > c.maxWait {
			return before
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("%w; trying again: %w", before, ctx.Err())
		}
		if x.seen != nil {
			x.seen.again = true
		}
	}
}

// try sends a request once, or twice if the token was replaced.
func (c *Client) try(ctx context.Context, x exchange, receive func(body io.Reader) error) error {
	limit := orDefault(x.limit, c.timeout)
	within, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var sent atomic.Bool
	traced := httptrace.WithClientTrace(within, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { sent.Store(true) }})
	err := c.answered(traced, x, receive)
	if _, broken := errors.AsType[*connectionError](err); !broken {
		return err
	}
	switch invalid, untrusted := errors.AsType[*tls.CertificateVerificationError](err); {
	case ctx.Err() != nil:
		return fault.Errorf("the service %s did not answer in time: %w", c.name, ctx.Err())
	case untrusted:
		return fault.Auth.Errorf("the certificate of the service %s is not accepted: %w", c.name, invalid.Err).
			Fix("check the address, and name the CA of the service's certificate if it is not one of the system's")
	case within.Err() != nil:
		err = fault.Unavailable.Errorf("the service %s did not answer within %v", c.name, limit).Fix("try again; the log of the service says what it does")
	default:
		err = fault.Unavailable.Errorf("cannot reach the service %s: %s", c.name, fault.Clip(err.Error(), 256)).
			Fix("check the address, and that hsmsign serve is running")
	}
	if x.again || !sent.Load() {
		return &failure{err: err}
	}
	return err
}

// answered sends a request and reads the answer.
func (c *Client) answered(ctx context.Context, x exchange, receive func(body io.Reader) error) error {
	answer, err := c.authorized(ctx, x)
	if err != nil {
		return err
	}
	defer func() { _ = answer.Body.Close() }() // it was read
	answer.Body = struct {
		io.Reader
		io.Closer
	}{connectionReader{answer.Body}, answer.Body}
	if err := x.check(answer); err != nil {
		return err
	}
	return receive(answer.Body)
}

// connectionError means that there is no whole answer.
type connectionError struct{ err error }

func (e *connectionError) Error() string { return e.err.Error() }
func (e *connectionError) Unwrap() error { return e.err }

// connectionReader tells the errors of an answer from those of what is done with it.
type connectionReader struct{ next io.Reader }

func (r connectionReader) Read(p []byte) (int, error) {
	n, err := r.next.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = &connectionError{err}
	}
	return n, err
}

// authorized sends a request with the token, and once more if there is another token when the service does not accept it. An
// error of the connection is a *connectionError.
func (c *Client) authorized(ctx context.Context, x exchange) (*http.Response, error) {
	if c.bearer != nil && !x.anybody {
		value, err := c.bearer(ctx)
		if err != nil {
			return nil, err
		}
		return c.send(ctx, x, value)
	}
	used := ""
	if c.read != nil && !x.anybody {
		var err error
		if used, err = c.newToken(ctx, ""); err != nil {
			return nil, err
		}
	}
	answer, err := c.send(ctx, x, used)
	if err != nil || answer.StatusCode != http.StatusUnauthorized || used == "" {
		return answer, err
	}
	next, err := c.newToken(ctx, used)
	if err != nil || next == used { // the answer says what is wrong
		return answer, nil //nolint:nilerr // likewise
	}
	_ = answer.Body.Close() // the next answer counts
	return c.send(ctx, x, next)
}

// newToken returns the token, which is read if there is none yet, or if it is the one that was refused.
func (c *Client) newToken(ctx context.Context, refused string) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.token != "" && c.token != refused {
		return c.token, nil
	}
	secret, err := c.read(ctx)
	if err != nil {
		return "", err
	}
	defer clear(secret)
	if len(secret) == 0 || bytes.ContainsFunc(secret, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", fault.Usage.Errorf("the token has characters that no token has").Fix("it is one line, as hsmsign caller token prints it")
	}
	c.token = string(secret)
	return c.token, nil
}

// send sends a request once.
func (c *Client) send(ctx context.Context, x exchange, token string) (*http.Response, error) {
	address := c.base + x.path
	if len(x.query) > 0 {
		address += "?" + x.query.Encode()
	}
	r, err := http.NewRequestWithContext(ctx, x.method, address, bytes.NewReader(x.body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("User-Agent", "hsmsign")
	r.Header.Set("Accept", x.want+", "+typeProblem)
	if x.body != nil {
		r.Header.Set("Content-Type", x.bodyType)
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	answer, err := c.http.Do(r)
	if err != nil {
		if inner, ok := errors.AsType[*url.Error](err); ok {
			err = inner.Err // the message has the address already
		}
		return nil, &connectionError{err}
	}
	return answer, nil
}

// check returns an error if an answer is not the one that was asked for.
func (x *exchange) check(answer *http.Response) error {
	media, _, _ := mime.ParseMediaType(answer.Header.Get("Content-Type")) // "" if it cannot be read, which is another type
	status, after := answer.StatusCode, retryAfter(answer.Header.Get("Retry-After"))
	if x.seen != nil {
		x.seen.status, x.seen.after = status, after
	}
	good := status == http.StatusOK || status == http.StatusCreated
	for _, s := range x.states {
		good = good || status == s
	}
	var err error
	switch {
	case media == typeProblem:
		var data []byte
		if data, err = readAll(answer.Body, maxProblem); err != nil {
			return err
		}
		err = problem(status, data)
	case status >= 300 && status < 400:
		err = fault.Unavailable.Errorf("the service answers %d, a redirect, which is not followed", status).Fix("name the address of the service itself")
	case !good:
		err = statusError(status)
	case media != x.want:
		err = fault.Unavailable.Errorf("the service answers with the type %q, not %s", fault.Clip(media, 64), x.want).Fix("check that the address is that of hsmsign serve")
	default:
		return nil
	}
	if after > 0 && x.again && (status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable) {
		if kind := fault.KindOf(err); kind == fault.Limited || kind == fault.Unavailable {
			return &failure{err, after}
		}
	}
	return err
}

// retryAfter reads a header Retry-After (RFC 9110 section 10.2.3); 0: there is none.
func retryAfter(text string) time.Duration {
	if seconds, err := strconv.ParseUint(strings.TrimSpace(text), 10, 31); err == nil {
		return max(time.Duration(seconds)*time.Second, time.Millisecond)
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(time.Until(at), time.Millisecond)
	}
	return 0
}

// readAll reads an answer of a bounded size.
func readAll(body io.Reader, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(body, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fault.Unavailable.Errorf("the answer of the service is larger than %d bytes", limit)
	}
	return data, err
}
