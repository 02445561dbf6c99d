package awsiam

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"hsmsign/fault"
)

const (
	maxSources = 4096           // of a class that are counted one by one
	knownFor   = 12 * time.Hour // after a success
)

// class is a class of sources that has calls to STS of its own.
type class struct {
	perSecond, each, atOnce int

	total   *rate.Limiter
	running *semaphore.Weighted
	mu      sync.Mutex
	sources map[string]*rate.Limiter
}

func newClass(perSecond, each, atOnce int) *class {
	return &class{
		perSecond: perSecond, each: each, atOnce: atOnce,
		total: rate.NewLimiter(rate.Limit(perSecond), 2*perSecond), running: semaphore.NewWeighted(int64(atOnce)), sources: map[string]*rate.Limiter{},
	}
}

// allow returns whether a source may ask STS now. Calls of a source that has asked too often do not count in all.
func (c *class) allow(source string, now time.Time) bool {
	c.mu.Lock()
	limiter := c.sources[source]
	if limiter == nil {
		if len(c.sources) >= maxSources {
			clear(c.sources) // the limit in all remains
		}
		limiter = rate.NewLimiter(rate.Limit(c.each), 2*c.each)
		c.sources[source] = limiter
	}
	c.mu.Unlock()
	return limiter.AllowN(now, 1) && c.total.AllowN(now, 1)
}

// limits bound the calls to STS. The id of an access key is no secret and anybody can send it, so it is never a source alone: the
// address, which nobody can choose freely, is part of each.
type limits struct {
	proven, near, strangers *class

	mu    *sync.Mutex
	known map[string]time.Time // addresses, and addresses with access keys, to when they last identified a caller
}

// The calls a second in all, those of one source, and those at once, by class.
const (
	provenRate, provenEach, provenAtOnce          = 200, 50, 128
	nearRate, nearEach, nearAtOnce                = 50, 10, 16
	strangersRate, strangersEach, strangersAtOnce = 10, 5, 8
)

func newLimits() limits {
	return limits{
		proven: newClass(provenRate, provenEach, provenAtOnce), near: newClass(nearRate, nearEach, nearAtOnce), strangers: newClass(strangersRate, strangersEach, strangersAtOnce),
		mu: &sync.Mutex{}, known: map[string]time.Time{},
	}
}

// network returns the network that one user of IPv6 has, or the IPv4 address.
func network(source netip.Addr) string {
	source = source.Unmap().WithZone("")
	if source.Is6() {
		prefix, _ := source.Prefix(64) // its length is valid
		return prefix.String()
	}
	return source.String()
}

// enter waits for a place. The caller of enter calls leave. The error wraps ErrLimited or ErrUnavailable.
func (l *limits) enter(ctx context.Context, source netip.Addr, accessKey string, now time.Time) (leave func(), err error) {
	address := network(source)
	proven := address + " " + accessKey
	l.mu.Lock()
	isProven, isNear := now.Sub(l.known[proven]) < knownFor, now.Sub(l.known[address]) < knownFor
	l.mu.Unlock()
	c, name := l.strangers, address
	switch {
	case isProven:
		c, name = l.proven, proven
	case isNear:
		c = l.near
	}
	if !c.allow(name, now) {
		return nil, fault.Errorf("%w", ErrLimited).Rule("server.aws").Fix("send requests more slowly, and sign each of them once")
	}
	if err := c.running.Acquire(ctx, 1); err != nil {
		return nil, fault.Errorf("%w: %d calls are running: %w", ErrUnavailable, c.atOnce, err).Fix("try again later")
	}
	return func() { c.running.Release(1) }, nil
}

// succeeded remembers a source that has identified a caller.
func (l *limits) succeeded(source netip.Addr, accessKey string, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.known) >= maxSources {
		clear(l.known) // strangers cannot do this
	}
	address := network(source)
	l.known[address], l.known[address+" "+accessKey] = now, now
}
