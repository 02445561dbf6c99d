//go:build cgo && linux

package pkcs11

import (
	"crypto/rsa"
	"os"
	"testing"

	"hsmsign/internal/testkit"
	"hsmsign/secret"
	"hsmsign/signer/pkcs11/internal/uri"
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

// tokenVariable is a full reference to an RSA key of any real token: HSMSIGN_TEST_PKCS11='pkcs11:token=...' go test -run
// TestAnyToken ./signer/pkcs11. Nothing is written to the token; some hundred signatures are made.
const tokenVariable = "HSMSIGN_TEST_PKCS11" // #nosec G101 -- the name of a variable

func TestAnyToken(t *testing.T) {
	text := os.Getenv(tokenVariable)
	if text == "" {
		t.Skipf("%s names no key of a token", tokenVariable)
	}
	opts := Options{Secrets: secret.Reader{Getenv: os.Getenv}, Warn: func(text string) { t.Log(text) }}
	key, err := open(t, opts, text)
	if err != nil {
		t.Fatal(err)
	}
	pub := key.Public().(*rsa.PublicKey)
	t.Logf("RSA-%d, %+v", pub.N.BitLen(), stats(key))
	closeKey(t, key)
	missing := parse(t, text)
	path, err := uri.Parse(missing.Path)
	if err != nil {
		t.Fatal(err)
	}
	other := uri.Path{{Name: "object", Value: "no such key"}}
	for _, a := range path {
		if a.Name != "object" && a.Name != "id" {
			other = append(other, a)
		}
	}
	missing.Path = other.String()
	signertest.Run(t, signertest.Fixture{Backend: Backend(opts), Ref: text, Public: pub, Missing: missing.String()})
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
