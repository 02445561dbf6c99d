package awskms

import (
	"context"
	"crypto"
	"testing"
	"time"

	"hsmsign/internal/testkit"
	"hsmsign/signer"
	"hsmsign/signer/awskms/awskmstest"
	"hsmsign/signer/signertest"
)

func BenchmarkInFlight(b *testing.B) {
	const delay = 10 * time.Millisecond
	_, reference := start(b, awskmstest.Config{Delay: delay})
	signertest.BenchmarkInFlight(b, mustOpen(b, Options{}, reference, nil), testkit.GoldenKey(b), delay)
}

// BenchmarkSign makes one signature after the other. Its allocations include those of the double, which runs in this
// process.
func BenchmarkSign(b *testing.B) {
	server, reference := start(b, awskmstest.Config{})
	key := mustOpen(b, Options{}, reference, nil)
	opened := server.Calls("*")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := signer.Sign(context.Background(), key, []byte("message"), crypto.SHA256); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(server.Calls("*")-opened)/float64(b.N), "requests/op")
}
