package certreq_test

import (
	"context"
	"crypto/x509"
	"fmt"

	"hsmsign/keystore"
	"hsmsign/lifecycle/certreq"
)

func Example() {
	ctx := context.Background()
	key := must(keystore.Open(ctx, "file:../../testdata/golden/vendor.key?insecure-mode=allow", keystore.Options{})) // or a key in a token or KMS
	defer func() { _ = key.Close() }()
	subject := certreq.Subject{Email: "mdm@example.com", CommonName: "Example MDM", Country: "US"}
	der := must(certreq.Create(ctx, key, subject))
	csr := must(x509.ParseCertificateRequest(der))
	fmt.Println(csr.Subject.CommonName)
	fmt.Printf("%.35s\n", certreq.EncodePEM(der))
	// Output:
	// Example MDM
	// -----BEGIN CERTIFICATE REQUEST-----
}

// must returns v, and ends the program on an error.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
