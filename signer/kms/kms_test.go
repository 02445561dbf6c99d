package kms

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"hsmsign/internal/testkit"
	"hsmsign/signer"
)

var (
	errDown = fmt.Errorf("%w: down", signer.ErrUnavailable)
	errSDK  = errors.New("an error of the SDK")
)

// caller returns a Caller whose breaker opens late unless change says otherwise.
func caller(change func(*Policy)) *Caller {
	p := Policy{AttemptTimeout: time.Second, Timeout: 10 * time.Second, RetryDelay: 10 * time.Millisecond, BreakerThreshold: 1000}
	if change != nil {
		change(&p)
	}
	return New(p, func(err error) error { return fmt.Errorf("%w: classified: %w", signer.ErrBadKey, err) })
}

// failing returns a call that fails with the errors in turn, then returns its own number.
func failing(n *int64, errs ...error) func(context.Context) (int64, error) {
	return func(context.Context) (int64, error) {
		i := atomic.AddInt64(n, 1)
		if int(i) <= len(errs) {
			return 0, errs[i-1]
		}
		return i, nil
	}
}

func good(context.Context) (int, error) { return 1, nil }
func down(context.Context) (int, error) { return 0, errDown }
func hang(ctx context.Context) (int, error) {
	<-ctx.Done()
	return 0, ctx.Err()
}

// refusing refuses once its context has ended.
func refusing(ctx context.Context) (int, error) {
	<-ctx.Done()
	return 0, signer.ErrAuth
}

// bubble runs a test under a fake clock.
func bubble(t *testing.T, name string, test func(t *testing.T)) {
	t.Run(name, func(t *testing.T) { synctest.Test(t, test) })
}

func TestRetries(t *testing.T) {
	for _, tt := range []struct {
		name  string
		errs  []error
		calls int64
		want  error
	}{
		{"succeeds", nil, 1, nil},
		{"unavailable twice", []error{errDown, errDown}, 3, nil},
		{"throttled twice", []error{ErrThrottled, ErrThrottled}, 3, nil},
		{"refused", []error{signer.ErrAuth}, 1, signer.ErrAuth},
		{"refused by the SDK", []error{errSDK}, 1, signer.ErrBadKey},
		{"unavailable, then refused", []error{errDown, signer.ErrBadKey}, 2, signer.ErrBadKey},
	} {
		bubble(t, tt.name, func(t *testing.T) {
			var calls int64
			value, err := Do(t.Context(), caller(nil), failing(&calls, tt.errs...))
			if !errors.Is(err, tt.want) || calls != tt.calls || err == nil && value != tt.calls {
				t.Errorf("%d, %v after %d calls; want %v after %d", value, err, calls, tt.want, tt.calls)
			}
		})
	}
}

// TestRetryDelay: the delay doubles, and up to half of it is random.
func TestRetryDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var at []time.Duration
		_, err := Do(t.Context(), caller(func(p *Policy) { p.RetryDelay, p.Timeout = 4*time.Second, time.Minute }), func(context.Context) (int, error) {
			at = append(at, time.Since(began))
			return 0, errDown
		})
		for i := 1; i < len(at); i++ {
			full := min(4*time.Second<<(i-1), maxRetryDelay)
			if pause := at[i] - at[i-1]; pause < full/2 || pause > full {
				t.Errorf("delay %d is %v, want %v to %v", i, pause, full/2, full)
			}
		}
		if len(at) < 11 || !strings.Contains(err.Error(), fmt.Sprintf("given up at attempt %d", len(at))) {
			t.Errorf("%d attempts: %v", len(at), err)
		}
	})
}

// TestTimeLimits: a call ends in time whatever the store does, and the error names the limit that ended it.
func TestTimeLimits(t *testing.T) {
	for _, tt := range []struct {
		name     string
		call     func(context.Context) (int, error)
		deadline time.Duration // of the caller; 0: none
		cancel   time.Duration // by the caller; 0: never
		limit    time.Duration
		want     error // besides ErrUnavailable; nil: no error of a context
	}{
		{"hangs", hang, 0, 0, 10 * time.Second, nil},
		{"down", down, 0, 0, 10 * time.Second, nil},
		{"hangs, deadline", hang, 1500 * time.Millisecond, 0, 1500 * time.Millisecond, context.DeadlineExceeded},
		{"down, deadline", down, 1500 * time.Millisecond, 0, 1500 * time.Millisecond, context.DeadlineExceeded},
		{"hangs, canceled", hang, 0, 1500 * time.Millisecond, 1500 * time.Millisecond, context.Canceled},
		{"refused, canceled", refusing, 0, 500 * time.Millisecond, 500 * time.Millisecond, context.Canceled},
		{"down, canceled", down, 0, 1500 * time.Millisecond, 1500 * time.Millisecond, context.Canceled},
	} {
		bubble(t, tt.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if tt.deadline > 0 {
				ctx, cancel = context.WithTimeout(ctx, tt.deadline)
				defer cancel()
			}
			if tt.cancel > 0 {
				time.AfterFunc(tt.cancel, cancel)
			}
			began := time.Now()
			_, err := Do(ctx, caller(nil), tt.call)
			if took := time.Since(began); took > tt.limit {
				t.Errorf("took %v, want at most %v", took, tt.limit)
			}
			if !errors.Is(err, signer.ErrUnavailable) || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			ended := errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
			if ended != (tt.want != nil) {
				t.Errorf("got %v; the caller's context ended: %v", err, tt.want != nil)
			}
		})
	}
}

// TestAttemptTimeout: an attempt without an answer is given up and repeated, whatever the SDK makes of it. If the total
// time ends meanwhile, the error is that of the attempt before.
func TestAttemptTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		errs := []error{errSDK, nil}
		calls := 0
		value, err := Do(t.Context(), caller(nil), func(ctx context.Context) (int, error) {
			if calls++; calls == 1 {
				<-ctx.Done()
			}
			return calls, errs[calls-1]
		})
		if value != 2 || err != nil {
			t.Errorf("%d, %v", value, err)
		}
		whole := caller(func(p *Policy) { p.AttemptTimeout = p.Timeout })
		calls = 0
		_, err = Do(t.Context(), whole, func(ctx context.Context) (int, error) {
			if calls++; calls == 1 {
				return 0, errDown
			}
			return hang(ctx)
		})
		if !errors.Is(err, errDown) || calls != 2 {
			t.Errorf("after %d calls: %v; want %v", calls, err, errDown)
		}
		if _, err = Do(t.Context(), whole, hang); err == nil || !strings.Contains(err.Error(), "no answer in time") {
			t.Errorf("got %v", err)
		}
	})
}

// TestBreaker: it opens after consecutive failures, then calls fail at once and even before the queues, and one probe
// closes it again.
func TestBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := caller(func(p *Policy) { p.BreakerThreshold, p.BreakerCooldown, p.MaxRPS = 3, 20*time.Second, 10 })
		var calls int64
		_, err := Do(t.Context(), c, failing(&calls, errDown, errDown, errDown, errDown))
		if !errors.Is(err, errOpen) || !errors.Is(err, errDown) || calls != 3 {
			t.Errorf("after %d attempts: %v", calls, err)
		}
		began := time.Now()
		for range 100 {
			if _, err := Do(t.Context(), c, failing(&calls)); !errors.Is(err, errOpen) || !errors.Is(err, signer.ErrUnavailable) {
				t.Fatalf("got %v", err)
			}
		}
		if took := time.Since(began); took > 0 || calls != 3 {
			t.Errorf("100 calls took %v and %d attempts", took, calls-3)
		}
		time.Sleep(21 * time.Second)
		for range 2 {
			if value, err := Do(t.Context(), c, good); value != 1 || err != nil {
				t.Errorf("after the cooldown: %d, %v", value, err)
			}
		}
	})
}

// TestFailuresAtTheSameMoment: calls that fail together count as one failure. Calls without an answer count each.
func TestFailuresAtTheSameMoment(t *testing.T) {
	const callers = 20
	for _, tt := range []struct {
		name      string
		call      func(context.Context) (int, error)
		threshold uint32
		open      string // the last failure, which the error of an open breaker contains; "": the breaker is closed
	}{
		{"together", func(context.Context) (int, error) { time.Sleep(time.Second / 2); return 0, errDown }, 2, ""},
		{"together, threshold 1", func(context.Context) (int, error) { time.Sleep(time.Second / 2); return 0, errDown }, 1, "down"},
		{"no answer", hang, callers, "no answer"},
	} {
		bubble(t, tt.name, func(t *testing.T) {
			c := caller(func(p *Policy) { p.BreakerThreshold, p.BreakerCooldown = tt.threshold, time.Minute })
			var workers sync.WaitGroup
			for range callers {
				workers.Go(func() { _, _ = Once(t.Context(), c, tt.call) })
			}
			workers.Wait()
			_, err := Do(t.Context(), c, good)
			if errors.Is(err, errOpen) != (tt.open != "") || tt.open != "" && !strings.Contains(err.Error(), tt.open) {
				t.Errorf("afterwards: %v, want %q", err, tt.open)
			}
		})
	}
}

// lateTimer is a context whose deadline has passed before its timer fires.
type lateTimer struct{ context.Context }

func (lateTimer) Deadline() (time.Time, bool) { return time.Now().Add(-time.Nanosecond), true }

// TestNotCounted: refusals, throttling and callers that give up do not open the breaker, and a call that panics does
// not block the probe.
func TestNotCounted(t *testing.T) {
	for name, call := range map[string]func(cancel func()) error{
		"refused":   func(func()) error { return signer.ErrAuth },
		"throttled": func(func()) error { return ErrThrottled },
		"canceled":  func(cancel func()) error { cancel(); return errDown },
		"late":      func(func()) error { return errDown },
	} {
		bubble(t, name, func(t *testing.T) {
			c := caller(func(p *Policy) { p.BreakerThreshold = 2 })
			for range 5 {
				ctx, cancel := context.WithCancel(t.Context())
				if name == "late" {
					ctx = lateTimer{ctx}
				}
				_, err := Do(ctx, c, func(context.Context) (int, error) { return 0, call(cancel) })
				cancel()
				if err == nil || errors.Is(err, errOpen) {
					t.Fatal(err)
				}
			}
		})
	}
	bubble(t, "panic", func(t *testing.T) {
		c := caller(func(p *Policy) { p.BreakerThreshold, p.BreakerCooldown = 2, time.Minute })
		_, _ = Do(t.Context(), c, down)
		time.Sleep(61 * time.Second)
		func() {
			defer func() { _ = recover() }()
			_, _ = Do(t.Context(), c, func(context.Context) (int, error) { panic("in the SDK") })
		}()
		_, _ = Once(t.Context(), c, down)
		if _, err := Do(t.Context(), c, good); !errors.Is(err, errOpen) {
			t.Errorf("the panic closed the breaker: %v", err)
		}
		time.Sleep(61 * time.Second)
		testkit.Value(Do(t.Context(), c, good))(t)
	})
}

// TestOnce: the call is not repeated, may use the whole time, and passes the limits and the breaker.
func TestOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := caller(func(p *Policy) { p.MaxRPS, p.BreakerThreshold = 0.05, 1 })
		var calls int64
		_, err := Once(t.Context(), c, func(ctx context.Context) (int, error) {
			calls++
			time.Sleep(9 * time.Second)
			return 0, errors.Join(ctx.Err(), ErrThrottled)
		})
		if !errors.Is(err, ErrThrottled) || errors.Is(err, context.DeadlineExceeded) || calls != 1 {
			t.Errorf("%v after %d calls", err, calls)
		}
		if _, err := Once(t.Context(), c, failing(&calls)); !errors.Is(err, errNoTurn) || calls != 1 {
			t.Errorf("above max-rps: %v after %d calls", err, calls)
		}
		c = caller(func(p *Policy) { p.BreakerThreshold = 1 })
		_, _ = Once(t.Context(), c, down)
		if _, err := Once(t.Context(), c, failing(&calls)); !errors.Is(err, errOpen) || calls != 1 {
			t.Errorf("breaker open: %v after %d calls", err, calls)
		}
	})
}

func TestMaxConcurrent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := caller(func(p *Policy) { p.MaxConcurrent = 3 })
		began := time.Now()
		var workers sync.WaitGroup
		for range 30 {
			workers.Go(func() {
				if _, err := Do(t.Context(), c, func(context.Context) (int, error) { time.Sleep(time.Second / 2); return 0, nil }); err != nil {
					t.Error(err)
				}
			})
		}
		workers.Wait()
		if took := time.Since(began); took != 5*time.Second {
			t.Errorf("30 calls of 500 ms took %v, want 5 s with 3 in flight", took)
		}
	})
}

// TestNoTurn: a call that cannot begin in time fails, and does not queue again.
func TestNoTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := caller(func(p *Policy) { p.MaxConcurrent = 1 })
		go func() {
			_, _ = Once(t.Context(), c, func(context.Context) (int, error) { time.Sleep(9 * time.Second); return 0, nil })
		}()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := Do(ctx, c, good); !errors.Is(err, signer.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		c = caller(func(p *Policy) { p.MaxRPS = 0.05 })
		testkit.Value(Do(t.Context(), c, good))(t)
		began := time.Now()
		if _, err := Do(t.Context(), c, good); !errors.Is(err, errNoTurn) || time.Since(began) > 0 {
			t.Errorf("got %v after %v", err, time.Since(began))
		}
		time.Sleep(time.Minute) // the first call ends
	})
}

// TestMaxRPS: every attempt passes the limit, retries included.
func TestMaxRPS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := caller(func(p *Policy) { p.MaxRPS, p.RetryDelay = 100, time.Nanosecond }) // 10 of them may come at once
		began := time.Now()
		for range 20 {
			testkit.Value(Do(t.Context(), c, failing(new(int64), errDown)))(t)
		}
		if took := time.Since(began).Round(time.Millisecond); took != 300*time.Millisecond {
			t.Errorf("40 attempts at 100 per second took %v, want 300 ms", took)
		}
	})
}
