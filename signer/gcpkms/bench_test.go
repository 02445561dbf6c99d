package gcpkms

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"hsmsign/signer"
	"hsmsign/signer/gcpkms/kmstest"
)

// BenchmarkInFlight makes 1,000 signatures with 64 in flight, each answer 10 ms late, and compares with what cannot
// be less: the waits, and the double's own signatures and the checks of them, which share this machine's cores and
// are measured in the same run.
func BenchmarkInFlight(b *testing.B) {
	const signatures, inFlight, delay = 1000, 64, 10 * time.Millisecond
	private := vendorKey(b)
	digest := sha256.Sum256([]byte("message"))
	server := double(b, kmstest.Config{Delay: delay})
	key := open(b, Options{}, at(server, vendorOne))
	parallel := func(workers int, work func()) time.Duration {
		var next atomic.Int64
		var group sync.WaitGroup
		start := time.Now()
		for range workers {
			group.Go(func() {
				for next.Add(1) <= signatures {
					work()
				}
			})
		}
		group.Wait()
		return time.Since(start)
	}
	var took, floor time.Duration
	for b.Loop() {
		took += parallel(inFlight, func() {
			if _, err := signer.Sign(context.Background(), key, []byte("message"), crypto.SHA256); err != nil {
				b.Error(err)
			}
		})
		floor += time.Duration(signatures)*delay/inFlight + parallel(inFlight, func() {
			sig, err := rsa.SignPKCS1v15(nil, private, crypto.SHA256, digest[:])
			if err == nil {
				err = rsa.VerifyPKCS1v15(&private.PublicKey, crypto.SHA256, digest[:], sig)
			}
			if err != nil {
				b.Error(err)
			}
		})
	}
	b.ReportMetric(float64(took)/float64(floor), "ratio")
	b.ReportMetric(float64(signatures*b.N)/took.Seconds(), "signatures/s")
}

// BenchmarkSign is one signature after the other; its allocations include the double's.
func BenchmarkSign(b *testing.B) {
	server := double(b, kmstest.Config{})
	key := open(b, Options{}, at(server, vendorOne))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := signer.Sign(context.Background(), key, []byte("message"), crypto.SHA256); err != nil {
			b.Fatal(err)
		}
	}
}
