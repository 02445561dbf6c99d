package main

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"os"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"hsmsign/testpki"
)

// cmdProfilePKI: profilepki makes ca.pem, and keys with certificates of that CA: profile, device and other. old.pem is a
// certificate of profile.key that expired on 2021-01-01.
func cmdProfilePKI(ts *testscript.TestScript, _ bool, _ []string) {
	authority, err := testpki.New(time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC))
	ts.Check(err)
	write := func(name, label string, der []byte) {
		ts.Check(os.WriteFile(ts.MkAbs(name), pem.EncodeToMemory(&pem.Block{Type: label, Bytes: der}), 0o600))
	}
	write("ca.pem", "CERTIFICATE", authority.Root.Raw)
	for name, issue := range map[string]func(*x509.CertificateRequest, testpki.LeafOptions) (*x509.Certificate, error){
		"profile": authority.IssueProfileSigner, "device": authority.IssueDevice, "other": authority.IssueDevice,
	} {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		ts.Check(err)
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, key)
		ts.Check(err)
		csr, err := x509.ParseCertificateRequest(der)
		ts.Check(err)
		cert, err := issue(csr, testpki.LeafOptions{Name: name, NotBefore: time.Now().Add(-time.Hour)})
		ts.Check(err)
		pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
		ts.Check(err)
		write(name+".key", "PRIVATE KEY", pkcs8)
		write(name+".pem", "CERTIFICATE", cert.Raw)
		if name == "profile" {
			old, err := issue(csr, testpki.LeafOptions{NotBefore: authority.Root.NotBefore, NotAfter: time.Date(2021, 1, 1, 0, 0, 0, 0, time.UTC)})
			ts.Check(err)
			write("old.pem", "CERTIFICATE", old.Raw)
		}
	}
}
