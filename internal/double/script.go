package double

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// The faults that this package implements itself. Every double has them.
const (
	OK          = "ok"     // no fault
	Hang        = "hang"   // no answer until the client leaves
	delayPrefix = "delay=" // a late answer
)

// Delay returns the fault of an answer that is d late, "delay=2s".
func Delay[F ~string](d time.Duration) F { return F(delayPrefix + d.String()) }

// Script decides which fault each request meets, and counts the requests. F is the type of the faults of a double.
// Safe for concurrent use.
type Script[F ~string] struct {
	operations []string
	faults     []F

	mu       sync.Mutex
	queued   map[string][]F
	standing map[string]F
	calls    map[string]int
}

// NewScript returns an empty script for a service with these operations, whose double implements these faults besides
// those of this package.
func NewScript[F ~string](operations []string, faults ...F) *Script[F] {
	return &Script[F]{operations: operations, faults: append(faults, OK, Hang), queued: map[string][]F{}, standing: map[string]F{}, calls: map[string]int{}}
}

// check refuses an unknown operation and an unknown fault. An operation may be "*", and may end with "@PLACE".
func (s *Script[F]) check(operation string, faults ...F) error {
	if name, _, _ := strings.Cut(operation, "@"); name != "*" && !slices.Contains(s.operations, name) {
		return fmt.Errorf("unknown operation %q; known are *, %s", operation, strings.Join(s.operations, ", "))
	}
	for _, f := range faults {
		if _, delayed := delayOf(f); !delayed && !slices.Contains(s.faults, f) {
			return fmt.Errorf("unknown fault %q; known are %v and delay=2s", string(f), s.faults)
		}
	}
	return nil
}

func delayOf[F ~string](f F) (time.Duration, bool) {
	text, ok := strings.CutPrefix(string(f), delayPrefix)
	d, err := time.ParseDuration(text)
	return d, ok && err == nil && d >= 0
}

// Add queues faults for the next requests of an operation.
func (s *Script[F]) Add(operation string, faults ...F) error {
	if err := s.check(operation, faults...); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queued[operation] = append(s.queued[operation], faults...)
	return nil
}

// Stand sets the fault of every request of an operation for which no fault is queued. OK removes it.
func (s *Script[F]) Stand(operation string, fault F) error {
	if err := s.check(operation, fault); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.standing[operation] = fault
	return nil
}

// Count counts a request.
func (s *Script[F]) Count(operation string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls[operation]++
	s.calls["*"]++
}

// Calls returns how many requests of an operation were counted; "*" means all.
func (s *Script[F]) Calls(operation string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[operation]
}

// Next returns the fault of one request: the first one that is queued for it, or the one that stands, or OK. The
// narrower name counts first: operation@place, operation, *@place, *.
func (s *Script[F]) Next(operation, place string) F {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queued)+len(s.standing) == 0 {
		return OK
	}
	names := []string{operation + "@" + place, operation, "*@" + place, "*"}
	for _, name := range names {
		if queue := s.queued[name]; len(queue) > 0 {
			s.queued[name] = queue[1:]
			return queue[0]
		}
	}
	for _, name := range names {
		if f, ok := s.standing[name]; ok && f != OK {
			return f
		}
	}
	return OK
}

// Wait waits for the delay of a fault and an extra delay. It returns false if ctx ends first, as it does for Hang, or
// if the server is closed.
func Wait[F ~string](ctx context.Context, closed <-chan struct{}, fault F, extra time.Duration) bool {
	if fault == OK && extra == 0 {
		return ctx.Err() == nil
	}
	var elapsed <-chan time.Time
	if fault != Hang {
		d, _ := delayOf(fault)
		timer := time.NewTimer(d + extra)
		defer timer.Stop()
		elapsed = timer.C
	}
	select {
	case <-ctx.Done():
		return false
	case <-closed:
		return false
	case <-elapsed:
		return true
	}
}
