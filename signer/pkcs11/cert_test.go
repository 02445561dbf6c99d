//go:build cgo

package pkcs11

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"hsmsign/signer"
)

// goldenCert is the first certificate of a golden file.
func goldenCert(t *testing.T, name string) *x509.Certificate {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "testdata", "golden", name))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestCertificates(t *testing.T) {
	tok := newToken(t)
	vendor := goldenCert(t, "chain.pem")
	store := Backend(Options{}).Certificates
	ref := parse(t, tok.Ref("vendor"))
	_, err := store.Load(t.Context(), ref)
	refused(t, err, signer.ErrKeyNotFound, "no certificate", tok.Label)

	refused(t, store.Import(t.Context(), ref, goldenCert(t, "root.pem")), signer.ErrBadKey, "another key's")
	refused(t, store.Import(t.Context(), parse(t, tok.Ref("none")), vendor), signer.ErrKeyNotFound, `"vendor"`)
	if out := pkcs11Tool(t, tok, "-O", "--type", "cert"); strings.Contains(out, "Certificate Object") {
		t.Fatalf("what was refused was stored:\n%s", out)
	}
	for range 2 {
		if err := store.Import(t.Context(), ref, vendor); err != nil {
			t.Fatal(err)
		}
	}
	out := pkcs11Tool(t, tok, "-O", "--type", "cert")
	if strings.Count(out, "Certificate Object") != 1 || !strings.Contains(out, "label:      vendor") || !strings.Contains(out, "ID:         01") ||
		!strings.Contains(out, vendor.Subject.CommonName) {
		t.Errorf("pkcs11-tool sees:\n%s", out)
	}
	file := filepath.Join(t.TempDir(), "out.der")
	pkcs11Tool(t, tok, "--read-object", "--type", "cert", "--id", "01", "--output-file", file)
	if der, err := os.ReadFile(file); err != nil || !bytes.Equal(der, vendor.Raw) {
		t.Errorf("pkcs11-tool reads another certificate: %v", err)
	}
	bare, _, _ := strings.Cut(tok.Ref("vendor"), "&pin-source")
	s := script(t, tok.Module)
	for _, named := range []string{
		bare, // no PIN is needed
		strings.Replace(bare, "?", ";type=cert?", 1), strings.Replace(bare, "object=vendor", "id=%01", 1), strings.Replace(bare, ";object=vendor", "", 1),
	} {
		certs, err := store.Load(t.Context(), parse(t, named))
		if err != nil || len(certs) != 1 || !certs[0].Equal(vendor) {
			t.Errorf("%s: %v, %v", named, certs, err)
		}
	}
	if n := s.counts()["C_Login"]; n != 0 {
		t.Errorf("%d logins", n)
	}
	infos, err := Backend(Options{}).List(t.Context(), ref)
	if err != nil || len(infos) != 1 || !vendor.Equal(infos[0].Cert) {
		t.Errorf("%v, %v; want the certificate beside the key", infos, err)
	}
}

// A certificate object that holds something else is refused by name, and does not hide the key beside it.
func TestDamagedCertificate(t *testing.T) {
	tok := newToken(t)
	if err := Backend(Options{}).Certificates.Import(t.Context(), parse(t, tok.Ref("vendor")), goldenCert(t, "chain.pem")); err != nil {
		t.Fatal(err)
	}
	s := script(t, tok.Module)
	honest := s.cryptoki
	for value, says := range map[string]string{"no certificate": "is none", strings.Repeat("x", maxCertificate+1): "65537 bytes"} {
		s.cryptoki = liar{honest, map[uint][]byte{pkcs11.CKA_VALUE: []byte(value)}}
		_, err := Backend(Options{}).Certificates.Load(t.Context(), parse(t, tok.Ref("vendor")))
		refused(t, err, signer.ErrBadKey, says)
		infos, err := Backend(Options{}).List(t.Context(), parse(t, tok.Ref("vendor")))
		if err != nil || len(infos) != 1 || infos[0].Cert != nil {
			t.Errorf("%v, %v; want the key", infos, err)
		}
	}
}
