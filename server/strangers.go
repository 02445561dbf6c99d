package server

import (
	"context"
	"net/http"
	"net/netip"
	"runtime/debug"
	"sync"
	"time"

	"hsmsign/agent"
	"hsmsign/fault"
)

// The limits of bodies that are read before the caller is known, because the credential is in the body.
const (
	strangerBodies = 64 // at once
	strangerEach   = 8  // of one address
)

// strangers bounds the bodies that are read from senders that are not known yet. The zero value is ready; it is safe for concurrent use.
type strangers struct {
	mu   sync.Mutex
	all  int
	each map[netip.Addr]int
}

// enter counts a body of an address; the caller of enter calls leave. The error is of kind limited.
func (s *strangers) enter(from netip.Addr) (leave func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all >= strangerBodies || s.each[from] >= strangerEach {
		return nil, &Retry{time.Second, fault.Limited.Errorf("too many requests at once whose sender is not known yet").Rule("server.strangers").Fix("try again later")}
	}
	if s.each == nil {
		s.each = map[netip.Addr]int{}
	}
	s.all++
	s.each[from]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.all--
		if s.each[from]--; s.each[from] == 0 {
			delete(s.each, from)
		}
	}, nil
}

// strange reads the body of a sender that is not known yet. A page of another web site is refused before. The caller of strange calls
// leave when the sender is known or refused.
func (c *call) strange(kind string, limit int64) (data []byte, leave func(), err error) {
	if err := c.crossOrigin(kind); err != nil {
		return nil, nil, err
	}
	leave, err = c.strangers.enter(c.conn.Remote)
	if err != nil {
		return nil, nil, err
	}
	_ = http.NewResponseController(c.w).SetReadDeadline(time.Now().Add(min(c.cfg.Limits.Stranger, c.cfg.Limits.Body))) // without deadlines (tests) the server's limit remains
	c.r.Body = http.MaxBytesReader(c.w, c.r.Body, limit)
	c.data, err = c.body()
	if err != nil {
		leave()
		return nil, nil, err
	}
	return c.data, leave, nil
}

// limit ends the time of a request, with its body, when its client no longer waits. The caller of limit calls end.
func (c *call) limit(within time.Duration) (end func()) {
	ctx, end := context.WithTimeout(c.r.Context(), within)
	c.r = c.r.WithContext(ctx)
	_ = http.NewResponseController(c.w).SetReadDeadline(time.Now().Add(min(within, c.cfg.Limits.Body))) // see strange
	return end
}

// inTime signs, and returns when the time of the request is over. A signature that takes longer is recorded all the same, since the
// client gets it when it asks again; leave is called when it has ended.
func (c *call) inTime(leave func(), sign func(ctx context.Context) (*agent.Issued, error)) (*agent.Issued, error) {
	type result struct {
		issued *agent.Issued
		err    error
	}
	done := make(chan result, 1)
	ctx, log, id := c.r.Context(), c.cfg.Log, c.id
	c.late.Go(func() {
		r := result{err: fault.Internal.Errorf("the server failed at this request")}
		defer func() {
			if p := recover(); p != nil {
				log.Error("panic", "id", id, "value", p, "stack", string(debug.Stack()))
			}
			leave()
			done <- r
		}()
		r.issued, r.err = sign(ctx)
	})
	select {
	case r := <-done:
		return r.issued, r.err
	case <-ctx.Done():
	}
	select { // a signature that has just been made is released
	case r := <-done:
		return r.issued, r.err
	default:
		return nil, fault.Unavailable.Errorf("the signature was not made in time: %w", ctx.Err()).Fix("ask again")
	}
}

// awaitLate waits for signatures whose caller was answered, until ctx ends.
func (s *Server) awaitLate(ctx context.Context) {
	done := make(chan struct{})
	go func() {
		s.late.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
}
