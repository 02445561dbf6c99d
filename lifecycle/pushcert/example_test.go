package pushcert_test

import (
	"fmt"
	"time"

	"hsmsign/internal/testkit"
	"hsmsign/lifecycle/pushcert"
	"hsmsign/testpki"
)

// Check the certificate from Apple's portal and write the file for an MDM server. Here a test PKI issues the certificate.
func Example() {
	authority := testkit.Must(testpki.New(time.Now()))
	key := testkit.Key("example")
	issued := testkit.Must(authority.IssuePush(testkit.CSR(key), testpki.PushOptions{Topic: "com.apple.mgmt.External.6a3f"}))

	cert := testkit.Must(pushcert.ParseCertificate(issued.Raw)) // the downloaded file
	fmt.Println(cert.Topic, len(cert.Check(time.Now())))
	pfx, err := pushcert.EncodePKCS12(cert, key, []byte("passphrase"), pushcert.Modern)
	fmt.Println(len(pfx) > 0, err)
	// Output:
	// com.apple.mgmt.External.6a3f 0
	// true <nil>
}
