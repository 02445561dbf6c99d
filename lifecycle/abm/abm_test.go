package abm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
	"hsmsign/signer"
	"hsmsign/testpki"
)

var now = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

// folder returns a folder with the certificate that is uploaded, cert.pem.
func folder(t testing.TB) string {
	t.Helper()
	der := testkit.Value(NewCertificate(context.Background(), testkit.NewSigner(testkit.Key("abm")), "mdm.example.com", now))(t)
	dir := t.TempDir()
	testkit.OK(t, os.WriteFile(filepath.Join(dir, "cert.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	return dir
}

// download returns a file as Apple's portal gives, of a content, made by OpenSSL.
func download(t testing.TB, dir string, content []byte, args ...string) []byte {
	t.Helper()
	return testkit.OpenSSL(t, dir, content, append([]string{"cms", "-encrypt", "-binary", "-aes-256-cbc"}, append(args, "cert.pem")...)...)
}

func TestDecrypt(t *testing.T) {
	dir := folder(t)
	token := testpki.ServerToken(now.AddDate(1, 0, 0))
	part := testpki.ServerTokenPart(token)
	smime := download(t, dir, part, "-outform", "SMIME")
	for name, file := range map[string][]byte{
		"S/MIME": smime, "CRLF": bytes.ReplaceAll(smime, []byte("\n"), []byte("\r\n")), "line before it": append([]byte("\r\n"), smime...),
		"S/MIME, BER": download(t, dir, part, "-outform", "SMIME", "-stream"), "triple DES": download(t, dir, part, "-outform", "SMIME", "-des3"),
		"DER": download(t, dir, part, "-outform", "DER"), "BER": download(t, dir, part, "-outform", "DER", "-stream"),
		"x-pkcs7-mime": bytes.Replace(smime, []byte("application/pkcs7-mime"), []byte("application/x-pkcs7-mime"), 1),
		"lines of LF":  download(t, dir, bytes.ReplaceAll(part, []byte("\r"), nil), "-outform", "SMIME"),
	} {
		got, err := Decrypt(context.Background(), file, testkit.Key("abm"))
		if err != nil || !bytes.Equal(got.JSON, token) || !got.Expiry.Equal(now.AddDate(1, 0, 0)) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

// failing is a key store that does not answer.
type failing struct{ crypto.Decrypter }

func (failing) Decrypt(io.Reader, []byte, crypto.DecrypterOpts) ([]byte, error) {
	return nil, fmt.Errorf("%w: the token is gone", signer.ErrUnavailable)
}

// What is refused says why, and never a part of the token.
func TestDecryptRefuses(t *testing.T) {
	dir := folder(t)
	token := string(testpki.ServerToken(now))
	good := download(t, dir, testpki.ServerTokenPart([]byte(token)), "-outform", "SMIME")
	with := func(content string) []byte { return download(t, dir, []byte(content), "-outform", "SMIME") }
	json := func(old, text string) []byte {
		return with(string(testpki.ServerTokenPart([]byte(strings.Replace(token, old, text, 1)))))
	}
	replaced := func(old, text string) []byte { return bytes.Replace(good, []byte(old), []byte(text), 1) }
	for _, tt := range []struct {
		name string
		file []byte
		key  crypto.Decrypter
		id   string
		text string
	}{
		{"another key", good, testkit.Key("other"), "abm.recipient", "not encrypted to this key"},
		{"empty", nil, nil, "abm.token", "and not a file of Apple's portal"},
		{"page", []byte("<html></html>"), nil, "abm.token", "an HTML page"},
		{"the certificate", testkit.Value(os.ReadFile(filepath.Join(dir, "cert.pem")))(t), nil, "abm.token", "and not a file"},
		{"another mail", []byte("Content-Type: text/plain\n\nhello\n"), nil, "abm.token", `"text/plain", want`},
		{"another encoding", replaced("Content-Transfer-Encoding: base64", "Content-Transfer-Encoding: binary"), nil, "abm.token", `"binary", want base64`},
		{"not base64", append(bytes.Clone(good), "!"...), nil, "abm.token", "not base64"},
		{"cut", good[:len(good)/2], nil, "abm.token", ""},
		{"signed", []byte("Content-Type: application/pkcs7-mime\nContent-Transfer-Encoding: base64\n\nMAA="), nil, "abm.token", "cannot be read"},
		{"no lines", with(token), nil, "abm.token", "BEGIN MESSAGE"},
		{"no end", with("-----BEGIN MESSAGE-----\n" + token), nil, "abm.token", "BEGIN MESSAGE"},
		{"no JSON", with("-----BEGIN MESSAGE-----\nCS_secret\n-----END MESSAGE-----"), nil, "abm.token", "not a JSON object"},
		{"no secret", json("access_secret", "other"), nil, "abm.token", "no access_secret"},
		{"a number", json(`"consumer_key":"`, `"consumer_key":1,"x":"`), nil, "abm.token", "not a JSON object with strings"},
		{"no date", json("2026-11-20T", "tomorrow"), nil, "abm.token", "not a time"},
		{"large", make([]byte, MaxFile+1), nil, "abm.token", "larger than"},
	} {
		if tt.key == nil {
			tt.key = testkit.Key("abm")
		}
		got, err := Decrypt(context.Background(), tt.file, tt.key)
		if testkit.FindingID(err) != tt.id || !strings.Contains(err.Error(), tt.text) || got != nil || fault.KindOf(err) != fault.Refused || fault.Hint(err) == "" {
			t.Errorf("%s: %v [%s], want %q [%s]", tt.name, err, testkit.FindingID(err), tt.text, tt.id)
		}
		if err != nil && strings.Contains(err.Error(), "CS_") {
			t.Errorf("%s: a secret in %v", tt.name, err)
		}
	}
	if _, err := Decrypt(context.Background(), good, failing{}); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("a key store that does not answer: %v", err)
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Decrypt(ended, good, testkit.Key("abm")); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

func TestNewCertificate(t *testing.T) {
	der := testkit.Value(NewCertificate(context.Background(), testkit.NewSigner(testkit.Key("abm")), "mdm.example.com", now))(t)
	cert := testkit.Value(x509.ParseCertificate(der))(t)
	if err := cert.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature); err != nil || cert.Subject.CommonName != "mdm.example.com" ||
		cert.KeyUsage != x509.KeyUsageKeyEncipherment || cert.IsCA || !testkit.Key("abm").PublicKey.Equal(cert.PublicKey) {
		t.Errorf("%v, %v", cert.Subject, err)
	}
}

func TestSeeds(t *testing.T) { testkit.Seeds(t, "FuzzDecrypt", 3) }

// FuzzDecrypt: what is refused is a finding with what to do, and what is accepted is a token.
func FuzzDecrypt(f *testing.F) {
	key := testkit.GoldenKey(f)
	f.Fuzz(func(t *testing.T, file []byte) {
		token, err := Decrypt(context.Background(), file, key)
		if found, ok := errors.AsType[*fault.Finding](err); err != nil && (!ok || found.Subject() != fault.ABM || found.Fix == "") {
			t.Errorf("%T %v", err, err)
		}
		if err == nil {
			if again, err := ParseToken(token.JSON); err != nil || !again.Expiry.Equal(token.Expiry) {
				t.Errorf("%+v, %v", again, err)
			}
		}
	})
}
