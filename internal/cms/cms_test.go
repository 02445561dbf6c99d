package cms

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hsmsign/internal/cbc"
	"hsmsign/internal/testkit"
)

var (
	now     = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	content = bytes.Repeat([]byte("<plist>"), 1001)
)

// identity returns the chain of a signer, leaf first, that is valid for a year from now on.
func identity(name string) []*x509.Certificate {
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name + " root"}, NotBefore: now.AddDate(-1, 0, 0), NotAfter: now.AddDate(9, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(1, 0, 0)}
	rootKey, key := testkit.Key(name+" root"), testkit.Key(name)
	root := testkit.Must(x509.ParseCertificate(testkit.Must(x509.CreateCertificate(rand.Reader, ca, ca, &rootKey.PublicKey, rootKey))))
	return []*x509.Certificate{testkit.Must(x509.ParseCertificate(testkit.Must(x509.CreateCertificate(rand.Reader, leaf, root, &key.PublicKey, rootKey)))), root}
}

// sign signs the content as the identity of a name.
func sign(t testing.TB, chain []*x509.Certificate) []byte {
	t.Helper()
	return testkit.Value(Sign(context.Background(), testkit.NewSigner(testkit.Key(chain[0].Subject.CommonName)), chain, content, now))(t)
}

// folder returns a folder with the files NAME.pem, the chain of each identity and its key.
func folder(t testing.TB, chains ...[]*x509.Certificate) string {
	t.Helper()
	dir := t.TempDir()
	for _, chain := range chains {
		var text []byte
		for _, cert := range chain {
			text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
		}
		name := chain[0].Subject.CommonName
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(testkit.Key(name))})...)
		testkit.OK(t, os.WriteFile(filepath.Join(dir, name+".pem"), text, 0o600))
		testkit.OK(t, os.WriteFile(filepath.Join(dir, name+".root"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: chain[len(chain)-1].Raw}), 0o600))
	}
	return dir
}

// at is the time as openssl's -attime expects it.
const at = "1795176000"

// OpenSSL verifies what Sign makes, with the chain that is inside, and gets the content.
func TestOpenSSLVerifies(t *testing.T) {
	chain := identity("signer")
	dir := folder(t, chain)
	message := sign(t, chain)
	got := testkit.OpenSSL(t, dir, message, "cms", "-verify", "-inform", "DER", "-binary", "-CAfile", "signer.root", "-attime", at, "-purpose", "any")
	if !bytes.Equal(got, content) {
		t.Errorf("openssl reads %d bytes, want %d", len(got), len(content))
	}
	text := string(testkit.OpenSSL(t, dir, message, "cms", "-cmsout", "-print", "-inform", "DER"))
	for _, want := range []string{"sha256 (2.16", "rsaEncryption", "Nov 20 12:00:00 2026 GMT", "CN=signer root", "messageDigest", "contentType"} {
		if !strings.Contains(strings.ReplaceAll(text, "CN = ", "CN="), want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	s, err := Verify(message, VerifyOptions{Roots: chain[1:], At: now})
	if err != nil || len(s.Findings) > 0 || !s.Trusted || s.Digest != "SHA-256" || !s.SigningTime.Equal(now) || len(s.Chain) != 2 || len(s.Certificates) != 2 {
		t.Errorf("%+v, %v", s, err)
	}
}

// Verify reads what OpenSSL makes: DER, and BER with lengths that are not known before.
func TestVerifyOpenSSL(t *testing.T) {
	chain := identity("signer")
	dir := folder(t, chain)
	base := []string{"cms", "-sign", "-binary", "-outform", "DER", "-signer", "signer.pem", "-md", "sha256"}
	for _, args := range [][]string{{"-nodetach"}, {"-nodetach", "-stream", "-indef"}, {"-nodetach", "-noattr"}, nil} {
		message := testkit.OpenSSL(t, dir, content, append(base, args...)...)
		o := VerifyOptions{Roots: chain[1:], At: now}
		if args == nil {
			o.Content = content
		}
		s, err := Verify(message, o)
		// OpenSSL signs at the time of the machine, which may be outside the validity of the certificate.
		if err != nil || !bytes.Equal(s.Content, content) || len(s.Findings) > 0 && s.Findings[0].ID != "cms.signing-time" || !s.Signer.Equal(chain[0]) {
			t.Errorf("%v: %v, %+v", args, err, s)
		}
		if got := IsSigned(message); !got {
			t.Errorf("%v: IsSigned is false", args)
		}
	}
	if IsSigned(content) || IsSigned(nil) || IsSigned(chain[0].Raw) {
		t.Error("IsSigned is true for something else")
	}
}

// change returns a message in which one byte differs, the last one of a part.
func change(message, part []byte) []byte {
	changed := bytes.Clone(message)
	changed[bytes.LastIndex(changed, part)+len(part)-1] ^= 1
	return changed
}

func TestVerifyFinds(t *testing.T) {
	chain, other := identity("signer"), identity("other")
	dir := folder(t, chain)
	message := sign(t, chain)
	openssl := func(args ...string) []byte {
		return testkit.OpenSSL(t, dir, content, append([]string{"cms", "-sign", "-binary", "-outform", "DER", "-signer", "signer.pem", "-nodetach"}, args...)...)
	}
	for _, tt := range []struct {
		name    string
		message []byte
		o       VerifyOptions
		ids     string
	}{
		{"good", message, VerifyOptions{At: now}, ""},
		{"content", change(message, content), VerifyOptions{At: now}, "cms.signature"},
		{"signature", change(message, message), VerifyOptions{At: now}, "cms.signature"},
		{"attributes", change(message, []byte("261120120000Z")), VerifyOptions{At: now}, "cms.signature"},
		{"expired", message, VerifyOptions{At: now.AddDate(1, 0, 1), Roots: chain[1:]}, "cms.expired"},
		{"early", message, VerifyOptions{At: now.Add(-2 * time.Hour)}, "cms.not-yet-valid"},
		{"untrusted", message, VerifyOptions{At: now, Roots: other[1:]}, "cms.untrusted"},
		{"SHA-1", openssl("-md", "sha1", "-noattr"), VerifyOptions{At: now}, "cms.digest"},
		{"another content type", openssl("-md", "sha256", "-econtent_type", "1.2.840.113549.1.9.16.1.4"), VerifyOptions{At: now}, "cms.signature"},
		{"no certificate", openssl("-nocerts", "-noattr"), VerifyOptions{At: now}, "cms.no-signer"},
	} {
		s, err := Verify(tt.message, tt.o)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		var ids []string
		for _, f := range s.Findings {
			ids = append(ids, f.ID)
		}
		if got := strings.Join(ids, " "); got != tt.ids || s.Valid() != (tt.ids == "") {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.ids)
		}
	}
}

// A signature of attributes does not count as one of their encoding (RFC 5652 section 5.3 leaves that open).
func TestAttributesAsContent(t *testing.T) {
	chain := identity("signer")
	attributes := testkit.Value(asn1.MarshalWithParams([]attribute{{oidContentType, []any{oidData}}, {oidMessageDigest, []any{make([]byte, 32)}}}, "set"))(t)
	dir := folder(t, chain)
	message := testkit.OpenSSL(t, dir, attributes, "cms", "-sign", "-binary", "-outform", "DER", "-signer", "signer.pem", "-nodetach", "-noattr", "-md", "sha256")
	s := testkit.Value(Verify(message, VerifyOptions{At: now}))(t)
	if len(s.Findings) != 1 || !strings.Contains(s.Findings[0].Message, "signed attributes of another message") {
		t.Errorf("%+v", s.Findings)
	}
}

func TestVerifyRefuses(t *testing.T) {
	chain := identity("signer")
	dir := folder(t, chain, identity("other"))
	message := sign(t, chain)
	detached := testkit.OpenSSL(t, dir, content, "cms", "-sign", "-binary", "-outform", "DER", "-signer", "signer.pem")
	for name, tt := range map[string]struct {
		message []byte
		content []byte
		text    string
	}{
		"empty":       {nil, nil, "damaged"},
		"text":        {content, nil, "damaged"},
		"cut":         {message[:len(message)-1], nil, "cut short"},
		"trailing":    {append(bytes.Clone(message), 0), nil, "1 bytes follow"},
		"certificate": {chain[0].Raw, nil, "damaged"},
		"detached":    {detached, nil, "not inside"},
		"inside":      {message, content, "not detached"},
		"enveloped":   {testkit.Value(Encrypt(content, chain[0]))(t), nil, "of type"},
		"two signers": {testkit.OpenSSL(t, dir, content, "cms", "-sign", "-binary", "-nodetach", "-outform", "DER", "-signer", "signer.pem", "-signer", "other.pem"), nil, "2 signers"},
		"deep":        {bytes.Repeat([]byte{0x30, 0x80}, 100000), nil, "nested deeper"},
		"large":       {make([]byte, MaxSize+1), nil, "larger"},
	} {
		s, err := Verify(tt.message, VerifyOptions{Content: tt.content, At: now})
		if testkit.FindingID(err) != "cms.form" || !strings.Contains(err.Error(), tt.text) || s != nil {
			t.Errorf("%s: %v, want %q", name, err, tt.text)
		}
	}
}

// Sign releases nothing that does not verify.
func TestSignRefuses(t *testing.T) {
	chain := identity("signer")
	faulty := testkit.NewSigner(testkit.Key("signer"))
	faulty.Faulty = true
	for name, f := range map[string]func() ([]byte, error){
		"faulty": func() ([]byte, error) { return Sign(context.Background(), faulty, chain, content, now) },
		"another key": func() ([]byte, error) {
			return Sign(context.Background(), testkit.NewSigner(testkit.Key("other")), chain, content, now)
		},
		"no certificate": func() ([]byte, error) { return Sign(context.Background(), faulty, nil, content, now) },
		"expired": func() ([]byte, error) {
			return Sign(context.Background(), testkit.NewSigner(testkit.Key("signer")), chain, content, now.AddDate(2, 0, 0))
		},
	} {
		if got, err := f(); err == nil || got != nil {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
}

// enveloped returns a message with n recipients, all the same, and changed content.
func enveloped(n int, contentKey []byte, change func(data []byte) []byte) []byte {
	mode, algorithm := cbc.NewAES256()
	key := testkit.Must(rsa.EncryptPKCS1v15(nil, &testkit.Key("signer").PublicKey, contentKey)) //nolint:staticcheck // what messages of this kind use
	to := asn1.RawValue{FullBytes: testkit.Must(asn1.Marshal(keyTransRecipient{
		ID: asn1.NullRawValue, Algorithm: pkix.AlgorithmIdentifier{Algorithm: oidRSAEncryption, Parameters: asn1.NullRawValue}, Key: key,
	}))}
	ciphertext := change(testkit.Must(mode.Encrypt(aesKey, make([]byte, 16))))
	e := envelopedData{Recipients: []asn1.RawValue{}, Encrypted: encryptedContent{oidData, algorithm, asn1.RawValue{Class: asn1.ClassContextSpecific, Bytes: ciphertext}}}
	for range n {
		e.Recipients = append(e.Recipients, to)
	}
	return testkit.Must(wrap(oidEnvelopedData, e))
}

var aesKey = bytes.Repeat([]byte{7}, 32)

func TestDecryptRefuses(t *testing.T) {
	unchanged := func(data []byte) []byte { return data }
	cut := func(n int) func([]byte) []byte { return func(data []byte) []byte { return data[:n] } }
	for _, tt := range []struct {
		name    string
		data    []byte
		message string
	}{
		{"nine recipients", enveloped(9, aesKey, unchanged), "9 recipients"},
		{"no recipient", enveloped(0, aesKey, unchanged), "not encrypted to this key"},
		{"short key", enveloped(1, aesKey[:8], unchanged), "a key of 8 bytes"},
		{"half a block", enveloped(1, aesKey, cut(15)), "whole blocks"},
		{"a block missing", enveloped(1, aesKey, cut(16)), "wrong padding"},
	} {
		got, err := Decrypt(tt.data, testkit.Key("signer"))
		if err == nil || !strings.Contains(err.Error(), tt.message) || got != nil {
			t.Errorf("%s: %d bytes, %v; want %q", tt.name, len(got), err, tt.message)
		}
	}
	if got, err := Decrypt(enveloped(8, aesKey, unchanged), testkit.Key("signer")); err != nil || len(got) != 16 {
		t.Errorf("eight recipients: %q, %v", got, err)
	}
}

// Each recipient decrypts, and OpenSSL does; BER is read, as Java's libraries write it.
func TestEncrypt(t *testing.T) {
	one, two := identity("signer"), identity("other")
	dir := folder(t, one, two)
	message := testkit.Value(Encrypt(content, one[0], two[0]))(t)
	for _, name := range []string{"signer", "other"} {
		if got := testkit.OpenSSL(t, dir, message, "cms", "-decrypt", "-inform", "DER", "-binary", "-recip", name+".pem", "-inkey", name+".pem"); !bytes.Equal(got, content) {
			t.Errorf("openssl as %s: %d bytes", name, len(got))
		}
		if got, err := Decrypt(message, testkit.Key(name)); err != nil || !bytes.Equal(got, content) {
			t.Errorf("as %s: %d bytes, %v", name, len(got), err)
		}
	}
	if text := string(testkit.OpenSSL(t, dir, message, "cms", "-cmsout", "-print", "-inform", "DER")); !strings.Contains(text, "aes-256-cbc") {
		t.Errorf("not AES-256-CBC:\n%s", text)
	}
	if _, err := Decrypt(message, testkit.Key("third")); !errors.Is(err, ErrRecipient) {
		t.Errorf("another key: %v", err)
	}
	ber := testkit.OpenSSL(t, dir, content, "cms", "-encrypt", "-binary", "-stream", "-outform", "DER", "-aes-256-cbc", "signer.pem")
	if ber[1] != 0x80 {
		t.Fatal("openssl writes no BER")
	}
	if got, err := Decrypt(ber, testkit.Key("signer")); err != nil || !bytes.Equal(got, content) {
		t.Errorf("BER: %d bytes, %v", len(got), err)
	}
	if _, err := Encrypt(content); err == nil {
		t.Error("no recipient is accepted")
	}
}

func TestSeeds(t *testing.T) {
	testkit.Seeds(t, "FuzzVerify", 4)
	testkit.Seeds(t, "FuzzToDER", 3)
}

// FuzzVerify: no message makes Verify panic, and what cannot be read is a finding.
func FuzzVerify(f *testing.F) {
	f.Fuzz(func(t *testing.T, message []byte) {
		s, err := Verify(message, VerifyOptions{At: now})
		if err != nil && testkit.FindingID(err) != "cms.form" || err == nil && s.Signer == nil && s.Valid() {
			t.Errorf("%v %+v", err, s)
		}
	})
}

// FuzzToDER: what was converted is DER, which converting does not change.
func FuzzToDER(f *testing.F) {
	f.Fuzz(func(t *testing.T, ber []byte) {
		der, err := toDER(ber)
		if err != nil {
			return
		}
		if again, err := toDER(der); err != nil || !bytes.Equal(again, der) {
			t.Errorf("%x becomes %x, then %x, %v", ber, der, again, err)
		}
	})
}
