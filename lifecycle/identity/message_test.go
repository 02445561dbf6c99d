package identity

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"hsmsign/internal/testkit"
	"hsmsign/testpki"
)

const body = `<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0"><dict>
<key>MessageType</key><string>Authenticate</string>
<key>Topic</key><string>com.apple.mgmt.External.6a3f</string>
<key>UDID</key><string>00008110-001A4C2E0E91801E</string>
<key>Nested</key><dict><key>UDID</key><string>inner</string></dict>
<key>List</key><array><string>outer</string></array>
</dict></plist>
`

// sign returns the header of a message that OpenSSL signs with the certificates and keys of the identities.
func sign(t testing.TB, content string, args []string, signers ...testpki.Identity) string {
	t.Helper()
	dir := t.TempDir()
	call := append([]string{"cms", "-sign", "-binary", "-outform", "DER"}, args...)
	for i, s := range signers {
		name := string(rune('a'+i)) + ".pem"
		key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: testkit.Value(x509.MarshalPKCS8PrivateKey(s.Key))(t)})
		testkit.OK(t, os.WriteFile(filepath.Join(dir, name), append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate.Raw}), key...), 0o600))
		call = append(call, "-signer", name)
	}
	return base64.StdEncoding.EncodeToString(testkit.OpenSSL(t, dir, []byte(content), call...))
}

// ids returns the IDs of the findings. OpenSSL signs at the time of the machine; that it is outside the validity of a fixture
// is not what these tests are about.
func ids(r *MessageReport) string {
	var all []string
	for _, f := range r.Findings {
		if f.ID != "cms.signing-time" {
			all = append(all, f.ID)
		}
	}
	return strings.Join(all, " ")
}

// noTime leaves out the time of the signature.
var noTime = []string{"-noattr", "-md", "sha256"}

func TestVerifyMessage(t *testing.T) {
	scep, acme, server, ra := fixture(t, DeviceSCEP), fixture(t, DeviceACME), fixture(t, ServerTLS), fixture(t, SCEPRA)
	ca := fixture(t, DeviceCA)
	good := sign(t, body, noTime, scep)
	o := MessageOptions{Roots: scep.Chain, Now: now}
	at := func(years, days int) MessageOptions {
		return MessageOptions{Roots: o.Roots, Now: now.AddDate(years, 0, days)}
	}
	der := testkit.Value(base64.StdEncoding.DecodeString(good))(t)
	flipped := slices.Clone(der)
	flipped[len(flipped)-1] ^= 1
	for _, tt := range []struct {
		name, header, body string
		o                  MessageOptions
		ids                string
		ok                 bool
	}{
		{"good", good, body, o, "", true},
		{"with the name", "mdm-signature: " + good[:80] + "\r\n " + good[80:] + "\r\n", body, o, "", true},
		{"with attributes", sign(t, body, []string{"-md", "sha256"}, scep), body, o, "", true},
		{"elliptic curve", sign(t, body, noTime, acme), body, o, "", true},
		{"SHA-1", sign(t, body, []string{"-noattr", "-md", "sha1"}, scep), body, o, "mdm.digest", true},
		{"MD5", sign(t, body, []string{"-noattr", "-md", "md5"}, scep), body, o, "cms.signature cms.digest", false},
		{"another body", good, strings.Replace(body, "Auth", "auth", 1), o, "cms.signature", false},
		{"a newline less", good, strings.TrimSuffix(body, "\n"), o, "cms.signature", false},
		{"another signature", base64.StdEncoding.EncodeToString(flipped), body, o, "cms.signature", false},
		{"attributes of another body", sign(t, "another", []string{"-md", "sha256"}, scep), body, o, "cms.signature", false},
		{"expired", good, body, at(1, 1), "cms.expired", false},
		{"early", good, body, at(-1, 0), "cms.not-yet-valid cms.not-yet-valid", false},
		{"no roots", good, body, MessageOptions{Now: now}, "mdm.trust", true},
		{"another CA", good, body, MessageOptions{Roots: server.Chain, Now: now}, "cms.untrusted", false},
		{"self-signed", sign(t, body, noTime, fixture(t, DevicePKCS12)), body, o, "cms.untrusted", false},
		{"the CA itself", sign(t, body, noTime, ca), body, o, "mdm.signer", false},
		{"a registration authority", sign(t, body, noTime, ra), body, o, "mdm.signer", true},
		{"two signers", sign(t, body, noTime, scep, acme), body, o, "cms.form", false},
		{"content inside", sign(t, body, append([]string{"-nodetach"}, noTime...), scep), body, o, "cms.form", false},
		{"no certificate", sign(t, body, append([]string{"-nocerts"}, noTime...), scep), body, o, "cms.no-signer", false},
		{"no header", " \n", body, o, "mdm.header", false},
		{"not base64", "-----BEGIN CMS-----", body, o, "mdm.header", false},
		{"not CMS", "aGVsbG8=", body, o, "cms.form", false},
		{"large", strings.Repeat("A", MaxHeader+4), body, o, "mdm.header", false},
		{"no body", good, "", o, "mdm.body cms.signature", false},
		{"not a message", sign(t, "hello", noTime, scep), "hello", o, "mdm.body", false},
	} {
		r := VerifyMessage(tt.header, []byte(tt.body), tt.o)
		if tt.name == "with attributes" { // see ids
			tt.ok = r.OK()
		}
		if got := ids(r); got != tt.ids || r.OK() != tt.ok {
			t.Errorf("%s: %q (ok: %v), want %q (%v): %+v", tt.name, got, r.OK(), tt.ids, tt.ok, r.Findings)
		}
	}
	r := VerifyMessage(good, []byte(body), o)
	if !r.Signature.Trusted || !r.Signature.Signer.Equal(scep.Certificate) || r.Signature.Digest != "SHA-256" ||
		r.UDID != "00008110-001A4C2E0E91801E" || r.Topic != "com.apple.mgmt.External.6a3f" || r.MessageType != "Authenticate" || r.Status != "" {
		t.Errorf("%+v", r)
	}
	inside := sign(t, body, append([]string{"-nodetach"}, noTime...), scep)
	if r := VerifyMessage(inside, nil, o); r.Signature != nil || ids(r) != "mdm.body cms.form" {
		t.Errorf("the content of the signature is used as the body: %+v", r)
	}
}

// A certificate of an intermediate can be in the signature, or given.
func TestIntermediate(t *testing.T) {
	a := testkit.Authority(now)
	push := fixture(t, Push) // under root and integration
	header := sign(t, body, noTime, push)
	roots := []*x509.Certificate{a.Root}
	if r := VerifyMessage(header, []byte(body), MessageOptions{Roots: roots, Now: now}); ids(r) != "cms.untrusted" {
		t.Errorf("%+v", r.Findings)
	}
	if r := VerifyMessage(header, []byte(body), MessageOptions{Roots: roots, Intermediates: push.Chain[:1], Now: now}); ids(r) != "" || !r.Signature.Trusted {
		t.Errorf("%+v", r.Findings)
	}
}

func TestBody(t *testing.T) {
	dict := func(text string) string { return "<plist><dict>" + text + "</dict></plist>" }
	for _, tt := range []struct{ name, body, ids, text string }{
		{"enrollment", dict("<key>EnrollmentID</key><string>x</string><key>Status</key><string>Idle</string>"), "", ""},
		{"nobody", dict("<key>Topic</key><string>x</string>"), "mdm.device", ""},
		{"empty", "", "mdm.body", "not a property list"},
		{"twice", dict("<key>UDID</key><string>a</string><key>UDID</key><string>b</string>"), "mdm.body", "occurs twice"},
		{"two dictionaries", "<plist><dict></dict><dict></dict></plist>", "mdm.body", "not a property list"},
		{"two lists", dict("") + dict(""), "mdm.body", "not a property list"},
		{"an array", "<plist><array></array></plist>", "mdm.body", "not a property list"},
		{"entities", `<!DOCTYPE plist [<!ENTITY a "b">]>` + dict(""), "mdm.body", "entities"},
		{"cut", "<plist><dict><key>UDID</key>", "mdm.body", "cut short"},
		{"deep", dict(strings.Repeat("<array>", 100) + strings.Repeat("</array>", 100)), "mdm.body", "nested deeper"},
		{"large", strings.Repeat(" ", MaxBody+1), "mdm.body", "larger"},
		{"in pieces", dict("<key>UDID</key><string>a<!-- -->b<![CDATA[c]]></string>"), "", ""},
	} {
		r := &MessageReport{}
		r.readBody([]byte(tt.body))
		if ids(r) != tt.ids || len(r.Findings) > 0 && !strings.Contains(r.Findings[0].Message, tt.text) {
			t.Errorf("%s: %+v", tt.name, r.Findings)
		}
		if tt.name == "in pieces" && r.UDID != "abc" || tt.name == "enrollment" && (r.EnrollmentID != "x" || r.Status != "Idle") {
			t.Errorf("%s: %+v", tt.name, r)
		}
	}
}

// FuzzVerifyMessage: no header and no body panics, and no signature is valid for a body that it is not over.
func FuzzVerifyMessage(f *testing.F) {
	testkit.Seeds(f, "FuzzVerifyMessage", 5)
	f.Fuzz(func(t *testing.T, header string, body []byte) {
		r := VerifyMessage(header, body, MessageOptions{Now: now})
		if len(r.Findings) == 0 {
			t.Error("a message without a trusted root has no finding")
		}
		if other := VerifyMessage(header, append(bytes.Clone(body), ' '), MessageOptions{Now: now}); r.OK() && other.OK() {
			t.Error("one signature is valid for two bodies")
		}
	})
}
