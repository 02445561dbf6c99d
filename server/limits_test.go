package server

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"hsmsign/fault"
)

// A caller with many requests does not delay the one of another caller.
func TestQueueIsFair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(1, 100, 100)
		leave, err := q.enter(t.Context(), "first")
		if err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		var order []string
		var all sync.WaitGroup
		for _, caller := range []string{"loud", "loud", "loud", "loud", "quiet", "other"} {
			all.Go(func() {
				leave, err := q.enter(t.Context(), caller)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				order = append(order, caller)
				mu.Unlock()
				time.Sleep(time.Second)
				leave()
			})
			synctest.Wait()
		}
		leave()
		all.Wait()
		if want := []string{"loud", "quiet", "other", "loud", "loud", "loud"}; !slices.Equal(order, want) {
			t.Errorf("%v, want %v", order, want)
		}
		if running, waiting := q.load(); running+waiting != 0 || len(q.lines)+len(q.turns) != 0 {
			t.Errorf("%d running, %d waiting, %v, %v", running, waiting, q.lines, q.turns)
		}
	})
}

func TestQueueBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(1, 2, 2)
		leave, _ := q.enter(t.Context(), "a")
		errs := make(chan error, 2)
		canceled, cancel := context.WithCancel(t.Context())
		for _, ctx := range []context.Context{canceled, t.Context()} {
			go func() {
				_, err := q.enter(ctx, "b")
				errs <- err
			}()
			synctest.Wait()
		}
		if _, err := q.enter(t.Context(), "c"); fault.KindOf(err) != fault.Unavailable || !errors.As(err, new(*Retry)) {
			t.Errorf("a full queue: %v", err)
		}
		cancel()
		if err := <-errs; !errors.Is(err, context.Canceled) {
			t.Errorf("a canceled request: %v", err)
		}
		begun := time.Now()
		if err := <-errs; fault.KindOf(err) != fault.Unavailable || time.Since(begun) != queueWait {
			t.Errorf("a request that waits too long: %v after %v", err, time.Since(begun))
		}
		leave()
		if leave, err := q.enter(t.Context(), "d"); err != nil {
			t.Error(err)
		} else {
			leave()
		}
		if running, waiting := q.load(); running+waiting != 0 || len(q.lines)+len(q.turns) != 0 {
			t.Errorf("%d running, %d waiting", running, waiting)
		}
	})
}

// A turn that comes while its request gives up is not lost.
func TestQueueTurnOfAbandoned(t *testing.T) {
	q := newQueue(1, 1000, 1000)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 500 {
				ctx, cancel := context.WithTimeout(context.Background(), 20*time.Microsecond)
				if leave, err := q.enter(ctx, "a"); err == nil {
					leave()
				}
				cancel()
			}
		})
	}
	all.Wait()
	if running, waiting := q.load(); running+waiting != 0 || len(q.lines)+len(q.turns) != 0 {
		t.Errorf("%d running, %d waiting, %v, %v", running, waiting, q.lines, q.turns)
	}
}

func TestRequestsAtOnce(t *testing.T) {
	q := newQueue(1, 1, 2)
	end, err := q.begin("a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := q.begin("a"); err != nil {
		t.Fatal(err)
	}
	if _, err := q.begin("a"); fault.KindOf(err) != fault.Limited {
		t.Errorf("the third: %v", err)
	}
	if _, err := q.begin("b"); err != nil {
		t.Errorf("another caller: %v", err)
	}
	if end(); len(q.each) != 2 {
		t.Errorf("%v", q.each)
	}
	if _, err := q.begin("a"); err != nil {
		t.Errorf("after an end: %v", err)
	}
}

func TestPace(t *testing.T) {
	var p pace
	now := time.Now()
	for i := range 3 {
		err := p.allow("a", "requests", 2, now)
		if want := i < 2; (err == nil) != want {
			t.Errorf("request %d: %v", i, err)
		}
	}
	for _, err := range []error{p.allow("b", "requests", 2, now), p.allow("a", "others", 2, now), p.allow("a", "requests", 2, now.Add(time.Second))} {
		if err != nil {
			t.Error(err)
		}
	}
}
