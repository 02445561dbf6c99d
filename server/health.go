package server

import (
	"context"
	"net/http"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"hsmsign/agent"
	"hsmsign/api"
	"hsmsign/fault"
	"hsmsign/ledger/record"
)

const (
	probeEvery = 30 * time.Second // whether the vendor's key signs; package agent makes at most one probe a minute
	probeWait  = 25 * time.Second
	probeOld   = 3 * time.Minute // after which a success says nothing any more
	replicaOld = 5 * time.Minute // after which a replica has ended without saying so; clocks may differ by 2 minutes
	logRate    = 10              // records a second about strangers
)

// health is whether the service can sign. A timer asks, never a request: nobody can make the key work by asking.
type health struct {
	logs *rate.Limiter

	mu      sync.Mutex
	signed  time.Time // the newest signature
	err     error     // of the newest check
	differs bool      // replicas have another policy
}

// background starts what the service does by itself. The channel is closed when all of it has ended after ctx.
func (s *Server) background(ctx context.Context) <-chan struct{} {
	done := make(chan struct{})
	var all sync.WaitGroup
	for _, task := range []struct {
		every time.Duration
		do    func(ctx context.Context)
	}{{probeEvery, s.probe}, {policyEvery, s.comparePolicies}, {figuresEvery, s.readFigures}, {datesEvery, s.readDates}} {
		all.Go(func() {
			for tick := time.NewTicker(task.every); ; {
				task.do(ctx)
				select {
				case <-tick.C:
				case <-ctx.Done():
					tick.Stop()
					return
				}
			}
		})
	}
	go func() { all.Wait(); close(done) }()
	return done
}

// probe checks the ledger and has the active vendor's key sign the probe message, unless it has just signed.
func (s *Server) probe(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, probeWait)
	defer cancel()
	state := s.state.Load()
	_, err := s.cfg.Ledger.Head(ctx)
	if err == nil {
		err = s.cfg.Ledger.Here(ctx)
	}
	if err == nil {
		vendor := state.Vendors[state.Active]
		err = vendor.Probe(agent.WithObserver(ctx, s.observer(vendor.Backend)))
	}
	signed := state.Vendors[state.Active].LastSignature()
	s.health.mu.Lock()
	before := s.health.err
	s.health.err, s.health.signed = err, signed
	s.health.mu.Unlock()
	switch {
	case err != nil && ctx.Err() == nil:
		s.cfg.Log.Error("not ready", "error", err.Error(), "fix", fault.Hint(err))
	case err == nil && before != nil:
		s.cfg.Log.Info("ready again")
	}
}

// comparePolicies tells the other replicas that this one lives, and alarms if they have another policy.
func (s *Server) comparePolicies(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, probeWait)
	defer cancel()
	err := s.cfg.Ledger.Seen(ctx, s.cfg.Replica)
	if err != nil {
		s.cfg.Log.Error("replicas", "error", err.Error())
		return
	}
	replicas, err := s.cfg.Ledger.Replicas(ctx)
	if err != nil {
		s.cfg.Log.Error("replicas", "error", err.Error())
		return
	}
	own, differs := record.Hash(s.state.Load().Policy.Hash()), ""
	for _, r := range replicas {
		if r.Policy != own && s.cfg.Now().Sub(r.Seen) < replicaOld {
			differs = r.Name
		}
	}
	s.health.mu.Lock()
	before := s.health.differs
	s.health.differs = differs != ""
	s.health.mu.Unlock()
	if differs != "" && !before {
		s.cfg.Log.Error("the policies of the replicas differ", "replica", differs, "fix", "give every replica the same configuration, and reload them")
	}
}

// ready returns why the service cannot sign; nil if it can.
func (h *health) ready(s *Server) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	age := s.cfg.Now().Sub(h.signed)
	switch {
	case s.draining.Load():
		return fault.Unavailable.Errorf("the server is stopping")
	case h.err != nil:
		return h.err
	case h.signed.IsZero():
		return fault.Unavailable.Errorf("the vendor's key has not signed yet")
	case age > probeOld:
		return fault.Unavailable.Errorf("the vendor's key signed last %v ago", age.Round(time.Second))
	}
	return nil
}

// age returns how long ago the key signed; -1 if it never did.
func (h *health) age(now time.Time) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.signed.IsZero() {
		return -1
	}
	return now.Sub(h.signed)
}

// differing returns whether another replica has another policy.
func (h *health) differing() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.differs
}

// livez answers GET /livez.
func (c *call) livez() error {
	c.w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	c.send(http.StatusOK, []byte("ok\n"))
	return nil
}

// readyz answers GET /readyz. It says whether, and when the key signed last, and not why: it answers anybody.
func (c *call) readyz() error {
	state := api.Ready{Ready: c.health.ready(c.Server) == nil}
	if age := c.health.age(c.cfg.Now()); age >= 0 {
		seconds := int64(age / time.Second)
		state.SignedSecondsAgo = &seconds
	}
	status := http.StatusOK
	if !state.Ready {
		status = http.StatusServiceUnavailable
	}
	return c.json(status, state)
}
