package signertest

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"hsmsign/signer"
)

// BenchmarkInFlight makes 1,000 signatures, 64 at a time, with a key whose store is a double in this process. The double
// has the private key and answers after delay. The metric "ratio" compares the time with its lower limit: the delays, and
// the double's own signatures on all processors, measured in turn. It is the median of the rounds.
func BenchmarkInFlight(b *testing.B, key signer.Signer, private *rsa.PrivateKey, delay time.Duration) {
	const signatures, inFlight = 1000, 64
	digest := sha256.Sum256(nil)
	parallel := func(workers int, work func() error) time.Duration {
		var next atomic.Int64
		var group sync.WaitGroup
		start := time.Now()
		for range workers {
			group.Go(func() {
				for next.Add(1) <= signatures {
					if err := work(); err != nil {
						b.Error(err)
					}
				}
			})
		}
		group.Wait()
		return time.Since(start)
	}
	var all time.Duration
	var ratios []float64
	for b.Loop() {
		took := parallel(inFlight, func() error {
			_, err := signer.Sign(context.Background(), key, []byte("message"), crypto.SHA256)
			return err
		})
		floor := signatures*delay/inFlight + parallel(runtime.GOMAXPROCS(0), func() error {
			_, err := rsa.SignPKCS1v15(nil, private, crypto.SHA256, digest[:])
			return err
		})
		all += took
		ratios = append(ratios, float64(took)/float64(floor))
	}
	slices.Sort(ratios)
	b.ReportMetric(ratios[len(ratios)/2], "ratio")
	b.ReportMetric(signatures*float64(b.N)/all.Seconds(), "signatures/s")
}
