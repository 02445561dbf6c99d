//go:build cgo && unix

package pkcs11

import (
	"context"
	"crypto"
	"fmt"
	"slices"
	"testing"
	"time"

	"hsmsign/signer"
)

// BenchmarkIsolatedSign is BenchmarkSign through a worker process: "x-raw" is the rate as a share of what bare
// C_SignInit and C_Sign reach in this process, on as many sessions.
func BenchmarkIsolatedSign(b *testing.B) {
	tok := newToken(b)
	direct := mustOpen(b, tok.Ref("vendor")).(*key)
	isolated, err := Backend(workerOptions()).Open(context.Background(), parse(b, tok.Ref("vendor")))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = isolated.Close() }()
	for _, callers := range []int{1, 2, 8} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) { isolatedSign(b, direct, isolated, callers) })
	}
}

func isolatedSign(b *testing.B, direct *key, isolated signer.Signer, callers int) {
	sessions := rawSessions(b, direct, min(callers, cap(direct.sessions.permits)))
	info := append([]byte(sha256Info), digest...)
	raw := func(worker int) error {
		if err := direct.module.lib.SignInit(sessions[worker], direct.mechanisms.raw, direct.binding.Load().object); err != nil {
			return err
		}
		_, err := direct.module.lib.Sign(sessions[worker], info)
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ours := func(int) error {
		_, err := isolated.SignContext(ctx, digest, crypto.SHA256)
		return err
	}
	// As in BenchmarkSign: small portions turn about, and the median of their ratios counts.
	const portion = 32
	share(b, callers, portion, ours)
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
}
