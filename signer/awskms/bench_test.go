package awskms

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"runtime"
	"sync"
	"testing"
	"time"

	"hsmsign/signer/awskms/kmstest"
)

// BenchmarkBatch makes 1,000 signatures at 64 in flight while every answer comes 10 ms late, and tells the ratio to
// what that must take: the waits, and the RSA operations of the double measured in the same run on all processors.
func BenchmarkBatch(b *testing.B) {
	const count, delay = 1000, 10 * time.Millisecond
	_, reference := start(b, kmstest.Config{Delay: delay})
	private := vendorKey(b)
	key := mustOpen(b, Options{}, reference)
	var took, least time.Duration
	for b.Loop() {
		began := time.Now()
		signOnly(private, count)
		least += time.Since(began) + count*delay/64
		began = time.Now()
		if o := batch(context.Background(), key, private, count); o.good != count {
			b.Fatalf("%+v", o)
		}
		took += time.Since(began)
	}
	b.ReportMetric(float64(took)/float64(least), "ratio")
	b.ReportMetric(float64(count)*float64(b.N)/took.Seconds(), "sigs/s")
}

// signOnly makes the signatures that the double makes, on all processors.
func signOnly(private *rsa.PrivateKey, count int) {
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			digest := sha256.Sum256(nil)
			for range count / runtime.GOMAXPROCS(0) {
				_, _ = rsa.SignPKCS1v15(nil, private, crypto.SHA256, digest[:]) // the double's own tests look at it
			}
		})
	}
	workers.Wait()
}

// BenchmarkSign is one signature after the other; its allocations are those of the client and of the double
// together, since the double runs in this process.
func BenchmarkSign(b *testing.B) {
	_, reference := start(b, kmstest.Config{})
	key := mustOpen(b, Options{}, reference)
	digest := sha256.Sum256(nil)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := key.SignContext(context.Background(), digest[:], crypto.SHA256); err != nil {
			b.Fatal(err)
		}
	}
}
