package signer

import (
	"context"
	"strings"
	"sync"
	"time"
)

// maxAttempts is how many attempts an Operation keeps, maxID the maximum length of an id.
const (
	maxAttempts = 64
	maxID       = 128
)

// Operation connects one signature with the log of its key store, so that each can be found in the other. The caller puts it
// into the context of a signature with WithOperation. A backend whose service has a log reads it with OperationOf: it sends
// Reason, if the service records one, and reports each attempt. Other backends ignore it. A Signer in a worker process
// (package isolate) does not get it. Safe for concurrent use.
type Operation struct {
	// Reason is what the caller calls the signature: printable ASCII, such as the id of a request.
	Reason string

	mu       sync.Mutex
	attempts []Attempt
}

// Attempt is one request that was sent to a key store.
type Attempt struct {
	ID   string    // of the service; "" if it has none or did not answer
	Time time.Time // when it began
	Err  error     // nil: the service returned a signature
}

type operationKey struct{}

// WithOperation returns a context for one signature.
func WithOperation(ctx context.Context, o *Operation) context.Context {
	return context.WithValue(ctx, operationKey{}, o)
}

// OperationOf returns the operation of a context; nil if it has none. The methods accept nil.
func OperationOf(ctx context.Context) *Operation {
	o, _ := ctx.Value(operationKey{}).(*Operation)
	return o
}

// Attempted reports an attempt. An id that is long or not printable is dropped: it comes from the network.
func (o *Operation) Attempted(id string, began time.Time, err error) {
	if o == nil {
		return
	}
	if len(id) > maxID || strings.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r > '~' }) {
		id = ""
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.attempts) < maxAttempts {
		o.attempts = append(o.attempts, Attempt{id, began, err})
	}
}

// Attempts returns the attempts so far, the oldest first.
func (o *Operation) Attempts() []Attempt {
	if o == nil {
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]Attempt{}, o.attempts...)
}
