//go:build cgo && linux

package pkcs11

import (
	"context"
	"crypto"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"hsmsign/signer"
)

// compareWithRaw signs with 1, 2 and 8 callers. It reports the rate as a share of bare C_SignInit and C_Sign with as many
// callers on the same number of sessions of k's module in the same run ("x-raw"), and the ratio of the times that 99 of
// 100 signatures do not exceed ("p99-x-raw").
func compareWithRaw(b *testing.B, k *key, signer signer.Signer) {
	b.Helper()
	for _, callers := range []int{1, 2, 8} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			raw := bareSign(b, k)
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			ours := func() error {
				_, err := signer.SignContext(ctx, digest, crypto.SHA256)
				return err
			}
			compare(b, callers, raw, ours)
		})
	}
}

// bareSign returns a function that calls C_SignInit and C_Sign on as many sessions as the key's pool has.
func bareSign(b *testing.B, k *key) func() error {
	b.Helper()
	size := cap(k.sessions.permits)
	free := make(chan pkcs11.SessionHandle, size)
	for range size {
		sh, err := k.module.lib.OpenSession(k.token.now.Load().slot, pkcs11.CKF_SERIAL_SESSION)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = k.module.lib.CloseSession(sh) })
		free <- sh
	}
	info := append([]byte(sha256Info), digest...)
	return func() error {
		sh := <-free
		defer func() { free <- sh }()
		if err := k.module.lib.SignInit(sh, k.mechanisms.raw, k.binding.Load().object); err != nil {
			return err
		}
		_, err := k.module.lib.Sign(sh, info)
		return err
	}
}

// compare runs ours and raw alternately in small portions, so that both see the same load of the machine.
func compare(b *testing.B, callers int, raw, ours func() error) {
	b.Helper()
	const portion = 32
	var rawTimes, ourTimes stopwatch
	share(b, callers, portion, new(stopwatch).time(ours)) // opens the sessions
	var ratios []float64
	var total time.Duration
	b.ReportAllocs()
	b.ResetTimer()
	for left := b.N; left > 0; left -= portion {
		n := min(left, portion)
		b.StopTimer()
		before := share(b, callers, n, rawTimes.time(raw))
		b.StartTimer()
		took := share(b, callers, n, ourTimes.time(ours))
		b.StopTimer()
		after := share(b, callers, n, rawTimes.time(raw))
		b.StartTimer()
		ratios = append(ratios, (before+after).Seconds()/2/took.Seconds())
		total += took
	}
	b.StopTimer()
	slices.Sort(ratios)
	b.ReportMetric(ratios[len(ratios)/2], "x-raw")
	b.ReportMetric(ourTimes.p99()/rawTimes.p99(), "p99-x-raw")
	b.ReportMetric(ourTimes.p99()*1000, "p99-ms")
	b.ReportMetric(float64(b.N)/total.Seconds(), "signatures/s")
}

// stopwatch measures the time of each call.
type stopwatch struct {
	mu    sync.Mutex
	times []time.Duration
}

func (s *stopwatch) time(call func() error) func() error {
	return func() error {
		began := time.Now()
		err := call()
		took := time.Since(began)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.times = append(s.times, took)
		return err
	}
}

// p99 returns the time in seconds that 99 of 100 calls do not exceed.
func (s *stopwatch) p99() float64 {
	slices.Sort(s.times)
	return s.times[(len(s.times)-1)*99/100].Seconds()
}

// share makes n calls with some workers, and returns the time of all.
func share(b *testing.B, workers, n int, call func() error) time.Duration {
	b.Helper()
	began := time.Now()
	work := make(chan struct{}, n)
	for range n {
		work <- struct{}{}
	}
	close(work)
	var group sync.WaitGroup
	for range workers {
		group.Go(func() {
			for range work {
				if err := call(); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	return time.Since(began)
}
