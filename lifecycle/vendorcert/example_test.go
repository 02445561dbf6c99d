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
	der, err := vendorcert.CreateCSR(ctx, key, subject)
	if err != nil {
		panic(err)
	}

	authority, err := testpki.New(time.Now())
	if err != nil {
		panic(err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		panic(err)
	}
	cert, err := authority.IssueVendor(csr, testpki.VendorOptions{})
	if err != nil {
		panic(err)
	}

	c, err := vendorcert.Import(ctx, key, cert.Raw, vendorcert.ImportOptions{
		Extra:      []*x509.Certificate{authority.WWDR},
		TrustRoots: []*x509.Certificate{authority.Root},
	})
	if err != nil {
		panic(err)
	}
	fmt.Println(c.Leaf().Subject.CommonName, len(c.Certs))
	// Output: MDM Vendor: Example Corp 3
}
