package push

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hsmsign/finding"
)

func seeds(t testing.TB, target string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join("testdata", "fuzz", target))
	if err != nil || len(entries) < 3 {
		t.Fatalf("%s: %d seeds, %v", target, len(entries), err)
	}
}

func TestSeeds(t *testing.T) {
	seeds(t, "FuzzParseCertificate")
	seeds(t, "FuzzDecrypt")
}

// Either a refusal of ours, in one bounded line, or a certificate that reads the same when it is alone.
func FuzzParseCertificate(f *testing.F) {
	f.Fuzz(func(t *testing.T, data []byte) {
		cert, err := ParseCertificate(data)
		if err != nil {
			checkRefusal(t, err)
			return
		}
		again, err := ParseCertificate(cert.Raw)
		if err != nil || again.Topic != cert.Topic || !strings.HasPrefix(cert.Topic, topicPrefix) {
			t.Errorf("alone: %v", err)
		}
		for _, f := range cert.Check(now) {
			checkRefusal(t, &f)
		}
		if CheckRenewal(cert, again, now) == nil {
			t.Error("a certificate renews itself")
		}
	})
}

// goldenKey is a fixed key, so that seeds can be encrypted to it.
func goldenKey(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "testdata", "golden", "vendor.key"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return key.(*rsa.PrivateKey)
}

// Whatever is in an attachment, its form does not matter; and nothing longer comes out than went in.
func FuzzDecrypt(f *testing.F) {
	private := goldenKey(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := Decrypt(data, private)
		if err != nil {
			checkRefusal(t, err)
		}
		if len(got) > len(data) {
			t.Errorf("%d bytes out of %d", len(got), len(data))
		}
		if len(data) < 2 || data[0] != 0x30 || data[1] < 0x80 || len(data) > MaxAttachment/3 {
			return
		}
		inHex, hexErr := Decrypt(inLines(data, "\n"), private)
		if !bytes.Equal(got, inHex) || findingID(err) != findingID(hexErr) {
			t.Errorf("DER: %v, hex: %v", err, hexErr)
		}
	})
}

func checkRefusal(t *testing.T, err error) {
	t.Helper()
	var f *finding.Finding
	if !errors.As(err, &f) || f.Subject() != finding.Push || f.Fix == "" || len(f.Message) > 1000 {
		t.Errorf("%T %q", err, err)
	}
}
