package mdmcert

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/smallstep/pkcs7"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
)

var now = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

// private returns the key that attachments are encrypted to.
func private() *rsa.PrivateKey { return testkit.Key("recipient") }

// secret is about as long as a request, and not a multiple of a block.
var secret = []byte(base64.StdEncoding.EncodeToString(bytes.Repeat([]byte("<plist>"), 1001)))

// recipient returns a certificate of the key.
func recipient(key *rsa.PrivateKey) *x509.Certificate {
	return testkit.Must(x509.ParseCertificate(testkit.Must(NewRecipient(context.Background(), testkit.NewSigner(key), now))))
}

// recipients returns a folder with certificate and key of private, a.pem, and of another key, b.pem.
func recipients(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for name, key := range map[string]*rsa.PrivateKey{"a.pem": private(), "b.pem": testkit.Key("other")} {
		text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: recipient(key).Raw})
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})...)
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// inLines returns hex digits in lines that end with end.
func inLines(der []byte, end string) []byte {
	var b bytes.Buffer
	for line := range slices.Chunk([]byte(hex.EncodeToString(der)), 60) {
		b.Write(line)
		b.WriteString(end)
	}
	return b.Bytes()
}

func encrypt(t testing.TB, dir string, args ...string) []byte {
	t.Helper()
	return testkit.OpenSSL(t, dir, secret, append([]string{args[0], "-encrypt", "-binary", "-outform", "DER"}, args[1:]...)...)
}

// Decrypt reads the output of OpenSSL's commands, in every form of hex.
func TestDecryptOpenSSL(t *testing.T) {
	dir := recipients(t)
	for _, args := range [][]string{
		{"cms", "-aes-128-cbc", "a.pem"}, {"cms", "-aes-192-cbc", "a.pem"}, {"cms", "-aes-256-cbc", "a.pem"}, {"cms", "-des3", "a.pem"},
		{"smime", "-aes-256-cbc", "a.pem"}, {"smime", "-des3", "b.pem", "a.pem"}, {"cms", "-aes-256-cbc", "b.pem", "a.pem"},
	} {
		der := encrypt(t, dir, args...)
		for form, data := range map[string][]byte{"DER": der, "hex": inLines(der, "\n"), "CRLF": inLines(der, "\r\n"), "HEX": bytes.ToUpper(inLines(der, "")), "BOM": append([]byte("\ufeff"), inLines(der, "\n")...)} {
			if got, err := Decrypt(data, private()); err != nil || !bytes.Equal(got, secret) {
				t.Errorf("%v as %s: %v, %d bytes", args, form, err, len(got))
			}
		}
	}
}

// Decrypt reads the output of the PKCS#7 library of Go services, whose default is DES.
func TestDecryptPKCS7Library(t *testing.T) {
	before := pkcs7.ContentEncryptionAlgorithm
	defer func() { pkcs7.ContentEncryptionAlgorithm = before }()
	for _, algorithm := range []int{pkcs7.EncryptionAlgorithmDESCBC, pkcs7.EncryptionAlgorithmAES128CBC, pkcs7.EncryptionAlgorithmAES256CBC} {
		pkcs7.ContentEncryptionAlgorithm = algorithm
		der := testkit.Must(pkcs7.Encrypt(bytes.Clone(secret), []*x509.Certificate{recipient(private())}))
		if got, err := Decrypt(inLines(der, "\n"), private()); err != nil || !bytes.Equal(got, secret) {
			t.Errorf("algorithm %d: %v, %d bytes", algorithm, err, len(got))
		}
	}
}

// OpenSSL, the library of MicroMDM's client, and Decrypt read the output of Encrypt.
func TestEncrypt(t *testing.T) {
	dir, cert := recipients(t), recipient(private())
	for _, content := range [][]byte{secret, []byte("short"), nil} {
		// OpenSSL selects the recipient by the certificate in the file.
		block, _ := pem.Decode(testkit.Must(os.ReadFile(filepath.Join(dir, "a.pem"))))
		data, err := Encrypt(content, block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		der, err := hex.DecodeString(string(data)) // as MicroMDM's client: no newline
		if err != nil {
			t.Fatal(err)
		}
		for _, command := range []string{"cms", "smime"} {
			got := testkit.OpenSSL(t, dir, der, command, "-decrypt", "-binary", "-inform", "DER", "-recip", "a.pem", "-inkey", "a.pem")
			if !bytes.Equal(got, content) {
				t.Errorf("openssl %s reads %d bytes, want %d", command, len(got), len(content))
			}
		}
		if got, err := Decrypt(data, private()); err != nil || !bytes.Equal(got, content) {
			t.Errorf("Decrypt: %d bytes, %v; want %d", len(got), err, len(content))
		}
		if _, err := Decrypt(data, testkit.Key("other")); testkit.FindingID(err) != "push.recipient" {
			t.Errorf("another key: %v", err)
		}
		if again := testkit.Must(Encrypt(content, block.Bytes)); bytes.Equal(again, data) {
			t.Error("two answers are equal")
		}
	}
	p7 := testkit.Must(pkcs7.Parse(testkit.Must(hex.DecodeString(string(testkit.Must(Encrypt(secret, cert.Raw)))))))
	if got, err := p7.Decrypt(cert, private()); err != nil || !bytes.Equal(got, secret) {
		t.Errorf("the PKCS#7 library reads %d bytes, %v", len(got), err)
	}
	if _, err := Encrypt(secret, []byte("certificate")); !errors.Is(err, ErrOrder) {
		t.Errorf("not a certificate: %v", err)
	}
}

func TestDecryptRefuses(t *testing.T) {
	dir := recipients(t)
	good := encrypt(t, dir, "cms", "-aes-256-cbc", "a.pem")
	for _, tt := range []struct {
		name    string
		data    []byte
		id      string
		message string
	}{
		{"another's", encrypt(t, dir, "cms", "-aes-256-cbc", "b.pem"), "push.recipient", "not encrypted to this key"},
		{"OAEP", encrypt(t, dir, "cms", "-aes-256-cbc", "-recip", "a.pem", "-keyopt", "rsa_padding_mode:oaep"), "push.attachment", "RSAES-OAEP"},
		{"AES-GCM", encrypt(t, dir, "cms", "-aes-256-gcm", "a.pem"), "push.attachment", "AES-GCM"},
		{"cipher", encrypt(t, dir, "cms", "-camellia256", "a.pem"), "push.attachment", "cipher: 1.2.392"},
		{"other PKCS#7", testkit.OpenSSL(t, dir, secret, "cms", "-digest_create", "-binary", "-outform", "DER"), "push.attachment", "of type"},
		{"cut", good[:len(good)-1], "push.attachment", "cut short"},
		{"trailing", append(bytes.Clone(good), 0), "push.attachment", ""},
		{"half a byte", inLines(good, "\n")[1:], "push.attachment", "neither hex"},
		{"page", []byte("<html>expired</html>"), "push.attachment", "an HTML page, neither hex"},
		{"JKS", []byte("\xfe\xed\xfe\xed\x00\x00\x00\x02"), "push.attachment", "a Java keystore (JKS or JCEKS), neither hex"},
		{"key", testkit.OpenSSL(t, dir, nil, "pkey", "-in", "a.pem", "-outform", "DER"), "push.attachment", "a private key, not PKCS#7"},
		{"empty", nil, "push.attachment", "empty"},
		{"blank", []byte(" \n"), "push.attachment", "empty"},
		{"large", make([]byte, MaxAttachment+1), "push.attachment", "larger than"},
	} {
		got, err := Decrypt(tt.data, private())
		if testkit.FindingID(err) != tt.id || !strings.Contains(err.Error(), tt.message) || got != nil {
			t.Errorf("%s: %d bytes, %v; want %q with %q", tt.name, len(got), err, tt.id, tt.message)
		}
	}
}

func TestNewRecipient(t *testing.T) {
	cert := recipient(private())
	if err := cert.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature); err != nil {
		t.Error(err)
	}
	if cert.KeyUsage != x509.KeyUsageKeyEncipherment || cert.IsCA || !private().PublicKey.Equal(cert.PublicKey) || now.Before(cert.NotBefore) || cert.NotAfter.Before(now.AddDate(0, 6, 0)) {
		t.Errorf("usage %b, CA %v, valid %v to %v", cert.KeyUsage, cert.IsCA, cert.NotBefore, cert.NotAfter)
	}
	if cert.SerialNumber.Cmp(recipient(private()).SerialNumber) == 0 {
		t.Error("two recipients have the same serial number")
	}
}

func TestSeeds(t *testing.T) { testkit.Seeds(t, "FuzzDecrypt", 3) }

// FuzzDecrypt checks that the form of an attachment does not matter, and that the content is not longer than it.
func FuzzDecrypt(f *testing.F) {
	key := testkit.GoldenKey(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := Decrypt(data, key)
		if found, ok := errors.AsType[*fault.Finding](err); err != nil && (!ok || found.Subject() != fault.Push || found.Fix == "" || len(found.Message) > 1000) {
			t.Errorf("%T %q", err, err)
		}
		if len(got) > len(data) {
			t.Errorf("%d bytes out of %d", len(got), len(data))
		}
		if len(data) < 2 || data[0] != 0x30 || data[1] < 0x80 || len(data) > MaxAttachment/3 {
			return
		}
		inHex, hexErr := Decrypt(inLines(data, "\n"), key)
		if !bytes.Equal(got, inHex) || testkit.FindingID(err) != testkit.FindingID(hexErr) {
			t.Errorf("DER: %v, hex: %v", err, hexErr)
		}
	})
}
