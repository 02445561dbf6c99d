package pushcert

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/pkcs12"

	"hsmsign/internal/testkit"
	"hsmsign/testpki"
)

// OpenSSL reads key and certificate, and Java lists the entry.
func TestEncodePKCS12(t *testing.T) {
	k := newKit()
	cert := k.issue(k.key, testpki.PushOptions{})
	for _, tt := range []struct {
		name       string
		encryption Encryption
		info       []string // in "openssl pkcs12 -info"
	}{
		{"modern", Modern, []string{"MAC: sha256, Iteration 600000", "PBES2, PBKDF2, AES-256-CBC, Iteration 600000, PRF hmacWithSHA256"}},
		{"legacy", Legacy, []string{"MAC: sha1, Iteration 2048", "pbeWithSHA1And3-KeyTripleDES-CBC, Iteration 2048"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			const passphrase = "correct horse"
			pfx, err := EncodePKCS12(cert, k.key, []byte(passphrase), tt.encryption)
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			path := filepath.Join(dir, "a.pfx")
			password := filepath.Join(dir, "password")
			if err := errors.Join(os.WriteFile(path, pfx, 0o600), os.WriteFile(password, []byte(passphrase), 0o600)); err != nil {
				t.Fatal(err)
			}
			checkPEM(t, k.key, cert, testkit.OpenSSL(t, dir, nil, "pkcs12", "-in", "a.pfx", "-nodes", "-passin", "pass:"+passphrase))
			info, err := exec.Command("openssl", "pkcs12", "-in", path, "-info", "-noout", "-passin", "pass:"+passphrase).CombinedOutput()
			for _, want := range tt.info {
				if err != nil || !strings.Contains(string(info), want) {
					t.Errorf("%v: no %q in\n%s", err, want, info)
				}
			}
			if out, err := exec.Command("openssl", "pkcs12", "-in", path, "-noout", "-passin", "pass:wrong").CombinedOutput(); err == nil {
				t.Errorf("a wrong passphrase is accepted: %s", out)
			}
			// The library of MicroMDM's client, which reads the legacy form only.
			if _, _, err := pkcs12.Decode(pfx, passphrase); (err == nil) != (tt.encryption == Legacy) {
				t.Errorf("golang.org/x/crypto/pkcs12: %v", err)
			}
			keytool, err := exec.LookPath("keytool")
			if err != nil {
				t.Fatal("no keytool: run make deps")
			}
			out, err := exec.Command(keytool, "-list", "-v", "-storetype", "PKCS12", "-keystore", path, "-storepass:file", password).CombinedOutput()
			if err != nil || !strings.Contains(string(out), "PrivateKeyEntry") || !strings.Contains(string(out), cert.Topic) {
				t.Errorf("keytool: %v\n%s", err, out)
			}
		})
	}
	if _, err := EncodePKCS12(k.issue(k.other, testpki.PushOptions{}), k.key, []byte("x"), Modern); testkit.FindingID(err) != "push.key-mismatch" {
		t.Errorf("the certificate of another key: %v", err)
	}
	for _, passphrase := range []string{"hörse", "\U0001F40E", "a\nb", "\xff"} {
		if _, err := EncodePKCS12(cert, k.key, []byte(passphrase), Modern); !errors.Is(err, ErrPassphrase) {
			t.Errorf("passphrase %q: %v", passphrase, err)
		}
	}
}

// checkPEM checks that a text contains exactly this certificate and this key.
func checkPEM(t *testing.T, private *rsa.PrivateKey, cert *Certificate, text []byte) {
	t.Helper()
	seen := map[string]int{}
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		seen[block.Type]++
		switch block.Type {
		case "CERTIFICATE":
			if !bytes.Equal(block.Bytes, cert.Raw) {
				t.Error("another certificate")
			}
		case "PRIVATE KEY":
			if key, err := x509.ParsePKCS8PrivateKey(block.Bytes); err != nil || !private.Equal(key) {
				t.Errorf("another key (%v)", err)
			}
		}
	}
	if len(seen) != 2 || seen["CERTIFICATE"] != 1 || seen["PRIVATE KEY"] != 1 {
		t.Errorf("blocks %v", seen)
	}
}
