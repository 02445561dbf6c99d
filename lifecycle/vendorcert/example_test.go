package vendorcert_test

import (
	"context"
	"crypto/x509"
	"fmt"
	"time"

	"hsmsign/keystore"
	"hsmsign/lifecycle/certreq"
	"hsmsign/lifecycle/vendorcert"
	"hsmsign/testpki"
)

// A vendor makes its CSR, gets a certificate for it, and checks it. Here a test PKI issues the certificate instead of Apple.
func Example() {
	ctx := context.Background()
	key := must(keystore.Open(ctx, "file:../../testdata/golden/vendor.key?insecure-mode=allow", keystore.Options{})) // or a key in a token or KMS
	defer func() { _ = key.Close() }()
	subject := certreq.Subject{Email: "mdm@example.com", CommonName: "Example", Organization: "Example Corp", Country: "US"}
	der := must(vendorcert.CreateCSR(ctx, key, subject))

	authority := must(testpki.New(time.Now()))
	csr := must(x509.ParseCertificateRequest(der))
	cert := must(authority.IssueVendor(csr, testpki.VendorOptions{}))

	options := vendorcert.ImportOptions{Extra: []*x509.Certificate{authority.WWDR}, TrustRoots: []*x509.Certificate{authority.Root}}
	c := must(vendorcert.Import(ctx, key, cert.Raw, options))
	fmt.Println(c.Leaf().Subject.CommonName, len(c.Certs))
	// Output: MDM Vendor: Example Corp 3
}

// must returns v, and ends the program on an error.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
