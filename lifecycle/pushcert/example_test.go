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
	authority, err := testpki.New(time.Now())
	if err != nil {
		panic(err)
	}
	key := testkit.Key("example")
	issued, err := authority.IssuePush(testkit.CSR(key), testpki.PushOptions{Topic: "com.apple.mgmt.External.6a3f"})
	if err != nil {
		panic(err)
	}

	cert, err := pushcert.ParseCertificate(issued.Raw) // the downloaded file
	if err != nil {
		panic(err)
	}
	fmt.Println(cert.Topic, len(cert.Check(time.Now())))
	pfx, err := pushcert.EncodePKCS12(cert, key, []byte("passphrase"), pushcert.Modern)
	fmt.Println(len(pfx) > 0, err)
	// Output:
	// com.apple.mgmt.External.6a3f 0
	// true <nil>
}
