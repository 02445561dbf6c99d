package testpki_test

import (
	"fmt"
	"time"

	"hsmsign/internal/testkit"
	"hsmsign/testpki"
)

func Example() {
	authority := testkit.Must(testpki.New(time.Now()))
	csr := testkit.CSR(testkit.Key("example")) // any *x509.CertificateRequest
	vendor := testkit.Must(authority.IssueVendor(csr, testpki.VendorOptions{Organization: "Example Corp"}))
	fmt.Println(vendor.Subject.CommonName) // its chain: vendor, authority.WWDR, authority.Root
	push := testkit.Must(authority.IssuePush(csr, testpki.PushOptions{Topic: "com.apple.mgmt.External.6a3f"}))
	fmt.Println(push.Subject.CommonName)
	// Output:
	// MDM Vendor: Example Corp
	// APSP:6a3f
}
