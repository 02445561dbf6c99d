package server

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"hsmsign/fault"
)

const (
	queueWait = 10 * time.Second
	anyRate   = 100 // requests of one caller a second that read or change something
)

// Retry is an error that says when to try again. Its kind is that of what it wraps.
type Retry struct {
	After time.Duration
	err   error
}

func (r *Retry) Error() string { return r.err.Error() }
func (r *Retry) Unwrap() error { return r.err }

// pace bounds how often callers ask. The zero pace is ready; it is safe for concurrent use.
type pace struct{ limiters sync.Map }

// allow returns an error of kind limited if a caller has asked too often. what separates limits of one caller.
func (p *pace) allow(caller, what string, perSecond int, now time.Time) error {
	type key struct {
		caller, what string
		limit        int // another policy may have another one
	}
	k := key{caller, what, perSecond}
	limiter, ok := p.limiters.Load(k)
	if !ok {
		limiter, _ = p.limiters.LoadOrStore(k, rate.NewLimiter(rate.Limit(perSecond), perSecond))
	}
	if limiter.(*rate.Limiter).AllowN(now, 1) {
		return nil
	}
	return &Retry{time.Second, fault.Limited.Errorf("caller %s may send %d %s a second", caller, perSecond, what).Rule("server.rate").Fix("send them more slowly")}
}

// queue bounds how many requests run, and chooses among those that wait: each caller in turn. It is safe for concurrent use.
type queue struct {
	limit, waitLimit, eachLimit int

	mu      sync.Mutex
	running int
	waiting int
	each    map[string]int             // requests of a caller, of any kind
	lines   map[string][]chan struct{} // those of a caller that wait, the oldest first
	turns   []string                   // the callers with such a line, the next one first
}

func newQueue(limit, waiting, each int) *queue {
	return &queue{limit: limit, waitLimit: waiting, eachLimit: each, each: map[string]int{}, lines: map[string][]chan struct{}{}}
}

// begin counts a request of a caller; the caller of begin calls the function that it returns. The error is of kind limited.
func (q *queue) begin(caller string) (end func(), err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.each[caller] >= q.eachLimit {
		return nil, &Retry{time.Second, fault.Limited.Errorf("caller %s has %d requests at once, as many as it may", caller, q.eachLimit).Rule("server.caller-queue").Fix("wait for the answers")}
	}
	q.each[caller]++
	return func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		if q.each[caller]--; q.each[caller] == 0 {
			delete(q.each, caller)
		}
	}, nil
}

// enter waits for the turn of a caller. The caller of enter calls leave. The error is of kind unavailable, or that of ctx.
func (q *queue) enter(ctx context.Context, caller string) (leave func(), err error) {
	q.mu.Lock()
	if q.running < q.limit && q.waiting == 0 {
		q.running++
		q.mu.Unlock()
		return q.leave, nil
	}
	if q.waiting >= q.waitLimit {
		q.mu.Unlock()
		return nil, q.full("%d requests wait already", q.waitLimit)
	}
	turn := make(chan struct{})
	if q.lines[caller] == nil {
		q.turns = append(q.turns, caller)
	}
	q.lines[caller] = append(q.lines[caller], turn)
	q.waiting++
	q.mu.Unlock()
	late := time.NewTimer(queueWait)
	defer late.Stop()
	select {
	case <-turn:
		return q.leave, nil
	case <-ctx.Done():
		err = fmt.Errorf("waiting for a turn: %w", ctx.Err())
	case <-late.C:
		err = q.full("it waited %v for its turn", queueWait)
	}
	if !q.remove(caller, turn) { // its turn came at the same time
		q.leave()
	}
	return nil, err
}

func (q *queue) full(format string, args ...any) error {
	return &Retry{5 * time.Second, fault.Unavailable.Errorf("the server is busy: "+format, args...).Rule("server.queue").Fix("try again later")}
}

// leave lets the next one in.
func (q *queue) leave() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.turns) == 0 {
		q.running--
		return
	}
	caller := q.turns[0]
	line := q.lines[caller]
	close(line[0])
	q.waiting--
	q.turns = q.turns[1:]
	if q.lines[caller] = line[1:]; len(line) > 1 {
		q.turns = append(q.turns, caller)
	} else {
		delete(q.lines, caller)
	}
}

// remove gives up waiting. It returns false if the turn has come.
func (q *queue) remove(caller string, turn chan struct{}) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i, t := range q.lines[caller] {
		if t != turn {
			continue
		}
		q.waiting--
		if q.lines[caller] = append(q.lines[caller][:i:i], q.lines[caller][i+1:]...); len(q.lines[caller]) == 0 {
			delete(q.lines, caller)
			for j, name := range q.turns {
				if name == caller {
					q.turns = append(q.turns[:j:j], q.turns[j+1:]...)
					break
				}
			}
		}
		return true
	}
	return false
}

// load returns how many requests run and wait.
func (q *queue) load() (running, waiting int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.running, q.waiting
}
