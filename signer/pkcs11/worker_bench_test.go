//go:build cgo && unix

package pkcs11

import (
	"context"
	"testing"

	"hsmsign/signer"
)

// BenchmarkIsolatedSign is BenchmarkSign through a worker process, compared with bare calls in this process.
func BenchmarkIsolatedSign(b *testing.B) {
	tok := newToken(b)
	direct := mustOpen(b, tok.Ref("vendor")).(*key)
	isolated, err := Backend(workerOptions()).Open(context.Background(), parse(b, tok.Ref("vendor")), signer.OpenOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = isolated.Close() }()
	compareWithRaw(b, direct, isolated)
}
