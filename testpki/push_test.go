package testpki_test

import (
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"hsmsign/internal/testkit"
	"hsmsign/testpki"
)

func TestIssuePush(t *testing.T) {
	a := testAuthority()
	key := ecKey()
	first, err := a.IssuePush(testkit.CSR(key), testpki.PushOptions{NotBefore: now})
	if err != nil {
		t.Fatal(err)
	}
	subject := regexp.MustCompile(`^\[{0.9.2342.19200300.100.1.1 com.apple.mgmt.External.([0-9a-f-]{36})} {2.5.4.3 APSP:([0-9a-f-]{36})} {2.5.4.6 US}\]$`)
	if m := subject.FindStringSubmatch(fmt.Sprint(first.Subject.Names)); m == nil || m[1] != m[2] || m[1][14] != '4' {
		t.Errorf("subject %v", first.Subject.Names)
	}
	if !first.NotBefore.Equal(now) || !first.NotAfter.Equal(now.AddDate(1, 0, 0)) || !key.PublicKey.Equal(first.PublicKey) {
		t.Errorf("valid %v to %v, for key %v", first.NotBefore, first.NotAfter, first.PublicKey)
	}
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(a.Root)
	intermediates.AddCert(a.Integration)
	if _, err := first.Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates, CurrentTime: now.Add(time.Hour),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
	second, err := a.IssuePush(testkit.CSR(key), testpki.PushOptions{NotBefore: now})
	if err != nil || fmt.Sprint(second.Subject.Names) == fmt.Sprint(first.Subject.Names) {
		t.Errorf("%v: two customers on one topic", err)
	}
	topic, ok := first.Subject.Names[0].Value.(string)
	renewed, err := a.IssuePush(testkit.CSR(ecKey()), testpki.PushOptions{NotBefore: now.AddDate(0, 11, 0), Topic: topic})
	if !ok || err != nil || fmt.Sprint(renewed.Subject.Names) != fmt.Sprint(first.Subject.Names) {
		t.Errorf("%v: the renewal has the subject %v", err, renewed.Subject.Names)
	}
}

func TestIssuePushRefuses(t *testing.T) {
	a := testAuthority()
	if _, err := a.IssuePush(testkit.CSR(ecKey()), testpki.PushOptions{Topic: "com.example.app"}); err == nil {
		t.Error("the topic of an app is accepted")
	}
	csr := testkit.CSR(ecKey())
	csr.Signature[len(csr.Signature)-1] ^= 1
	_, push := a.IssuePush(csr, testpki.PushOptions{})
	if _, vendor := a.IssueVendor(csr, testpki.VendorOptions{}); push == nil || vendor == nil {
		t.Errorf("a CSR with a wrong signature: %v, %v", push, vendor)
	}
}

// Load adds an integration CA to a folder of an older version, once.
func TestLoadAddsIntegration(t *testing.T) {
	dir := t.TempDir()
	if err := testAuthority().Save(dir); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"integration.pem", "integration.key"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	first, err := testpki.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	again, err := testpki.Load(dir)
	if err != nil || !again.Integration.Equal(first.Integration) || first.Integration.CheckSignatureFrom(first.Root) != nil {
		t.Errorf("%v: the integration CA does not stay", err)
	}
}
