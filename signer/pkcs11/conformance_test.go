//go:build cgo && linux

package pkcs11

import (
	"testing"

	"hsmsign/internal/testkit"
	"hsmsign/signer/signertest"
	softhsmtest "hsmsign/softhsm-test"
)

func TestConformance(t *testing.T) {
	for name, opts := range map[string]Options{"here": {}, "isolated": workerOptions(), "p11-kit": {}} {
		t.Run(name, func(t *testing.T) {
			tok := newToken(t)
			for id := range byte(2) {
				tok.Import(t, testkit.File(t, "golden/vendor.key"), "twin", []byte{2 + id})
			}
			ref := tok.Ref
			if name == "p11-kit" {
				ref = softhsmtest.NewP11Kit(t, tok).Ref
			}
			signertest.Run(t, signertest.Fixture{
				Backend: Backend(opts), Ref: ref("vendor"), Public: &testkit.GoldenKey(t).PublicKey, Missing: ref("no-such-key"),
				Ambiguous: ref("twin"), Matches: []string{`object="twin" id=%02`, `object="twin" id=%03`}, Secrets: []string{tok.PIN},
			})
		})
	}
}

// BenchmarkSign signs with 1, 2 and 8 callers; see compareWithRaw.
func BenchmarkSign(b *testing.B) {
	k := mustOpen(b, newToken(b).Ref("vendor"))
	compareWithRaw(b, k, k)
}

// BenchmarkSignP11Kit is BenchmarkSign through p11-kit's socket.
func BenchmarkSignP11Kit(b *testing.B) {
	k := mustOpen(b, softhsmtest.NewP11Kit(b, newToken(b)).Ref("vendor"))
	compareWithRaw(b, k, k)
}

// BenchmarkIsolatedSign is BenchmarkSign through a worker process, compared with bare calls in this process.
func BenchmarkIsolatedSign(b *testing.B) {
	ref := newToken(b).Ref("vendor")
	compareWithRaw(b, mustOpen(b, ref), mustOpenWith(b, workerOptions(), ref))
}
