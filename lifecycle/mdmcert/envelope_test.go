package mdmcert

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hsmsign/internal/testkit"

	"github.com/smallstep/pkcs7"
)

var now = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

// private is the key that attachments are encrypted to.
func private() *rsa.PrivateKey { return testkit.Key("recipient") }

func must(data []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return data
}

// secret is as long as a request, and of a length that needs padding.
var secret = []byte(base64.StdEncoding.EncodeToString(bytes.Repeat([]byte("<plist>"), 1001)))

// recipients are files a.pem and b.pem in a folder of their own: certificates of the kit's two keys.
func recipients(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for name, key := range map[string]*x509.Certificate{"a.pem": recipient(t, true), "b.pem": recipient(t, false)} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: key.Raw}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func recipient(t testing.TB, ours bool) *x509.Certificate {
	t.Helper()
	key := testkit.Key("other")
	if ours {
		key = private()
	}
	der, err := NewRecipient(context.Background(), testkit.NewSigner(key), now)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// inLines is DER as hex digits in lines, as the service mails it.
func inLines(der []byte, end string) []byte {
	var b strings.Builder
	for digits := hex.EncodeToString(der); len(digits) > 0; {
		n := min(60, len(digits))
		b.WriteString(digits[:n] + end)
		digits = digits[n:]
	}
	return []byte(b.String())
}

// What OpenSSL encrypts, by both of its commands.
func TestDecryptOpenSSL(t *testing.T) {
	dir := recipients(t)
	for _, args := range [][]string{
		{"cms", "-aes-128-cbc", "a.pem"}, {"cms", "-aes-192-cbc", "a.pem"}, {"cms", "-aes-256-cbc", "a.pem"}, {"cms", "-des3", "a.pem"},
		{"smime", "-aes-256-cbc", "a.pem"}, {"smime", "-des3", "b.pem", "a.pem"}, {"cms", "-aes-256-cbc", "b.pem", "a.pem"},
	} {
		der := testkit.OpenSSL(t, dir, secret, append([]string{args[0], "-encrypt", "-binary", "-outform", "DER", args[1]}, args[2:]...)...)
		for form, data := range map[string][]byte{"DER": der, "hex": inLines(der, "\n"), "CRLF": inLines(der, "\r\n"), "HEX": bytes.ToUpper(inLines(der, "")), "BOM": append([]byte("\ufeff"), inLines(der, "\n")...)} {
			if got, err := Decrypt(data, private()); err != nil || !bytes.Equal(got, secret) {
				t.Errorf("%v as %s: %v, %d bytes", args, form, err, len(got))
			}
		}
	}
}

// What the PKCS#7 library of Go services encrypts, DES by itself.
func TestDecryptPKCS7Library(t *testing.T) {
	cert := recipient(t, true)
	before := pkcs7.ContentEncryptionAlgorithm
	defer func() { pkcs7.ContentEncryptionAlgorithm = before }()
	for _, algorithm := range []int{pkcs7.EncryptionAlgorithmDESCBC, pkcs7.EncryptionAlgorithmAES128CBC, pkcs7.EncryptionAlgorithmAES256CBC} {
		pkcs7.ContentEncryptionAlgorithm = algorithm
		der, err := pkcs7.Encrypt(bytes.Clone(secret), []*x509.Certificate{cert})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := Decrypt(inLines(der, "\n"), private()); err != nil || !bytes.Equal(got, secret) {
			t.Errorf("algorithm %d: %v, %d bytes", algorithm, err, len(got))
		}
	}
}

func TestDecryptRefuses(t *testing.T) {
	dir := recipients(t)
	good := testkit.OpenSSL(t, dir, secret, "cms", "-encrypt", "-binary", "-outform", "DER", "-aes-256-cbc", "a.pem")
	signed := testkit.OpenSSL(t, dir, secret, "cms", "-digest_create", "-binary", "-outform", "DER")
	for _, tt := range []struct {
		name    string
		data    []byte
		id      string
		message string
	}{
		{"another's", testkit.OpenSSL(t, dir, secret, "cms", "-encrypt", "-binary", "-outform", "DER", "-aes-256-cbc", "b.pem"), "push.recipient", "not encrypted to this key"},
		{"OAEP", testkit.OpenSSL(t, dir, secret, "cms", "-encrypt", "-binary", "-outform", "DER", "-aes-256-cbc", "-recip", "a.pem", "-keyopt", "rsa_padding_mode:oaep"), "push.recipient", ""},
		{"cipher", testkit.OpenSSL(t, dir, secret, "cms", "-encrypt", "-binary", "-outform", "DER", "-camellia256", "a.pem"), "push.attachment", "cipher 1.2.392"},
		{"nine recipients", envelope(9, aesKey, bytes.Repeat([]byte{16}, 16)), "push.attachment", "9 recipients"},
		{"no recipient", inLines(envelope(0, aesKey, bytes.Repeat([]byte{16}, 16)), "\n"), "push.recipient", ""},
		{"short key", envelope(1, aesKey[:8], bytes.Repeat([]byte{16}, 16)), "push.attachment", "a key of 8 bytes"},
		{"half a block", envelope(1, aesKey, make([]byte, 15)), "push.attachment", "whole blocks"},
		{"nothing", envelope(1, aesKey, nil), "push.attachment", "whole blocks"},
		{"padding of 0", envelope(1, aesKey, make([]byte, 16)), "push.attachment", "not padded"},
		{"padding of 200", envelope(1, aesKey, bytes.Repeat([]byte{200}, 16)), "push.attachment", "not padded"},
		{"padding of two blocks", envelope(1, aesKey, bytes.Repeat([]byte{32}, 32)), "push.attachment", "not padded"},
		{"uneven padding", envelope(1, aesKey, append(make([]byte, 15), 2)), "push.attachment", "not padded"},
		{"other PKCS#7", signed, "push.attachment", "of type"},
		{"cut", good[:len(good)-1], "push.attachment", "cut short"},
		{"trailing", append(bytes.Clone(good), 0), "push.attachment", ""},
		{"half a byte", inLines(good, "\n")[1:], "push.attachment", "neither hex"},
		{"page", []byte("<html>expired</html>"), "push.attachment", "neither hex"},
		{"empty", nil, "push.attachment", "empty"},
		{"blank", []byte(" \n"), "push.attachment", "empty"},
		{"large", make([]byte, MaxAttachment+1), "push.attachment", "larger than"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Decrypt(tt.data, private())
			if testkit.FindingID(err) != tt.id || !strings.Contains(err.Error(), tt.message) || got != nil {
				t.Errorf("%d bytes, %v; want %q with %q", len(got), err, tt.id, tt.message)
			}
		})
	}
	if got, err := Decrypt(envelope(8, aesKey, bytes.Repeat([]byte{16}, 16)), private()); err != nil || len(got) != 0 {
		t.Errorf("eight recipients, and a block of padding: %q, %v", got, err)
	}
}

var aesKey = bytes.Repeat([]byte{7}, 32)

// envelope is an EnvelopedData as a liar makes it: n recipients, all the kit's key, and AES-256-CBC over plain, which
// brings its own padding.
func envelope(n int, contentKey, plain []byte) []byte {
	marshal := func(v any) []byte { return must(asn1.Marshal(v)) }
	//nolint:staticcheck // the service encrypts so
	encrypted := must(rsa.EncryptPKCS1v15(nil, &private().PublicKey, contentKey))
	recipient := asn1.RawValue{FullBytes: marshal(keyTransRecipient{
		ID:        asn1.RawValue{FullBytes: marshal(struct{}{})},
		Algorithm: pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}, Parameters: asn1.NullRawValue},
		Key:       encrypted,
	})}
	content := bytes.Clone(plain)
	if len(plain)%16 == 0 {
		block, err := aes.NewCipher(aesKey)
		if err != nil {
			panic(err)
		}
		cipher.NewCBCEncrypter(block, make([]byte, 16)).CryptBlocks(content, plain)
	}
	type liar struct {
		Version    int
		Recipients []asn1.RawValue `asn1:"set"`
		Encrypted  encryptedContent
	}
	var list []asn1.RawValue
	for range n {
		list = append(list, recipient)
	}
	inner := marshal(liar{Recipients: list, Encrypted: encryptedContent{
		Type: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1},
		Algorithm: pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 42},
			Parameters: asn1.RawValue{Tag: asn1.TagOctetString, Bytes: make([]byte, 16)}},
		Content: content,
	}})
	return marshal(contentInfo{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 3}, asn1.RawValue{Class: 2, Tag: 0, IsCompound: true, Bytes: inner}})
}

func TestNewRecipient(t *testing.T) {
	cert := recipient(t, true)
	if err := cert.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature); err != nil {
		t.Error(err)
	}
	if cert.KeyUsage != x509.KeyUsageKeyEncipherment || cert.IsCA || !private().PublicKey.Equal(cert.PublicKey) || now.Before(cert.NotBefore) || cert.NotAfter.Before(now.AddDate(0, 6, 0)) {
		t.Errorf("usage %b, CA %v, valid %v to %v", cert.KeyUsage, cert.IsCA, cert.NotBefore, cert.NotAfter)
	}
	if cert.SerialNumber.Cmp(recipient(t, true).SerialNumber) == 0 {
		t.Error("two recipients with one serial number")
	}
}
