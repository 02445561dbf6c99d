package pushcert_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"time"

	"hsmsign/lifecycle/pushcert"
	"hsmsign/testpki"
)

// Check the certificate from Apple's portal and write the file for an MDM server. Here a test PKI issues the certificate.
func Example() {
	authority := must(testpki.New(time.Now()))
	key := must(rsa.GenerateKey(rand.Reader, 2048))
	der := must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key))
	issued := must(authority.IssuePush(must(x509.ParseCertificateRequest(der)), testpki.PushOptions{Topic: "com.apple.mgmt.External.6a3f"}))

	cert := must(pushcert.ParseCertificate(issued.Raw)) // the downloaded file
	fmt.Println(cert.Topic, len(cert.Check(time.Now())))
	pfx, err := pushcert.EncodePKCS12(cert, key, []byte("passphrase"), pushcert.Modern)
	fmt.Println(len(pfx) > 0, err)
	// Output:
	// com.apple.mgmt.External.6a3f 0
	// true <nil>
}

// must returns v, and ends the program on an error.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
