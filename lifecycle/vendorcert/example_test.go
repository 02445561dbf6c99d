package vendorcert_test

import (
	"context"
	"crypto/x509"
	"fmt"
	"time"

	"hsmsign/internal/testkit"
	"hsmsign/lifecycle/certreq"
	"hsmsign/lifecycle/vendorcert"
	"hsmsign/testpki"
)

// A vendor makes its CSR, gets a certificate for it, and checks it. Here a test PKI issues the certificate instead of Apple.
func Example() {
	ctx := context.Background()
	key := testkit.NewSigner(testkit.Key("example")) // any signer.Signer
	subject := certreq.Subject{Email: "mdm@example.com", CommonName: "Example", Organization: "Example Corp", Country: "US"}
	der := testkit.Must(vendorcert.CreateCSR(ctx, key, subject))

	authority := testkit.Must(testpki.New(time.Now()))
	csr := testkit.Must(x509.ParseCertificateRequest(der))
	cert := testkit.Must(authority.IssueVendor(csr, testpki.VendorOptions{}))

	options := vendorcert.ImportOptions{Extra: []*x509.Certificate{authority.WWDR}, TrustRoots: []*x509.Certificate{authority.Root}}
	c := testkit.Must(vendorcert.Import(ctx, key, cert.Raw, options))
	fmt.Println(c.Leaf().Subject.CommonName, len(c.Certs))
	// Output: MDM Vendor: Example Corp 3
}
