package request_test

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"

	"hsmsign/chain"
	"hsmsign/fault"
	"hsmsign/request"
)

func read(name string) []byte {
	return must(os.ReadFile("../testdata/golden/" + name))
}

// Make a Push Certificate Request from a customer's CSR, and check it. The key is a file here; signer.Sign signs with a key
// in any store.
func Example() {
	block, _ := pem.Decode(read("vendor.key"))
	key := must(x509.ParsePKCS8PrivateKey(block.Bytes))
	certs := must(chain.Parse(read("chain.pem")))

	csr := must(request.DecodeCSR(read("customer.csr")))
	digest := sha256.Sum256(csr.DER)
	signature := must(rsa.SignPKCS1v15(nil, key.(*rsa.PrivateKey), crypto.SHA256, digest[:]))
	r := request.Request{CSR: csr.DER, Chain: (&chain.Chain{Certs: certs}).Raw(), Signature: signature}
	file := must(r.Encode(request.Base64))

	report := request.Verify(file, request.VerifyOptions{CSR: csr, TrustRoots: certs[2:]})
	fmt.Println(report.OK(), report.Digest)
	// Output: true SHA-256
}

func ExampleDecodeCSR() {
	_, err := request.DecodeCSR([]byte("<!doctype html>"))
	fmt.Println(err)
	fmt.Println(fault.Hint(err))
	// Output:
	// neither PEM nor DER nor base64 of them: this is an HTML page
	// ask the customer for the CSR file that the MDM server made
}

// must returns v, and ends the program on an error.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
