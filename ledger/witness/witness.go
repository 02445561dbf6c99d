// Package witness is a client of witnesses of transparency logs (C2SP tlog-witness), and verifies their cosignatures.
//
// A witness remembers the newest checkpoint of a log that it has cosigned, and cosigns a newer one only with a proof that the
// log has grown from it. So a log that was rolled back or forked gets no cosignature: the witness answers that it knows more
// entries (ErrAhead) or others (ErrForked).
//
// Nothing that a witness sends is trusted before it is verified: a cosignature counts if the pinned key verifies it. A Client is
// safe for concurrent use.
package witness

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"hsmsign/fault"
)

var (
	// ErrNotCosigned means that the witness did not answer, refused, or answered with something that is not a cosignature.
	ErrNotCosigned = fault.Unavailable.New("the witness did not cosign")
	// ErrForked means that the witness has cosigned a tree with other entries.
	ErrForked = fault.Defects.New("the witness has cosigned other entries")
)

// AheadError means that the witness has cosigned a larger tree than the one that was sent.
type AheadError struct {
	Size int64
}

func (e *AheadError) Error() string {
	return fmt.Sprintf("the witness has cosigned %d entries", e.Size)
}

const (
	// Timeout bounds one exchange with a witness.
	Timeout   = 10 * time.Second
	maxAnswer = 64 << 10 // an ML-DSA-44 cosignature has 3.3 KB
)

// Client sends checkpoints to one witness.
type Client struct {
	address  string
	verifier note.Verifier
	http     http.Client
}

// New returns the client of the witness at a URL prefix, which is https, or http on a loopback address; its cosignatures are
// verified with v. The error is of kind usage.
func New(prefix string, v note.Verifier) (*Client, error) {
	u, err := url.Parse(prefix)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fault.Usage.Errorf("the URL of a witness %q: it is not an absolute URL without user, query and fragment", fault.Clip(prefix, 128)).
			Fix("write https://HOST/PATH")
	}
	ip := net.ParseIP(u.Hostname())
	if u.Scheme != "https" && (u.Scheme != "http" || u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback())) {
		return nil, fault.Usage.Errorf("the URL of a witness %q: only https is used, and http on loopback", fault.Clip(prefix, 128)).Fix("write https://HOST/PATH")
	}
	return &Client{
		address: strings.TrimRight(u.String(), "/") + "/add-checkpoint", verifier: v,
		http: http.Client{Timeout: Timeout, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
	}, nil
}

// Checkpoint is what the witness is asked to cosign.
type Checkpoint struct {
	Size   int64
	Signed []byte // the signed note
	// Prove returns the proof that the tree has grown from its first old entries.
	Prove func(ctx context.Context, old int64) (tlog.TreeProof, error)
}

// Cosign sends a checkpoint and returns the cosignature. old is the size that the witness is believed to have cosigned last; if
// it says another one, not larger than the checkpoint, the checkpoint is sent once more. Errors wrap ErrNotCosigned, ErrForked,
// *AheadError, or are those of Prove.
func (c *Client) Cosign(ctx context.Context, old int64, cp Checkpoint) (Cosignature, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*Timeout)
	defer cancel()
	if old < 0 || old > cp.Size {
		old = 0 // the witness answers with its size
	}
	said, err := c.try(ctx, &old, cp)
	if err == nil && said == nil {
		if said, err = c.try(ctx, &old, cp); err == nil && said == nil {
			err = notCosigned("it said that it has %d entries when it was sent a proof from the size that it said before", old)
		}
	}
	if err != nil {
		return Cosignature{}, err
	}
	return *said, nil
}

// notCosigned returns an error that wraps ErrNotCosigned.
func notCosigned(format string, args ...any) error {
	return fault.Errorf("%w: %w", ErrNotCosigned, fmt.Errorf(format, args...))
}

// try sends the checkpoint with a proof from the size old. If the witness answers with another size, try returns neither a
// cosignature nor an error, and old is that size.
func (c *Client) try(ctx context.Context, old *int64, cp Checkpoint) (*Cosignature, error) {
	var body bytes.Buffer
	fmt.Fprintf(&body, "old %d\n", *old)
	if *old > 0 && *old < cp.Size {
		proof, err := cp.Prove(ctx, *old)
		if err != nil {
			return nil, err
		}
		for _, hash := range proof {
			fmt.Fprintln(&body, base64.StdEncoding.EncodeToString(hash[:]))
		}
	}
	body.WriteByte('\n')
	body.Write(cp.Signed)
	status, kind, answer, err := c.post(ctx, body.Bytes())
	if err != nil {
		return nil, notCosigned("%w", err)
	}
	switch status {
	case http.StatusOK:
		text, _, _ := strings.Cut(string(cp.Signed), "\n\n")
		found, ok := find(text+"\n", string(answer), c.verifier)
		if !ok {
			return nil, notCosigned("its answer has no valid cosignature of the key %s", KeyID(c.verifier))
		}
		return &found, nil
	case http.StatusConflict:
		return nil, conflict(old, cp.Size, kind, answer)
	case http.StatusUnprocessableEntity:
		return nil, fmt.Errorf("%w: its first %d entries are not those of this tree (422)", ErrForked, *old)
	}
	return nil, notCosigned("%s", refusal(status, answer))
}

// conflict reads the answer 409: the size that the witness has cosigned last. It returns nil if that size can be tried.
func conflict(old *int64, size int64, kind string, answer []byte) error {
	media, _, err := mime.ParseMediaType(kind)
	said, isSize := strings.CutSuffix(string(answer), "\n")
	n, numErr := strconv.ParseInt(said, 10, 64)
	isSize = isSize && err == nil && media == "text/x.tlog.size" && numErr == nil && n >= 0 && strconv.FormatInt(n, 10) == said
	switch {
	case isSize && n > size:
		return &AheadError{Size: n}
	case *old == size && (!isSize || n == size):
		return fmt.Errorf("%w: its first %d entries are not those of this tree (409)", ErrForked, size)
	case !isSize:
		return notCosigned("it answered 409 without the size of its tree")
	case n == *old:
		return notCosigned("it answered 409 with the size %d, which was sent", n)
	}
	*old = n
	return nil
}

// refusal describes an answer that is not one of the protocol's, or a refusal.
func refusal(status int, answer []byte) string {
	why := map[int]string{
		http.StatusBadRequest: "it cannot read the request", http.StatusForbidden: "it does not trust the ledger's key: give its operator the verifier key",
		http.StatusNotFound: "it does not know the ledger's origin: ask its operator to add it",
	}[status]
	if why == "" {
		why = http.StatusText(status)
	}
	text := strings.TrimSpace(fault.Clip(string(answer), 128)) // Clip removes control characters
	if text != "" {
		text = fmt.Sprintf(": %q", text)
	}
	return fmt.Sprintf("status %d, %s%s", status, why, text)
}

// post sends a body and returns status, content type and the bounded answer.
func (c *Client) post(ctx context.Context, body []byte) (status int, kind string, answer []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.address, bytes.NewReader(body))
	if err != nil {
		return 0, "", nil, err
	}
	req.Header.Set("Content-Type", "text/plain; charset=utf-8")
	req.Header.Set("User-Agent", "hsmsign")
	resp, err := c.http.Do(req)
	if err != nil {
		if inner, ok := errors.AsType[*url.Error](err); ok {
			err = inner.Err // the URL is in the configuration
		}
		return 0, "", nil, err
	}
	defer func() { _ = resp.Body.Close() }() // it was read
	answer, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err == nil && len(answer) > maxAnswer {
		err = fmt.Errorf("its answer is larger than %d bytes", maxAnswer)
	}
	return resp.StatusCode, resp.Header.Get("Content-Type"), answer, err
}
