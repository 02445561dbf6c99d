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
)

// BenchmarkSign signs by 1, 2 and 8 callers, and reports the rate as a share of what bare C_SignInit and C_Sign
// reach on as many sessions of the same token in the same run ("x-raw").
func BenchmarkSign(b *testing.B) {
	tok := newToken(b)
	opened := mustOpen(b, tok.Ref("vendor"))
	k := opened.(*key)
	for _, callers := range []int{1, 2, 8} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			sessions := rawSessions(b, k, min(callers, cap(k.sessions.permits)))
			info := append([]byte(sha256Info), digest...)
			raw := func(worker int) error {
				if err := k.module.lib.SignInit(sessions[worker], k.mechanism, k.object); err != nil {
					return err
				}
				_, err := k.module.lib.Sign(sessions[worker], info)
				return err
			}
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			ours := func(int) error {
				_, err := k.SignContext(ctx, digest, crypto.SHA256)
				return err
			}
			// Small portions turn about, and the median of their ratios counts, so that both meet the same load
			// of the machine.
			const portion = 32
			share(b, callers, portion, ours) // opens the sessions
			var ratios []float64
			var total time.Duration
			b.ReportAllocs()
			b.ResetTimer()
			for left := b.N; left > 0; left -= portion {
				n := min(left, portion)
				b.StopTimer()
				before := share(b, len(sessions), n, raw)
				b.StartTimer()
				took := share(b, callers, n, ours)
				b.StopTimer()
				after := share(b, len(sessions), n, raw)
				b.StartTimer()
				ratios = append(ratios, (before+after).Seconds()/2/took.Seconds())
				total += took
			}
			b.StopTimer()
			slices.Sort(ratios)
			b.ReportMetric(ratios[len(ratios)/2], "x-raw")
			b.ReportMetric(float64(b.N)/total.Seconds(), "signatures/s")
		})
	}
}

// share lets workers make n calls between them, and gives the time that took.
func share(b *testing.B, workers, n int, call func(worker int) error) time.Duration {
	b.Helper()
	began := time.Now()
	work := make(chan struct{}, n)
	for range n {
		work <- struct{}{}
	}
	close(work)
	var group sync.WaitGroup
	for worker := range workers {
		group.Go(func() {
			for range work {
				if err := call(worker); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	return time.Since(began)
}

// rawSessions opens n sessions past the pool, until the benchmark ends.
func rawSessions(b *testing.B, k *key, n int) []pkcs11.SessionHandle {
	b.Helper()
	sessions := make([]pkcs11.SessionHandle, n)
	for i := range sessions {
		sh, err := k.module.lib.OpenSession(k.sessions.slot, pkcs11.CKF_SERIAL_SESSION)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = k.module.lib.CloseSession(sh) })
		sessions[i] = sh
	}
	return sessions
}
