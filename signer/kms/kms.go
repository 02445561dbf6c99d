// Package kms is what the backends of network key stores share: time limits, rate limits, retries, a circuit breaker,
// and the Signer around the store's own request.
//
// A backend has one Caller for each endpoint and sends every request with Do, or with Once if the request must not be
// repeated. Its classify function maps the errors of its SDK to the families of package signer. Only
// signer.ErrUnavailable is retried. A store that refuses a request because of its quota is alive: such an error wraps
// ErrThrottled, which is retried and does not open the breaker, so that a batch waits for its quota instead of failing.
// The SDK's own retries must be off: this package decides alone, and every request passes the limits.
//
// Key is the Signer of an open key. Policy.WithReference, Attributes and Loopback are the part of a key reference that
// all network stores have in common. Transport and Roots are for stores that speak HTTP.
//
// Everything here is safe for concurrent use.
package kms

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/sony/gobreaker/v2"
	"golang.org/x/time/rate"

	"hsmsign/fault"
	"hsmsign/signer"
)

// ErrThrottled is a signer.ErrUnavailable: the store refused a request because of its quota.
var ErrThrottled = fmt.Errorf("%w: throttled", signer.ErrUnavailable)

// maxRetryDelay limits the doubling of Policy.RetryDelay.
const maxRetryDelay = 5 * time.Second

// Caller makes calls under one Policy. All its users share its limits and its breaker.
type Caller struct {
	policy   Policy
	classify func(error) error
	limiter  *rate.Limiter // nil: unlimited
	slots    chan struct{} // one for each attempt in flight
	breaker  *gobreaker.TwoStepCircuitBreaker[any]

	mu          sync.Mutex
	lastFailure error // the failure that the breaker counted last
	failedAt    time.Time
}

// New returns a Caller. classify maps an error of the SDK to a family; it is not called for errors that have one.
func New(p Policy, classify func(error) error) *Caller {
	p = p.WithDefaults()
	c := &Caller{policy: p, classify: classify, slots: make(chan struct{}, p.MaxConcurrent)}
	if p.MaxRPS > 0 {
		c.limiter = rate.NewLimiter(rate.Limit(p.MaxRPS), max(1, int(p.MaxRPS/10)))
	}
	c.breaker = gobreaker.NewTwoStepCircuitBreaker[any](gobreaker.Settings{
		Timeout:     p.BreakerCooldown,
		ReadyToTrip: func(n gobreaker.Counts) bool { return n.ConsecutiveFailures >= p.BreakerThreshold },
		IsExcluded:  func(err error) bool { return errors.Is(err, errNotCounted) },
	})
	return c
}

// Do repeats call until it succeeds, fails with an error that is not retried, or Policy.Timeout is over. Errors wrap a
// family. If ctx ends first, the error also wraps ctx.Err(). While the breaker is open, Do fails at once with
// signer.ErrUnavailable.
func Do[T any](ctx context.Context, c *Caller, call func(ctx context.Context) (T, error)) (T, error) {
	var zero T
	total, cancel := context.WithTimeout(ctx, c.policy.Timeout)
	defer cancel()
	delay := c.policy.RetryDelay
	var previous error
	for attempts := 1; ; attempts++ {
		value, err := attempt(ctx, total, c, c.policy.AttemptTimeout, call)
		if err == nil {
			return value, nil
		}
		if ctx.Err() != nil {
			return zero, fmt.Errorf("%w: %w", signer.ErrUnavailable, ctx.Err())
		}
		if !errors.Is(err, signer.ErrUnavailable) || errors.Is(err, errOpen) {
			return zero, err
		}
		if previous != nil && over(total) {
			err = previous // this attempt was cut off; the previous error says more
		}
		previous = err
		// Half of the delay is random, so that many callers do not return at the same moment.
		pause := delay/2 + rand.N(delay/2+1) // #nosec G404 -- jitter is not secret
		if errors.Is(err, errNoTurn) || !sleep(total, pause) {
			return zero, fmt.Errorf("given up at attempt %d: %w", attempts, withDeadline(ctx, total, err))
		}
		delay = min(2*delay, maxRetryDelay)
	}
}

// Once is Do for a call that must not be repeated. Its one attempt may use the whole Policy.Timeout.
func Once[T any](ctx context.Context, c *Caller, call func(ctx context.Context) (T, error)) (T, error) {
	total, cancel := context.WithTimeout(ctx, c.policy.Timeout)
	defer cancel()
	return attempt(ctx, total, c, c.policy.Timeout, call)
}

// sleep waits and returns true. It returns false, at once, if ctx would end first.
func sleep(ctx context.Context, pause time.Duration) bool {
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= pause {
		return false
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(pause):
		return true
	}
}

// withDeadline returns err. If the time limit was that of the caller's ctx and not Policy.Timeout, it also wraps what
// ends ctx.
func withDeadline(ctx, total context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", ctx.Err(), err)
	}
	own, ok := ctx.Deadline()
	if deadline, _ := total.Deadline(); ok && own.Equal(deadline) {
		return fmt.Errorf("%w: %w", context.DeadlineExceeded, err)
	}
	return err
}

var (
	// errOpen: the breaker is open. It follows the error that the store failed with last.
	errOpen = errors.New("it failed repeatedly, so no request is sent for a moment")
	// errNoTurn: under the limits the attempt could not begin in time.
	errNoTurn = fmt.Errorf("%w: no attempt could begin in time", signer.ErrUnavailable)
	// errNotCounted tells the breaker to ignore an attempt.
	errNotCounted = errors.New("not counted")
)

// attempt makes one call when the limits and the breaker allow it. ctx is that of the caller; total ends with
// Policy.Timeout.
func attempt[T any](ctx, total context.Context, c *Caller, timeout time.Duration, call func(ctx context.Context) (T, error)) (T, error) {
	var zero T
	// Before the queues: while the store is down, no caller waits for a turn.
	if c.breaker.State() == gobreaker.StateOpen {
		return zero, c.openError()
	}
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-total.Done():
		return zero, fmt.Errorf("%w: %d calls are in flight", errNoTurn, cap(c.slots))
	}
	if c.limiter != nil {
		if err := c.limiter.Wait(total); err != nil {
			return zero, fmt.Errorf("%w: the limit is %v calls per second", errNoTurn, c.limiter.Limit())
		}
	}
	done, err := c.breaker.Allow()
	if err != nil {
		return zero, c.openError()
	}
	// A call that panics is not counted either: it must not block the one slot of a probe.
	outcome := errNotCounted
	defer func() { done(outcome) }()
	limited, cancel := context.WithTimeout(total, timeout)
	defer cancel()
	began := time.Now()
	value, err := call(limited)
	if err != nil {
		err = c.inFamily(limited, err)
	}
	switch {
	case !errors.Is(err, signer.ErrUnavailable) || errors.Is(err, ErrThrottled):
		outcome = nil // a refusal is an answer: the store is alive
	case !over(ctx) && c.counts(err, began, over(limited)): // a caller that gave up says nothing about the store
		outcome = err
	}
	return value, err
}

// inFamily returns the error of a call with its family.
func (c *Caller) inFamily(ctx context.Context, err error) error {
	if _, ok := errors.AsType[*fault.Failure](err); ok {
		return err
	}
	if ctx.Err() != nil { // whatever the SDK reports then is a consequence
		return fmt.Errorf("%w: no answer in time", signer.ErrUnavailable)
	}
	return c.classify(err)
}

// counts reports whether the breaker counts a failure. If a shared connection breaks, all calls in flight fail at the
// same moment; the next attempts may succeed, so those failures count once. A call without an answer always counts.
func (c *Caller) counts(err error, began time.Time, noAnswer bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !noAnswer && c.failedAt.After(began) {
		return false
	}
	c.lastFailure, c.failedAt = err, time.Now()
	return true
}

// openError is the error of a call while the breaker is open.
func (c *Caller) openError() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return fmt.Errorf("%w; %w", c.lastFailure, errOpen)
}

// over reports whether ctx has ended. It also compares the clock: SDK and store check the deadline themselves and may
// be earlier than the timer of ctx.
func over(ctx context.Context) bool {
	deadline, ok := ctx.Deadline()
	return ctx.Err() != nil || ok && !time.Now().Before(deadline)
}

// Policy limits the calls to a store. A field that is not above zero means its default.
type Policy struct {
	AttemptTimeout   time.Duration // of one attempt; 5 s
	Timeout          time.Duration // of one call with its retries and delays; 20 s
	MaxRPS           float64       // attempts per second; unlimited. A quota is shared by account and region, so there is no default
	MaxConcurrent    int           // attempts in flight; 64
	RetryDelay       time.Duration // before the first retry, doubled for each further one up to 5 s, with jitter; 100 ms
	BreakerThreshold uint32        // consecutive attempts that find the store unavailable and open the breaker; 10
	BreakerCooldown  time.Duration // how long the breaker stays open before one attempt probes the store; 5 s
}

// WithDefaults returns the policy with every default filled in.
func (p Policy) WithDefaults() Policy {
	p.AttemptTimeout = cmp.Or(max(p.AttemptTimeout, 0), 5*time.Second)
	p.Timeout = cmp.Or(max(p.Timeout, 0), 20*time.Second)
	p.MaxConcurrent = cmp.Or(max(p.MaxConcurrent, 0), 64)
	p.RetryDelay = cmp.Or(max(p.RetryDelay, 0), 100*time.Millisecond)
	p.BreakerThreshold = cmp.Or(p.BreakerThreshold, 10)
	p.BreakerCooldown = cmp.Or(max(p.BreakerCooldown, 0), 5*time.Second)
	return p
}

// Impatient returns the policy of a diagnosis, which ends after four failures in a row: within 3 s, if connections are
// refused. A store that is slow still has Timeout.
func (p Policy) Impatient() Policy {
	p.BreakerThreshold = 4
	return p
}

// InFlight returns how many callers can be served at the same time. With more callers the last one would wait under
// MaxRPS until Timeout is over. Half of Timeout is reserved for the calls themselves.
func (p Policy) InFlight() int {
	p = p.WithDefaults()
	if p.MaxRPS > 0 {
		return max(1, int(min(float64(p.MaxConcurrent), p.MaxRPS*p.Timeout.Seconds()/2)))
	}
	return p.MaxConcurrent
}

// Attributes returns the names of the query attributes that a backend accepts: its own, and those that WithReference
// reads.
func Attributes(own ...string) []string {
	return append(own, "max-rps", "max-concurrent", "timeout")
}

// WithReference returns the policy with the values that the reference sets: max-rps (0.01 to 100000), max-concurrent
// (1 to the given maximum) and timeout (10ms to 10m). The error wraps signer.ErrReference.
func (p Policy) WithReference(ref signer.Ref, maxConcurrent int) (Policy, error) {
	err := cmp.Or(
		set(&p.MaxRPS, ref, "max-rps", parseFloat, 0.01, 100_000, "a number from 0.01 to 100000"),
		set(&p.MaxConcurrent, ref, "max-concurrent", strconv.Atoi, 1, maxConcurrent, fmt.Sprintf("a number from 1 to %d", maxConcurrent)),
		set(&p.Timeout, ref, "timeout", time.ParseDuration, 10*time.Millisecond, 10*time.Minute, "a duration from 10ms to 10m, such as 20s"),
	)
	return p, err
}

// set sets a field to the value of an attribute, if the reference has it.
func set[T cmp.Ordered](field *T, ref signer.Ref, name string, parse func(string) (T, error), low, high T, form string) error {
	text, ok := ref.Query(name)
	if !ok {
		return nil
	}
	value, err := parse(text)
	if err != nil || !(value >= low && value <= high) { //nolint:staticcheck // written so that NaN is refused
		return fmt.Errorf("%w: %s is %q; it must be %s", signer.ErrReference, name, text, form)
	}
	*field = value
	return nil
}

func parseFloat(text string) (float64, error) { return strconv.ParseFloat(text, 64) }

// Loopback reports whether host is a loopback address. Only such an endpoint may be used in plain text. A name is never
// loopback: it is not resolved here.
func Loopback(host string) bool { return net.ParseIP(host).IsLoopback() }
