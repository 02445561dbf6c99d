package testpki_test

import (
	"fmt"
	"time"

	"hsmsign/internal/testkit"
	"hsmsign/testpki"
)

func Example() {
	authority, err := testpki.New(time.Now())
	if err != nil {
		panic(err)
	}
	csr := testkit.CSR(testkit.Key("example")) // any *x509.CertificateRequest
	vendor, err := authority.IssueVendor(csr, testpki.VendorOptions{Organization: "Example Corp"})
	if err != nil {
		panic(err)
	}
	fmt.Println(vendor.Subject.CommonName) // its chain: vendor, authority.WWDR, authority.Root
	push, err := authority.IssuePush(csr, testpki.PushOptions{Topic: "com.apple.mgmt.External.6a3f"})
	if err != nil {
		panic(err)
	}
	fmt.Println(push.Subject.CommonName)
	// Output:
	// MDM Vendor: Example Corp
	// APSP:6a3f
}
