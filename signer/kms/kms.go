// Package remote is what a backend needs around the calls of a network key store: bounds in time, number and rate,
// retries of what may be retried, and a breaker that fails fast while the store is down.
//
//	caller := kms.New(kms.Policy{MaxConcurrent: 64})
//	sig, err := kms.Do(ctx, caller, func(ctx context.Context) ([]byte, error) { return client.Sign(ctx, ...) })
//
// The backend's function maps its SDK's errors into the families of package signer; only ErrUnavailable is retried.
// A store that answers that it is asked too often is alive: wrap ErrThrottled, which is retried as well and leaves
// the breaker closed, so that a batch waits for its quota and does not fail. The SDK's own retries must be off: one
// place decides, and every request passes the limits. A Caller is safe for concurrent use.
package kms

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/sony/gobreaker/v2"
	"golang.org/x/time/rate"

	"hsmsign/signer"
)

// ErrThrottled is the ErrUnavailable of a store that is asked too often.
var ErrThrottled = fmt.Errorf("%w: throttled", signer.ErrUnavailable)

// Policy bounds the calls. A field that is not above zero means its default.
type Policy struct {
	Attempt       time.Duration // of one attempt; 5 s
	Total         time.Duration // of a call with its retries and waits; 20 s
	MaxRPS        float64       // attempts a second; no limit. Quotas are shared by account and region: a setting, not a constant
	MaxConcurrent int           // attempts under way; 64
	Wait          time.Duration // before the first retry, doubled for each further one, with jitter; 100 ms
	Trip          uint32        // attempts in a row that find the store unavailable and open the breaker; 10
	Recover       time.Duration // how long the breaker stays open before one attempt probes; 5 s
}

// WithDefaults is the policy with every default filled in.
func (p Policy) WithDefaults() Policy {
	p.Attempt = orDefault(p.Attempt, 5*time.Second)
	p.Total = orDefault(p.Total, 20*time.Second)
	p.MaxConcurrent = orDefault(p.MaxConcurrent, 64)
	p.Wait = orDefault(p.Wait, 100*time.Millisecond)
	p.Trip = orDefault(p.Trip, 10)
	p.Recover = orDefault(p.Recover, 5*time.Second)
	return p
}

// InFlight is how many callers at once are served in time: with more the last would wait for their turn under MaxRPS
// until Total is over. Half of it is left for the calls themselves.
func (p Policy) InFlight() int {
	p = p.WithDefaults()
	if p.MaxRPS > 0 {
		return max(1, int(min(float64(p.MaxConcurrent), p.MaxRPS*p.Total.Seconds()/2)))
	}
	return p.MaxConcurrent
}

func orDefault[T cmp.Ordered](value, standard T) T {
	var zero T
	if value <= zero {
		return standard
	}
	return value
}

// maxWait bounds the doubling.
const maxWait = 5 * time.Second

// Caller makes calls under one Policy. Its breaker and its limits are shared by all that use it.
type Caller struct {
	policy  Policy
	limiter *rate.Limiter // nil: no limit
	slots   chan struct{}
	breaker *gobreaker.TwoStepCircuitBreaker[any]

	mu     sync.Mutex
	last   error     // the failure that was last counted against the store
	lastAt time.Time // when
}

// New makes a Caller.
func New(p Policy) *Caller {
	p = p.WithDefaults()
	c := &Caller{policy: p, slots: make(chan struct{}, p.MaxConcurrent)}
	if p.MaxRPS > 0 {
		c.limiter = rate.NewLimiter(rate.Limit(p.MaxRPS), max(1, int(p.MaxRPS/10)))
	}
	c.breaker = gobreaker.NewTwoStepCircuitBreaker[any](gobreaker.Settings{
		Timeout:     p.Recover,
		ReadyToTrip: func(n gobreaker.Counts) bool { return n.ConsecutiveFailures >= p.Trip },
		IsExcluded:  func(err error) bool { return errors.Is(err, errNoEvidence) },
	})
	return c
}

// Do calls until the call succeeds, fails for good, or time is up. Errors wrap a family; when ctx ends first also
// ctx.Err(); while the breaker is open ErrUnavailable at once.
func Do[T any](ctx context.Context, c *Caller, call func(ctx context.Context) (T, error)) (T, error) {
	var zero T
	total, cancel := context.WithTimeout(ctx, c.policy.Total)
	defer cancel()
	wait := c.policy.Wait
	var before error
	for attempts := 1; ; attempts++ {
		value, err := attempt(ctx, total, c, c.policy.Attempt, call)
		if err == nil {
			return value, nil
		}
		if ctx.Err() != nil {
			return zero, fmt.Errorf("%w: %w", signer.ErrUnavailable, ctx.Err())
		}
		if !errors.Is(err, signer.ErrUnavailable) || errors.Is(err, errOpen) {
			return zero, err
		}
		if before != nil && over(total) {
			err = before // an attempt that was cut off says less than the one that failed
		}
		before = err
		// Half of the wait is fixed and half is chance, so that many callers do not come back at one time.
		pause := wait/2 + rand.N(wait/2+1) // #nosec G404 -- jitter is no secret
		if errors.Is(err, errNoTurn) || !sleep(total, pause) {
			return zero, fmt.Errorf("given up at attempt %d: %w", attempts, lateFor(ctx, total, err))
		}
		wait = min(2*wait, maxWait)
	}
}

// Once is Do for a call that must not be made twice. It has the whole time for one attempt.
func Once[T any](ctx context.Context, c *Caller, call func(ctx context.Context) (T, error)) (T, error) {
	total, cancel := context.WithTimeout(ctx, c.policy.Total)
	defer cancel()
	return attempt(ctx, total, c, c.policy.Total, call)
}

// sleep waits, or says at once that ctx would end before.
func sleep(ctx context.Context, pause time.Duration) bool {
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= pause {
		return false
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// lateFor says whose time has run out: the error also wraps what ends ctx when that is the caller's doing, and not
// the policy's.
func lateFor(ctx, total context.Context, err error) error {
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
	// errOpen is the answer of the breaker, after what the store last failed with.
	errOpen = errors.New("it failed again and again, so it is left alone for a moment")
	// errNoTurn: the limits would not let the attempt begin in time.
	errNoTurn = fmt.Errorf("%w: no attempt was free in time", signer.ErrUnavailable)
	// errNoEvidence tells the breaker to count an attempt neither for the store nor against it.
	errNoEvidence = errors.New("no evidence")
)

// attempt makes one call within total, when the limits and the breaker let it. ctx is the caller's own.
func attempt[T any](ctx, total context.Context, c *Caller, most time.Duration, call func(ctx context.Context) (T, error)) (T, error) {
	var zero T
	// Before the queues: while the store is down nobody shall wait for a turn to be told so.
	if c.breaker.State() == gobreaker.StateOpen {
		return zero, c.open()
	}
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-total.Done():
		return zero, fmt.Errorf("%w: %d calls are under way", errNoTurn, cap(c.slots))
	}
	if c.limiter != nil {
		if err := c.limiter.Wait(total); err != nil {
			return zero, fmt.Errorf("%w: the limit is %v calls a second", errNoTurn, c.limiter.Limit())
		}
	}
	done, err := c.breaker.Allow()
	if err != nil {
		return zero, c.open()
	}
	// It counts for nothing unless it gets to its end: a call that panics must not keep the one place of a probe.
	evidence := errNoEvidence
	defer func() { done(evidence) }()
	bounded, cancel := context.WithTimeout(total, most)
	defer cancel()
	began := time.Now()
	value, err := call(bounded)
	if err != nil && bounded.Err() != nil && !errors.Is(err, signer.ErrUnavailable) {
		err = fmt.Errorf("%w: %w", signer.ErrUnavailable, err)
	}
	switch {
	case !errors.Is(err, signer.ErrUnavailable) || errors.Is(err, ErrThrottled):
		evidence = nil // a refusal is an answer: the store is alive
	case !over(ctx) && c.counts(err, began, over(bounded)): // a caller who lost patience says nothing about the store
		evidence = err
	}
	return value, err
}

// counts says whether a failure is one more against the store. When a connection that all calls share breaks, or the
// way to the store, whatever is under way fails in one moment, and would open the breaker though the next attempts may
// be well; so that counts once. Silence is not of one moment.
func (c *Caller) counts(err error, began time.Time, silence bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !silence && c.lastAt.After(began) {
		return false
	}
	c.last, c.lastAt = err, time.Now()
	return true
}

// open is what is said while the breaker is open.
func (c *Caller) open() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return fmt.Errorf("%w; %w", c.last, errOpen)
}

// over says whether ctx has ended. The clock is asked as well: SDK and store look at the deadline themselves, and may
// be ahead of ctx's timer.
func over(ctx context.Context) bool {
	deadline, ok := ctx.Deadline()
	return ctx.Err() != nil || ok && !time.Now().Before(deadline)
}
