package testpki_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"time"

	"hsmsign/testpki"
)

func Example() {
	authority := must(testpki.New(time.Now()))
	key := must(rsa.GenerateKey(rand.Reader, 2048))
	csr := must(x509.ParseCertificateRequest(must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key))))
	vendor := must(authority.IssueVendor(csr, testpki.VendorOptions{Organization: "Example Corp"}))
	fmt.Println(vendor.Subject.CommonName) // its chain: vendor, authority.WWDR, authority.Root
	push := must(authority.IssuePush(csr, testpki.PushOptions{Topic: "com.apple.mgmt.External.6a3f"}))
	fmt.Println(push.Subject.CommonName)
	// Output:
	// MDM Vendor: Example Corp
	// APSP:6a3f
}

// must returns v, and ends the program on an error.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
