package gcpkms

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
	"hsmsign/signer/gcpkms/kmstest"
)

// BenchmarkBatch makes 1,000 signatures with 64 in flight, each answer 10 ms late, and compares with what cannot be
// less: the waits, and the double's own signatures, which are measured turn about on all processors. The ratio is the
// median of the rounds.
func BenchmarkBatch(b *testing.B) {
	const signatures, inFlight, delay = 1000, 64, 10 * time.Millisecond
	server := double(b, kmstest.Config{Delay: delay})
	key := open(b, Options{}, at(server, vendorOne))
	private, digest := vendorKey(b), sha256.Sum256(nil)
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
		took := parallel(inFlight, func() error { return sign(context.Background(), key, "message") })
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

// BenchmarkSign is one signature after the other. Its allocations are those of the client and of the double together,
// since the double runs in this process.
func BenchmarkSign(b *testing.B) {
	server := double(b, kmstest.Config{})
	key := open(b, Options{}, at(server, vendorOne))
	opened := total(server)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := signer.Sign(context.Background(), key, []byte("message"), crypto.SHA256); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(total(server)-opened)/float64(b.N), "requests/op")
}
