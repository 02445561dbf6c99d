package kms

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"hsmsign/signer"
)

var errDown = errors.Join(signer.ErrUnavailable, errors.New("down"))

// quick keeps the tests short.
func quick() Policy {
	return Policy{Attempt: 50 * time.Millisecond, Total: 500 * time.Millisecond, Wait: time.Millisecond, Trip: 1000, Recover: 50 * time.Millisecond}
}

// failing gives these errors in turn, and the number of the call after them.
func failing(n *atomic.Int64, errs ...error) func(context.Context) (int64, error) {
	return func(context.Context) (int64, error) {
		i := n.Add(1)
		if int(i) <= len(errs) {
			return 0, errs[i-1]
		}
		return i, nil
	}
}

func TestRetries(t *testing.T) {
	for _, tt := range []struct {
		name  string
		errs  []error
		calls int64
		want  error
	}{
		{"at once", nil, 1, nil},
		{"unavailable twice", []error{errDown, errDown}, 3, nil},
		{"throttled twice", []error{ErrThrottled, ErrThrottled}, 3, nil},
		{"refused", []error{signer.ErrAuth}, 1, signer.ErrAuth},
		{"unavailable, then refused", []error{errDown, signer.ErrBadKey}, 2, signer.ErrBadKey},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var calls atomic.Int64
			value, err := Do(t.Context(), New(quick()), failing(&calls, tt.errs...))
			if !errors.Is(err, tt.want) || calls.Load() != tt.calls || err == nil && value != tt.calls {
				t.Errorf("%d, %v after %d calls; want %v after %d", value, err, calls.Load(), tt.want, tt.calls)
			}
		})
	}
}

// TestEnds: whatever the store does a call ends in time, and the error says whose time it was.
func TestEnds(t *testing.T) {
	hang := func(ctx context.Context) (int, error) { <-ctx.Done(); return 0, ctx.Err() }
	down := func(context.Context) (int, error) { return 0, errDown }
	for _, tt := range []struct {
		name string
		call func(context.Context) (int, error)
		own  time.Duration // deadline of the caller; 0: none
		end  time.Duration // cancelled by the caller; 0: not
		most time.Duration
		want error // besides ErrUnavailable; nil: no error of a context
	}{
		{"hangs", hang, 0, 0, 600 * time.Millisecond, nil},
		{"down", down, 0, 0, 600 * time.Millisecond, nil},
		{"hangs, deadline", hang, 120 * time.Millisecond, 0, 200 * time.Millisecond, context.DeadlineExceeded},
		{"down, deadline", down, 120 * time.Millisecond, 0, 200 * time.Millisecond, context.DeadlineExceeded},
		{"hangs, cancelled", hang, 0, 120 * time.Millisecond, 200 * time.Millisecond, context.Canceled},
		{"down, cancelled", down, 0, 120 * time.Millisecond, 200 * time.Millisecond, context.Canceled},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if tt.own > 0 {
				ctx, cancel = context.WithTimeout(ctx, tt.own)
				defer cancel()
			}
			if tt.end > 0 {
				time.AfterFunc(tt.end, cancel)
			}
			began := time.Now()
			_, err := Do(ctx, New(quick()), tt.call)
			if took := time.Since(began); took > tt.most+100*time.Millisecond {
				t.Errorf("took %v", took)
			}
			if !errors.Is(err, signer.ErrUnavailable) || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

// TestCutOff: what the last attempt could not say before time was up, the one before has said.
func TestCutOff(t *testing.T) {
	policy := quick()
	policy.Attempt = policy.Total
	calls := 0
	_, err := Do(t.Context(), New(policy), func(ctx context.Context) (int, error) {
		if calls++; calls == 1 {
			return 0, errDown
		}
		<-ctx.Done()
		return 0, fmt.Errorf("%w: silence: %w", signer.ErrUnavailable, ctx.Err())
	})
	if !errors.Is(err, errDown) || calls != 2 {
		t.Errorf("after %d calls: %v; want %v", calls, err, errDown)
	}
}

// TestAttempts: an attempt that hangs makes room for the next one.
func TestAttempts(t *testing.T) {
	var calls atomic.Int64
	value, err := Do(t.Context(), New(quick()), func(ctx context.Context) (string, error) {
		if calls.Add(1) == 1 {
			<-ctx.Done()
			return "", errors.New("an SDK's own error")
		}
		return "signed", nil
	})
	if value != "signed" || err != nil || calls.Load() != 2 {
		t.Errorf("%q, %v after %d calls", value, err, calls.Load())
	}
}

func TestBreaker(t *testing.T) {
	policy := quick()
	policy.Trip, policy.Total = 3, 20*time.Millisecond
	c := New(policy)
	var calls atomic.Int64
	down := func(context.Context) (int, error) { calls.Add(1); return 0, errDown }
	for range 3 {
		_, _ = Do(t.Context(), c, down)
	}
	tripped := calls.Load()
	began := time.Now()
	for range 100 {
		if _, err := Do(t.Context(), c, down); !errors.Is(err, errOpen) {
			t.Fatalf("got %v", err)
		}
	}
	if took := time.Since(began); took > 50*time.Millisecond || calls.Load() != tripped || tripped != 3 {
		t.Errorf("100 calls took %v; %d attempts before and %d after", took, tripped, calls.Load())
	}
	time.Sleep(policy.Recover + 20*time.Millisecond)
	if value, err := Do(t.Context(), c, failing(new(atomic.Int64))); value != 1 || err != nil {
		t.Errorf("the probe: %d, %v", value, err)
	}
	if value, err := Do(t.Context(), c, failing(new(atomic.Int64))); value != 1 || err != nil {
		t.Errorf("after the probe: %d, %v", value, err)
	}
}

// TestOneMoment: calls that fail in one moment are one failure, those that fail one after the other and those that get
// no answer are as many; and whoever is told that the breaker is open is told what the store failed with.
func TestOneMoment(t *testing.T) {
	const callers = 20
	for _, tt := range []struct {
		name    string
		fail    func(ctx context.Context, all *sync.WaitGroup) error
		trip    uint32
		refused bool   // by the breaker, afterwards
		told    string // then
	}{
		{"one moment", func(_ context.Context, all *sync.WaitGroup) error { all.Done(); all.Wait(); return errDown }, 2, false, ""},
		{"one moment, one is enough", func(_ context.Context, all *sync.WaitGroup) error { all.Done(); all.Wait(); return errDown }, 1, true, "down"},
		{"silence", func(ctx context.Context, _ *sync.WaitGroup) error { <-ctx.Done(); return ctx.Err() }, callers, true, "deadline"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			policy := quick()
			policy.Trip, policy.Recover, policy.Total = tt.trip, time.Minute, 200*time.Millisecond
			c := New(policy)
			var all, workers sync.WaitGroup
			all.Add(callers)
			for range callers {
				workers.Go(func() {
					_, _ = Once(t.Context(), c, func(ctx context.Context) (int, error) { return 0, tt.fail(ctx, &all) })
				})
			}
			workers.Wait()
			_, err := Do(t.Context(), c, failing(new(atomic.Int64)))
			if errors.Is(err, errOpen) != tt.refused {
				t.Errorf("afterwards: %v", err)
			}
			if tt.refused && (!errors.Is(err, signer.ErrUnavailable) || !strings.Contains(err.Error(), tt.told)) {
				t.Errorf("%v does not tell %q", err, tt.told)
			}
		})
	}
}

// lateTimer is a context whose deadline has passed while its timer has not fired.
type lateTimer struct{ context.Context }

func (lateTimer) Deadline() (time.Time, bool) { return time.Now().Add(-time.Nanosecond), true }

// TestOnce: a call that must not be made twice is not, has more time than an attempt, and passes the same gates.
func TestOnce(t *testing.T) {
	policy := quick()
	policy.MaxRPS, policy.Trip = 0.5, 1
	c := New(policy)
	var calls atomic.Int64
	if _, err := Once(t.Context(), c, func(ctx context.Context) (int, error) {
		calls.Add(1)
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(2 * policy.Attempt):
			return 0, ErrThrottled
		}
	}); !errors.Is(err, ErrThrottled) || calls.Load() != 1 {
		t.Errorf("%v after %d calls", err, calls.Load())
	}
	if _, err := Once(t.Context(), c, failing(&calls)); !errors.Is(err, errNoTurn) || calls.Load() != 1 {
		t.Errorf("beyond the limit: %v after %d calls", err, calls.Load())
	}
	policy.MaxRPS = 0
	c = New(policy)
	_, _ = Once(t.Context(), c, func(context.Context) (int, error) { return 0, errDown })
	if _, err := Once(t.Context(), c, failing(&calls)); !errors.Is(err, errOpen) || calls.Load() != 1 {
		t.Errorf("while the store is down: %v after %d calls", err, calls.Load())
	}
}

// TestNoEvidence: neither refusals nor throttling nor impatient callers open the breaker, nor does a call that
// panics keep the place of the probe.
func TestNoEvidence(t *testing.T) {
	policy := quick()
	policy.Trip, policy.Total = 2, 20*time.Millisecond
	c := New(policy)
	for name, call := range map[string]func(cancel func()) error{
		"refused":   func(func()) error { return signer.ErrAuth },
		"throttled": func(func()) error { return ErrThrottled },
		"cancelled": func(cancel func()) error { cancel(); return errDown },
		"late":      func(func()) error { return errDown },
	} {
		for range 5 {
			ctx, cancel := context.WithCancel(t.Context())
			if name == "late" {
				ctx = lateTimer{ctx}
			}
			_, err := Do(ctx, c, func(context.Context) (int, error) { return 0, call(cancel) })
			cancel()
			if err == nil || errors.Is(err, errOpen) {
				t.Fatalf("%s: %v", name, err)
			}
		}
	}
	_, _ = Do(t.Context(), c, func(context.Context) (int, error) { return 0, errDown })
	_, _ = Do(t.Context(), c, func(context.Context) (int, error) { return 0, errDown })
	time.Sleep(policy.Recover + 20*time.Millisecond)
	func() {
		defer func() { _ = recover() }()
		_, _ = Do(t.Context(), c, func(context.Context) (int, error) { panic("in the SDK") })
	}()
	if value, err := Do(t.Context(), c, failing(new(atomic.Int64))); value != 1 || err != nil {
		t.Errorf("after a panic: %v", err)
	}
}

// TestOpenBreakerBeforeQueues: while the store is down nobody waits for a turn to be told so.
func TestOpenBreakerBeforeQueues(t *testing.T) {
	policy := quick()
	policy.MaxRPS, policy.Trip, policy.Total, policy.Recover = 1, 1, 5*time.Second, 5*time.Second
	began := time.Now()
	_, err := Do(t.Context(), New(policy), func(context.Context) (int, error) { return 0, errDown })
	if took := time.Since(began); !errors.Is(err, errOpen) || took > 500*time.Millisecond {
		t.Errorf("got %v after %v", err, took)
	}
}

func TestConcurrency(t *testing.T) {
	policy := quick()
	policy.MaxConcurrent = 3
	c := New(policy)
	var under, most atomic.Int64
	var workers sync.WaitGroup
	for range 30 {
		workers.Go(func() {
			_, err := Do(t.Context(), c, func(context.Context) (int, error) {
				n := under.Add(1)
				for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
				}
				time.Sleep(2 * time.Millisecond)
				under.Add(-1)
				return 0, nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	workers.Wait()
	if most.Load() != 3 {
		t.Errorf("%d at a time, want 3", most.Load())
	}
}

// TestNoTurn: who cannot begin in time is told so, and does not wait for a turn again.
func TestNoTurn(t *testing.T) {
	policy := quick()
	policy.MaxConcurrent, policy.Attempt = 1, time.Second
	c := New(policy)
	busy, free := make(chan struct{}), make(chan struct{})
	go func() {
		_, _ = Do(context.Background(), c, func(context.Context) (int, error) { close(busy); <-free; return 0, nil })
	}()
	<-busy
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := Do(ctx, c, failing(new(atomic.Int64)))
	if !errors.Is(err, signer.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	close(free)

	policy.MaxRPS = 0.5
	c = New(policy)
	if _, err := Do(t.Context(), c, failing(new(atomic.Int64))); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	_, err = Do(t.Context(), c, failing(new(atomic.Int64)))
	if !errors.Is(err, errNoTurn) || time.Since(began) > 200*time.Millisecond {
		t.Errorf("got %v after %v", err, time.Since(began))
	}
}

func TestRate(t *testing.T) {
	policy := quick()
	policy.MaxRPS = 100 // of which 10 may come at once
	c := New(policy)
	began := time.Now()
	for range 20 {
		if _, err := Do(t.Context(), c, failing(new(atomic.Int64))); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(began); took < 80*time.Millisecond {
		t.Errorf("20 calls at 100 a second took %v", took)
	}
}

func TestInFlight(t *testing.T) {
	for _, tt := range []struct {
		policy Policy
		want   int
	}{
		{Policy{}, 64},
		{Policy{MaxConcurrent: 8}, 8},
		{Policy{MaxRPS: 1000}, 64},
		{Policy{MaxRPS: 2}, 20},
		{Policy{MaxRPS: 2, Total: 2 * time.Second}, 2},
		{Policy{MaxRPS: 0.01}, 1},
		{Policy{MaxRPS: 1e300}, 64},
	} {
		if got := tt.policy.InFlight(); got != tt.want {
			t.Errorf("%+v: %d, want %d", tt.policy, got, tt.want)
		}
	}
}

func TestDefaults(t *testing.T) {
	want := Policy{Attempt: 5 * time.Second, Total: 20 * time.Second, MaxConcurrent: 64, Wait: 100 * time.Millisecond, Trip: 10, Recover: 5 * time.Second}
	if got := (Policy{}).WithDefaults(); got != want {
		t.Errorf("%+v", got)
	}
	if got := (Policy{MaxConcurrent: -1, Wait: -1, Attempt: -1}).WithDefaults(); got != want {
		t.Errorf("below zero: %+v", got)
	}
	own := Policy{Attempt: 1, Total: 2, MaxRPS: 3, MaxConcurrent: 4, Wait: 5, Trip: 6, Recover: 7}
	if got := own.WithDefaults(); got != own {
		t.Errorf("%+v", got)
	}
	// Nothing a caller writes there makes New panic, or limits where it should not.
	if New(Policy{MaxRPS: math.NaN(), MaxConcurrent: -5}).limiter != nil {
		t.Error("a limit that is no number")
	}
}
