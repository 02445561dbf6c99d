package awskms

import (
	"testing"
	"time"

	"hsmsign/internal/signerkit"
	"hsmsign/internal/testkit"
	"hsmsign/signer/awskms/awskmstest"
	"hsmsign/signer/signertest"
)

func BenchmarkInFlight(b *testing.B) {
	const delay = 10 * time.Millisecond
	_, reference := start(b, awskmstest.Config{Delay: delay})
	signertest.BenchmarkInFlight(b, signerkit.MustOpen(b, Backend(Options{}), reference, nil), testkit.GoldenKey(b), delay)
}

func BenchmarkSign(b *testing.B) {
	server, reference := start(b, awskmstest.Config{})
	signerkit.BenchmarkSign(b, server, signerkit.MustOpen(b, Backend(Options{}), reference, nil))
}
