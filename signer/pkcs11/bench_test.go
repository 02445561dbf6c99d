//go:build cgo

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
	softhsmtest "hsmsign/softhsm-test"
)

// BenchmarkSign signs by 1, 2 and 8 callers. It reports the rate as a share of what bare C_SignInit and C_Sign reach
// with as many callers on the same number of sessions in the same run ("x-raw"), and so the time that 99 of 100
// signatures stay within ("p99-x-raw").
func BenchmarkSign(b *testing.B) {
	benchmarkSign(b, newToken(b).Ref("vendor"))
}

// BenchmarkSignP11Kit is BenchmarkSign through p11-kit's socket.
func BenchmarkSignP11Kit(b *testing.B) {
	benchmarkSign(b, softhsmtest.NewP11Kit(b, newToken(b)).Ref("vendor"))
}

func benchmarkSign(b *testing.B, ref string) {
	k := mustOpen(b, ref).(*key)
	compareWithRaw(b, k, k)
}

// compareWithRaw compares signer with bare calls of the module that k has loaded.
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

// bareSign is C_SignInit and C_Sign on as many sessions as the key's pool has.
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

// compare lets ours and raw turn about in small portions, so that both meet the same load of the machine, and
// reports the median of the ratios of their times, and the ratio of the times that are exceeded once in a hundred.
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

// stopwatch takes the time of each call.
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

// p99 is the time in seconds that 99 of 100 calls stay within.
func (s *stopwatch) p99() float64 {
	slices.Sort(s.times)
	return s.times[(len(s.times)-1)*99/100].Seconds()
}

// share lets workers make n calls between them, and gives the time that took.
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
