package oidc_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"testing"
	"time"

	"hsmsign/internal/testkit"
	"hsmsign/server/authn/oidc/oidctest"
)

// BenchmarkVerify verifies tokens whose keys are known. The metric ratio is that to one bare verification of the same kind of
// signature in the same run.
func BenchmarkVerify(b *testing.B) {
	double := oidctest.New(b, "")
	for _, alg := range []string{"RS256", "ES256"} {
		b.Run(alg, func(b *testing.B) {
			key := oidctest.NewKey(b, "bench "+alg, alg)
			double.SetKeys(key)
			now := time.Now().Add(time.Minute)
			token := key.Sign(oidctest.Claims("github", double.URL, audience, now), nil)
			issuers := open(b, double)
			if _, _, err := issuers.Verify(b.Context(), token, now); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := issuers.Verify(b.Context(), token, now); err != nil {
					b.Fatal(err)
				}
			}
			each := float64(b.Elapsed()) / float64(b.N)
			b.ReportMetric(each/bare(b, key), "ratio")
		})
	}
}

// bare returns the nanoseconds of one verification of a signature.
func bare(b *testing.B, key oidctest.Key) float64 {
	digest := sha256.Sum256([]byte("text"))
	signature := testkit.Must(key.Signer.Sign(nil, digest[:], crypto.SHA256))
	const n = 500
	begun := time.Now()
	for range n {
		ok := false
		switch public := key.Public().(type) {
		case *rsa.PublicKey:
			ok = rsa.VerifyPKCS1v15(public, crypto.SHA256, digest[:], signature) == nil
		case *ecdsa.PublicKey:
			ok = ecdsa.VerifyASN1(public, digest[:], signature)
		}
		if !ok {
			b.Fatal("the signature does not verify")
		}
	}
	return float64(time.Since(begun)) / n
}
