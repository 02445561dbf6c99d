package kms

import (
	"cmp"
	"fmt"
	"net"
	"strconv"
	"time"

	"hsmsign/signer"
)

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
	p.AttemptTimeout = orDefault(p.AttemptTimeout, 5*time.Second)
	p.Timeout = orDefault(p.Timeout, 20*time.Second)
	p.MaxConcurrent = orDefault(p.MaxConcurrent, 64)
	p.RetryDelay = orDefault(p.RetryDelay, 100*time.Millisecond)
	p.BreakerThreshold = orDefault(p.BreakerThreshold, 10)
	p.BreakerCooldown = orDefault(p.BreakerCooldown, 5*time.Second)
	return p
}

func orDefault[T cmp.Ordered](value, def T) T {
	var zero T
	if value <= zero {
		return def
	}
	return value
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

// The limits of the attributes of a reference.
const (
	minRPS, maxRPS         = 0.01, 100_000
	minTimeout, maxTimeout = 10 * time.Millisecond, 10 * time.Minute
)

// Attributes returns the names of the query attributes that a backend accepts: its own, and those that WithReference
// reads.
func Attributes(own ...string) []string {
	return append(own, "max-rps", "max-concurrent", "timeout")
}

// WithReference returns the policy with the values that the reference sets: max-rps (0.01 to 100000), max-concurrent
// (1 to the given maximum) and timeout (10ms to 10m). The error wraps signer.ErrReference.
func (p Policy) WithReference(ref signer.Ref, maxConcurrent int) (Policy, error) {
	if v, ok := ref.Query("max-rps"); ok {
		n, err := strconv.ParseFloat(v, 64)
		if err != nil || !(n >= minRPS && n <= maxRPS) { // written so that NaN is refused
			return p, fmt.Errorf("%w: max-rps is %q; it must be a number from %v to %d", signer.ErrReference, v, minRPS, maxRPS)
		}
		p.MaxRPS = n
	}
	if v, ok := ref.Query("max-concurrent"); ok {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > maxConcurrent {
			return p, fmt.Errorf("%w: max-concurrent is %q; it must be a number from 1 to %d", signer.ErrReference, v, maxConcurrent)
		}
		p.MaxConcurrent = n
	}
	if v, ok := ref.Query("timeout"); ok {
		d, err := time.ParseDuration(v)
		if err != nil || d < minTimeout || d > maxTimeout {
			return p, fmt.Errorf("%w: timeout is %q; it must be a duration from 10ms to 10m, such as 20s", signer.ErrReference, v)
		}
		p.Timeout = d
	}
	return p, nil
}

// Loopback reports whether host is a loopback address. Only such an endpoint may be used in plain text. A name is never
// loopback: it is not resolved here.
func Loopback(host string) bool { return net.ParseIP(host).IsLoopback() }
