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
	p.AttemptTimeout = cmp.Or(max(p.AttemptTimeout, 0), 5*time.Second)
	p.Timeout = cmp.Or(max(p.Timeout, 0), 20*time.Second)
	p.MaxConcurrent = cmp.Or(max(p.MaxConcurrent, 0), 64)
	p.RetryDelay = cmp.Or(max(p.RetryDelay, 0), 100*time.Millisecond)
	p.BreakerThreshold = cmp.Or(p.BreakerThreshold, 10)
	p.BreakerCooldown = cmp.Or(max(p.BreakerCooldown, 0), 5*time.Second)
	return p
}

// Impatient returns the policy of a diagnosis, which ends after four failures in a row: within 3 s, if connections are
// refused. A store that is slow still has Timeout.
func (p Policy) Impatient() Policy {
	p.BreakerThreshold = 4
	return p
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

// Attributes returns the names of the query attributes that a backend accepts: its own, and those that WithReference
// reads.
func Attributes(own ...string) []string {
	return append(own, "max-rps", "max-concurrent", "timeout")
}

// WithReference returns the policy with the values that the reference sets: max-rps (0.01 to 100000), max-concurrent
// (1 to the given maximum) and timeout (10ms to 10m). The error wraps signer.ErrReference.
func (p Policy) WithReference(ref signer.Ref, maxConcurrent int) (Policy, error) {
	err := cmp.Or(
		set(&p.MaxRPS, ref, "max-rps", parseFloat, 0.01, 100_000, "a number from 0.01 to 100000"),
		set(&p.MaxConcurrent, ref, "max-concurrent", strconv.Atoi, 1, maxConcurrent, fmt.Sprintf("a number from 1 to %d", maxConcurrent)),
		set(&p.Timeout, ref, "timeout", time.ParseDuration, 10*time.Millisecond, 10*time.Minute, "a duration from 10ms to 10m, such as 20s"),
	)
	return p, err
}

// set sets a field to the value of an attribute, if the reference has it.
func set[T cmp.Ordered](field *T, ref signer.Ref, name string, parse func(string) (T, error), low, high T, form string) error {
	text, ok := ref.Query(name)
	if !ok {
		return nil
	}
	value, err := parse(text)
	if err != nil || !(value >= low && value <= high) { //nolint:staticcheck // written so that NaN is refused
		return fmt.Errorf("%w: %s is %q; it must be %s", signer.ErrReference, name, text, form)
	}
	*field = value
	return nil
}

func parseFloat(text string) (float64, error) { return strconv.ParseFloat(text, 64) }

// Loopback reports whether host is a loopback address. Only such an endpoint may be used in plain text. A name is never
// loopback: it is not resolved here.
func Loopback(host string) bool { return net.ParseIP(host).IsLoopback() }
