package filekind

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hsmsign/internal/testkit"
)

// TestOf: the kind is that of the content, in any encoding.
func TestOf(t *testing.T) {
	dir := t.TempDir()
	golden := func(name string) []byte { return testkit.File(t, "golden/"+name) }
	write := func(name string, data []byte) { testkit.OK(t, os.WriteFile(filepath.Join(dir, name), data, 0o600)) }
	write("key", golden("vendor.key"))
	write("chain", golden("chain.pem"))
	openssl := func(args ...string) []byte {
		testkit.OpenSSL(t, dir, nil, append(args, "-out", "out")...)
		return testkit.Value(os.ReadFile(filepath.Join(dir, "out")))(t)
	}
	der := func(text []byte) []byte {
		block, _ := pem.Decode(text)
		return block.Bytes
	}
	for name, tt := range map[string]struct {
		data []byte
		want Kind
	}{
		"CSR":                  {der(golden("customer.csr")), CSR},
		"certificate":          {der(golden("chain.pem")), Certificate},
		"PKCS#8":               {der(golden("vendor.key")), PrivateKey},
		"PKCS#1":               {openssl("rsa", "-traditional", "-in", "key", "-outform", "DER"), PrivateKey},
		"SEC 1":                {openssl("ecparam", "-genkey", "-name", "secp521r1", "-noout", "-outform", "DER"), PrivateKey},
		"encrypted PKCS#8":     {openssl("pkcs8", "-topk8", "-in", "key", "-passout", "pass:x", "-outform", "DER"), PrivateKey},
		"PKCS#12":              {openssl("pkcs12", "-export", "-inkey", "key", "-in", "chain", "-passout", "pass:x"), PKCS12},
		"PKCS#12 without MAC":  {openssl("pkcs12", "-export", "-inkey", "key", "-in", "chain", "-passout", "pass:x", "-nomac"), PKCS12},
		"public key":           {openssl("pkey", "-in", "key", "-pubout", "-outform", "DER"), "a public key"},
		"PKCS#7":               {openssl("crl2pkcs7", "-nocrl", "-certfile", "chain", "-outform", "DER"), Bundle},
		"mail":                 {openssl("cms", "-encrypt", "-aes256", "-in", "key", "-outform", "DER", "-recip", "chain"), Mail},
		"mail with AES-GCM":    {openssl("cms", "-encrypt", "-aes-256-gcm", "-in", "key", "-outform", "DER", "-recip", "chain"), Mail},
		"request":              {golden("customer.plist"), Request},
		"JKS":                  {[]byte("\xfe\xed\xfe\xed\x00\x00\x00\x02"), Keystore},
		"ZIP":                  {[]byte("PK\x03\x04\x14\x00"), "a ZIP archive"},
		"a page":               {[]byte("\n<!DOCTYPE html><p>"), "an HTML page"},
		"another list":         {[]byte("<?xml version=\"1.0\"?><plist/>"), "a property list"},
		"key after a CSR":      {append(golden("customer.csr"), golden("vendor.key")...), PrivateKey},
		"CSR after its key":    {append(golden("chain.pem"), golden("customer.csr")...), CSR},
		"text":                 {[]byte("hello, world\n"), Text},
		"binary":               {[]byte("\x01\x02\x03"), Binary},
		"a cut CSR":            {der(golden("customer.csr"))[:300], Binary},
		"a SEQUENCE of others": {append([]byte{0x30, 0x81, 0xc8}, bytes.Repeat([]byte{5, 0}, 100)...), Binary},
	} {
		for encoding, data := range map[string][]byte{
			"raw": tt.data, "base64": []byte(base64.StdEncoding.EncodeToString(tt.data)), "hex": []byte("\n " + hex.EncodeToString(tt.data)),
		} {
			want := tt.want
			if want == Binary && encoding != "raw" {
				want = Text
			}
			if got := Of(data); got != want {
				t.Errorf("%s, %s: %q, want %q", name, encoding, got, want)
			}
		}
	}
	for _, data := range []string{"", " \r\n", "\ufeff"} {
		if got := Of([]byte(data)); got != "an empty file" {
			t.Errorf("%q: %q", data, got)
		}
	}
	if got := Of([]byte("-----BEGIN " + strings.Repeat("x", 1000) + "-----\n-----END")); len(got) > 200 {
		t.Errorf("%d bytes of a label", len(got))
	}
}

// FuzzOf: the name of any content is one short line.
func FuzzOf(f *testing.F) {
	f.Add([]byte("-----BEGIN PKCS7-----\nMIIB\n-----END PKCS7-----"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if kind := Of(data); kind == "" || len(kind) > 600 || strings.ContainsAny(string(kind), "\r\n\x1b") {
			t.Errorf("%q", kind)
		}
	})
}
