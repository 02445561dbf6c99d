package kms

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"hsmsign/internal/testkit"
	"hsmsign/signer"
)

func TestWithDefaults(t *testing.T) {
	want := Policy{AttemptTimeout: 5 * time.Second, Timeout: 20 * time.Second, MaxConcurrent: 64, RetryDelay: 100 * time.Millisecond, BreakerThreshold: 10, BreakerCooldown: 5 * time.Second}
	if got := (Policy{MaxConcurrent: -1, RetryDelay: -1, AttemptTimeout: -1}).WithDefaults(); got != want {
		t.Errorf("%+v", got)
	}
	own := Policy{AttemptTimeout: 1, Timeout: 2, MaxRPS: 3, MaxConcurrent: 4, RetryDelay: 5, BreakerThreshold: 6, BreakerCooldown: 7}
	if got := own.WithDefaults(); got != own {
		t.Errorf("%+v", got)
	}
	if New(Policy{MaxRPS: math.NaN(), MaxConcurrent: -5}, nil).limiter != nil {
		t.Error("NaN is a limit")
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
		{Policy{MaxRPS: 2, Timeout: 2 * time.Second}, 2},
		{Policy{MaxRPS: 0.01}, 1},
		{Policy{MaxRPS: 1e300}, 64},
	} {
		if got := tt.policy.InFlight(); got != tt.want {
			t.Errorf("%+v: %d, want %d", tt.policy, got, tt.want)
		}
	}
}

func TestWithReference(t *testing.T) {
	before := Policy{Timeout: time.Hour, MaxRPS: 1, MaxConcurrent: 2, RetryDelay: 3}
	for _, tt := range []struct {
		query string
		want  Policy
		err   string
	}{
		{query: "x=y", want: before},
		{query: "max-rps=12.5&max-concurrent=100&timeout=1m", want: Policy{Timeout: time.Minute, MaxRPS: 12.5, MaxConcurrent: 100, RetryDelay: 3}},
		{query: "max-rps=0.01&max-concurrent=1&timeout=10ms", want: Policy{Timeout: 10 * time.Millisecond, MaxRPS: 0.01, MaxConcurrent: 1, RetryDelay: 3}},
		{query: "max-rps=0", err: `max-rps is "0"; it must be a number from 0.01 to 100000`},
		{query: "max-rps=NaN", err: "max-rps"},
		{query: "max-rps=-1", err: "max-rps"},
		{query: "max-rps=100001", err: "max-rps"},
		{query: "max-rps=", err: "max-rps"},
		{query: "max-concurrent=0", err: `max-concurrent is "0"; it must be a number from 1 to 100`},
		{query: "max-concurrent=101", err: "max-concurrent"},
		{query: "max-concurrent=1.5", err: "max-concurrent"},
		{query: "timeout=20", err: `timeout is "20"; it must be a duration from 10ms to 10m`},
		{query: "timeout=9ms", err: "timeout"},
		{query: "timeout=-1s", err: "timeout"},
		{query: "timeout=601s", err: "timeout"},
	} {
		ref := testkit.Value(signer.ParseRef("kms:key?" + tt.query))(t)
		got, err := before.WithReference(ref, 100)
		if tt.err == "" && (err != nil || got != tt.want) {
			t.Errorf("%s: %+v, %v", tt.query, got, err)
		}
		if tt.err != "" && (!errors.Is(err, signer.ErrReference) || !strings.Contains(err.Error(), tt.err)) {
			t.Errorf("%s: %v, want %q", tt.query, err, tt.err)
		}
		testkit.OK(t, ref.CheckQuery(Attributes("x")...))
	}
}

func TestLoopback(t *testing.T) {
	for host, want := range map[string]bool{
		"127.0.0.1": true, "127.1.2.3": true, "::1": true, "::ffff:127.0.0.1": true,
		"": false, "localhost": false, "127.0.0.1.example.com": false, "192.0.2.1": false, "0.0.0.0": false, "::": false,
	} {
		if got := Loopback(host); got != want {
			t.Errorf("%q: %v", host, got)
		}
	}
}
