package certreq_test

import (
	"context"
	"crypto/x509"
	"fmt"

	"hsmsign/internal/testkit"
	"hsmsign/lifecycle/certreq"
)

func Example() {
	key := testkit.NewSigner(testkit.Key("example")) // any signer.Signer
	subject := certreq.Subject{Email: "mdm@example.com", CommonName: "Example MDM", Country: "US"}
	der := testkit.Must(certreq.Create(context.Background(), key, subject))
	csr := testkit.Must(x509.ParseCertificateRequest(der))
	fmt.Println(csr.Subject.CommonName)
	fmt.Printf("%.35s\n", certreq.EncodePEM(der))
	// Output:
	// Example MDM
	// -----BEGIN CERTIFICATE REQUEST-----
}
