package gcpkms

import (
	"testing"
	"time"

	"hsmsign/internal/signerkit"
	"hsmsign/internal/testkit"
	"hsmsign/signer/gcpkms/gcpkmstest"
	"hsmsign/signer/signertest"
)

func BenchmarkInFlight(b *testing.B) {
	const delay = 10 * time.Millisecond
	_, reference := start(b, gcpkmstest.Config{Delay: delay})
	signertest.BenchmarkInFlight(b, signerkit.MustOpen(b, Backend(Options{}), reference, nil), testkit.GoldenKey(b), delay)
}

func BenchmarkSign(b *testing.B) {
	server, reference := start(b, gcpkmstest.Config{})
	signerkit.BenchmarkSign(b, server, signerkit.MustOpen(b, Backend(Options{}), reference, nil))
}
