package testpki

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"strings"
	"time"
)

// topicPrefix begins the topic of an MDM push certificate, the subject's UID; a UUID follows.
const topicPrefix = "com.apple.mgmt.External."

// PushOptions are the properties of a push certificate. The zero value means one like Apple's, with a new topic.
type PushOptions struct {
	Topic     string    // empty: a new one; a renewal keeps the topic
	NotBefore time.Time // zero: now
	NotAfter  time.Time // zero: one year after NotBefore
}

// IssuePush issues a push certificate for the CSR's public key, as Apple's portal does for a Push Certificate Request. It
// copies nothing from the CSR's subject. It fails if the CSR's own signature does not verify. The caller verifies the
// request that contains the CSR.
func (a *Authority) IssuePush(csr *x509.CertificateRequest, opts PushOptions) (*x509.Certificate, error) {
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("check the customer CSR's signature: %w", err)
	}
	if opts.Topic == "" {
		opts.Topic = topicPrefix + uuid()
	}
	id, ok := strings.CutPrefix(opts.Topic, topicPrefix)
	if !ok || id == "" {
		return nil, fmt.Errorf("the topic %q does not begin with %q", opts.Topic, topicPrefix)
	}
	if opts.NotBefore.IsZero() {
		opts.NotBefore = time.Now()
	}
	if opts.NotAfter.IsZero() {
		opts.NotAfter = opts.NotBefore.AddDate(1, 0, 0)
	}
	return issue(&x509.Certificate{
		Subject: pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{
			{Type: oidUserID, Value: opts.Topic}, {Type: oidCommonName, Value: "APSP:" + id}, {Type: oidCountry, Value: "US"},
		}},
		NotBefore: opts.NotBefore, NotAfter: opts.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}, a.Integration, csr.PublicKey, a.IntegrationKey)
}

// addIntegration adds the intermediate that issues push certificates.
func (a *Authority) addIntegration(from time.Time) error {
	key, err := rsa.GenerateKey(rand.Reader, keyBits)
	if err != nil {
		return fmt.Errorf("generate the test integration CA's key: %w", err)
	}
	template := authorityTemplate(pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{
		{Type: oidCommonName, Value: pushName}, {Type: oidOrganization, Value: organization}, {Type: oidCountry, Value: "US"},
	}}, from, 10)
	template.MaxPathLenZero = true
	a.Integration, err = issue(template, a.Root, key.Public(), a.RootKey)
	a.IntegrationKey = key
	return err
}

// uuid returns a random UUID (RFC 9562, version 4).
func uuid() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails (Go 1.24)
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
