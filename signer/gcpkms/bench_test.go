package gcpkms

import (
	"context"
	"crypto"
	"testing"
	"time"

	"hsmsign/signer"
	"hsmsign/signer/gcpkms/gcpkmstest"
	"hsmsign/signer/signertest"
)

func BenchmarkInFlight(b *testing.B) {
	const delay = 10 * time.Millisecond
	key := open(b, Options{}, at(double(b, gcpkmstest.Config{Delay: delay}), vendorOne))
	signertest.BenchmarkInFlight(b, key, vendorKey(b), delay)
}

// BenchmarkSign is one signature after the other. Its allocations are those of the client and of the double together,
// since the double runs in this process.
func BenchmarkSign(b *testing.B) {
	server := double(b, gcpkmstest.Config{})
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
