package profile

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"howett.net/plist"

	"hsmsign/fault"
	"hsmsign/internal/cms"
	"hsmsign/internal/testkit"
	"hsmsign/testpki"
)

var now = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

// wifi returns a profile that was exported by Apple's tools, without its settings.
func wifi(t testing.TB) string {
	t.Helper()
	return string(testkit.File(t, "golden/wifi.mobileconfig"))
}

// identity returns the chain of a signer.
func identity(t testing.TB) []*x509.Certificate {
	t.Helper()
	a := testkit.Authority(now)
	leaf := testkit.Value(a.IssueProfileSigner(testkit.CSR(testkit.Key("profile")), testpki.LeafOptions{NotBefore: now}))(t)
	return []*x509.Certificate{leaf, a.Root}
}

func sign(t testing.TB) ([]byte, []*x509.Certificate) {
	t.Helper()
	chain := identity(t)
	p := testkit.Value(Parse([]byte(wifi(t))))(t)
	return testkit.Value(Sign(context.Background(), testkit.NewSigner(testkit.Key("profile")), chain, p, now))(t), chain
}

func TestParse(t *testing.T) {
	p := testkit.Value(Parse([]byte(wifi(t))))(t)
	if p.Identifier != "com.example.wifi" || p.UUID != "0B7F3A52-6E43-4B0C-9C34-6C1F0A1D2E00" || p.Version != 1 || p.Name != "Example Wi-Fi" ||
		p.Organization != "Example Corp" || p.Encrypted || len(p.Payloads) != 1 || string(p.XML) != wifi(t) {
		t.Errorf("%+v", p)
	}
	one := p.Payloads[0]
	if one.Type != "com.apple.wifi.managed" || one.Identifier != "com.example.wifi.network" || one.Version != 1 || one.Name != "Wi-Fi & more" || one.Keys["SSID_STR"] != "Example" || one.Keys["AutoJoin"] != true {
		t.Errorf("%+v", one)
	}
}

// Only a whole profile is accepted, and only in the form in which all programs read the same.
func TestParseRefuses(t *testing.T) {
	replaced := func(old, text string) []byte {
		if !strings.Contains(wifi(t), old) {
			t.Fatalf("no %q", old)
		}
		return []byte(strings.Replace(wifi(t), old, text, 1))
	}
	signed, _ := sign(t)
	var keys map[string]any
	testkit.Value(plist.Unmarshal([]byte(wifi(t)), &keys))(t)
	binary := testkit.Value(plist.Marshal(keys, plist.BinaryFormat))(t)
	for _, tt := range []struct {
		name string
		data []byte
		id   string
		text string
	}{
		{"empty", nil, "profile.form", "0 elements"},
		{"text", []byte("profile"), "profile.form", "text is outside"},
		{"binary", binary, "profile.form", "binary"},
		{"another format", []byte(`{PayloadType = Configuration;}`), "profile.form", "text is outside"},
		{"cut", []byte(wifi(t)[:900]), "profile.form", "damaged"},
		{"two", append([]byte(wifi(t)), wifi(t)[strings.Index(wifi(t), "<plist"):]...), "profile.form", "2 elements"},
		{"text after it", []byte(wifi(t) + "more"), "profile.form", "text is outside"},
		{"entities", replaced(`"http://www.apple.com/DTDs/PropertyList-1.0.dtd"`, `"x" [<!ENTITY a "b">]`), "profile.form", "declares entities"},
		{"deep", []byte(strings.Repeat("<array>", 100)), "profile.form", "nested deeper than 32"},
		{"large", make([]byte, MaxSize+1), "profile.size", "larger than"},
		{"signed", signed, "profile.signed", "signed already"},
		{"list", []byte("<plist><array/></plist>"), "profile.form", ""},
		{"another key twice", replaced("<key>PayloadOrganization</key>", "<key>PayloadUUID</key>"), "profile.repeated-key", `"PayloadUUID"`},
		{"a key twice, encoded", replaced("<key>PayloadOrganization</key>", "<key>Payload&#85;UID</key>"), "profile.repeated-key", `"PayloadUUID"`},
		{"a key twice, split", replaced("<key>PayloadOrganization</key>", "<key>Payload<!-- -->UUID</key>"), "profile.repeated-key", `"PayloadUUID"`},
		{"an element in a key", replaced("<key>PayloadOrganization</key>", "<key>PayloadUUID<b/></key>"), "profile.form", "a key contains"},
		{"payload as profile", replaced("<string>Configuration</string>", "<string>com.apple.mdm</string>"), "profile.type", `"com.apple.mdm"`},
		{"no identifier", replaced("<string>com.example.wifi</string>", "<string></string>"), "profile.identifier", "the profile"},
		{"no UUID", replaced("<string>0B7F3A52-6E43-4B0C-9C34-6C1F0A1D2E00</string>", "<integer>1</integer>"), "profile.uuid", "the profile"},
		{"no version", replaced("<integer>1</integer>\n</dict>\n</plist>", "<string>1</string>\n</dict>\n</plist>"), "profile.version", "the profile"},
		{"no payload type", replaced("<string>com.apple.wifi.managed</string>", "<string></string>"), "profile.type", "payload 1"},
		{"no payload identifier", replaced("<string>com.example.wifi.network</string>", "<true/>"), "profile.identifier", "payload 1"},
		{"no payload version", replaced("<integer>1</integer>", "<integer>0</integer>"), "profile.version", "payload 1"},
		{"same UUID", replaced("6C1F0A1D2E01", "6c1f0a1d2e00"), "profile.repeated-uuid", "PayloadUUID of the profile"},
		{"no payloads", replaced("<key>PayloadContent</key>", "<key>Other</key>"), "profile.content", "no list PayloadContent"},
		{"both", replaced("<key>PayloadDisplayName</key>\n	<string>Example Wi-Fi</string>", "<key>EncryptedPayloadContent</key><data>AA==</data>"), "profile.content", "both"},
		{"payload is text", replaced("<array>", "<array><string>x</string>"), "profile.content", "payload 1 is not a dictionary"},
	} {
		p, err := Parse(tt.data)
		if testkit.FindingID(err) != tt.id || !strings.Contains(err.Error(), tt.text) || p != nil || fault.KindOf(err) != fault.Refused || fault.Hint(err) == "" {
			t.Errorf("%s: %v [%s], want %q [%s]", tt.name, err, testkit.FindingID(err), tt.text, tt.id)
		}
	}
}

// OpenSSL verifies what Sign makes, and a property list parser reads what comes out.
func TestSign(t *testing.T) {
	signed, chain := sign(t)
	dir := t.TempDir()
	testkit.OK(t, os.WriteFile(filepath.Join(dir, "root.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: chain[1].Raw}), 0o600))
	out := testkit.OpenSSL(t, dir, signed, "cms", "-verify", "-inform", "DER", "-binary", "-CAfile", "root.pem", "-attime", "1795176000", "-purpose", "any")
	if string(out) != wifi(t) {
		t.Errorf("openssl reads\n%s", out)
	}
	for name, data := range map[string][]byte{
		"DER": signed, "PEM": pem.EncodeToMemory(&pem.Block{Type: "PKCS7", Bytes: signed}), "base64": []byte(base64.StdEncoding.EncodeToString(signed) + "\n"),
	} {
		r := Verify(data, VerifyOptions{Roots: chain[1:], Now: now})
		if !r.OK() || len(r.Findings) > 0 || r.Profile == nil || r.Profile.Identifier != "com.example.wifi" || r.Signature.Digest != "SHA-256" || len(r.Signature.Chain) != 2 {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

func TestVerifyFinds(t *testing.T) {
	signed, chain := sign(t)
	changed := bytes.Replace(signed, []byte("com.example.wifi"), []byte("com.example.evil"), 1)
	text := testkit.Value(cms.Sign(context.Background(), testkit.NewSigner(testkit.Key("profile")), chain, []byte("text"), now))(t)
	alone := testkit.Value(Sign(context.Background(), testkit.NewSigner(testkit.Key("profile")), chain[:1], testkit.Value(Parse([]byte(wifi(t))))(t), now))(t)
	for _, tt := range []struct {
		name string
		data []byte
		now  time.Time
		ids  string
		text string
	}{
		{"good, roots not known", signed, now, "profile.trust", "not checked"},
		{"expired", signed, now.AddDate(1, 0, 1), "cms.expired profile.trust", `devices show the profile as "Unverified"`},
		{"changed", changed, now, "cms.signature profile.trust", "devices refuse the profile"},
		{"without its issuer", alone, now, "profile.chain profile.trust", `"Unverified"`},
		{"not signed", []byte(wifi(t)), now, "profile.unsigned", `"Not Signed"`},
		{"signed text", text, now, "profile.trust profile.form", "text is outside"},
		{"damaged", signed[:200], now, "cms.form", "cut short"},
		{"neither", []byte("x"), now, "profile.form", ""},
		{"large", make([]byte, 2*MaxSize+1), now, "profile.size", ""},
	} {
		r := Verify(tt.data, VerifyOptions{Now: tt.now})
		var ids, texts []string
		for _, f := range r.Findings {
			ids, texts = append(ids, f.ID), append(texts, f.Message)
		}
		if got := strings.Join(ids, " "); got != tt.ids || !strings.Contains(strings.Join(texts, "\n"), tt.text) {
			t.Errorf("%s: %q %q, want %q %q", tt.name, got, texts, tt.ids, tt.text)
		}
	}
}

// A vendor certificate never signs a profile, and neither does one that devices would not verify.
func TestNewChain(t *testing.T) {
	a := testkit.Authority(now)
	vendor := func(o testpki.VendorOptions) *x509.Certificate {
		o.NotBefore = now
		return testkit.Value(a.IssueVendor(testkit.CSR(testkit.Key("vendor")), o))(t)
	}
	renamed := *vendor(testpki.VendorOptions{})
	renamed.Subject.CommonName = "Example"
	chain := identity(t)
	small := testkit.Value(a.IssueProfileSigner(testkit.CSR(testkit.KeyOf(1024, "small")), testpki.LeafOptions{NotBefore: now}))(t)
	for _, tt := range []struct {
		name  string
		leaf  *x509.Certificate
		extra []*x509.Certificate
		now   time.Time
		text  string
	}{
		{"vendor by name", vendor(testpki.VendorOptions{OmitExtension: true}), []*x509.Certificate{a.WWDR, a.Root}, now, "is a vendor certificate"},
		{"vendor by extension", &renamed, []*x509.Certificate{a.WWDR, a.Root}, now, "is a vendor certificate"},
		{"no issuer", chain[0], nil, now, "issuer \"hsmsign TEST Root CA\" is missing"},
		{"another issuer", chain[0], []*x509.Certificate{a.WWDR}, now, "is missing"},
		{"expired", chain[0], chain[1:], now.AddDate(2, 0, 0), "Unverified"},
		{"early", chain[0], chain[1:], now.Add(-time.Hour), "valid from"},
		{"short key", small, chain[1:], now, "no RSA key of 2048 bits"},
		{"a CA's key usage", a.Root, nil, now, "excludes signatures"},
	} {
		if _, err := NewChain(tt.leaf, tt.extra, tt.now); !errors.Is(err, ErrIdentity) || !strings.Contains(err.Error(), tt.text) || fault.KindOf(err) != fault.Vendor {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.text)
		}
	}
	if got, err := NewChain(chain[0], []*x509.Certificate{a.WWDR, a.Root}, now); err != nil || len(got) != 2 || !got[1].Equal(a.Root) {
		t.Errorf("%d certificates, %v", len(got), err)
	}
}

// Each device decrypts its payloads with OpenSSL, and they are those of the profile.
func TestEncrypt(t *testing.T) {
	a := testkit.Authority(now)
	device := func(name string) *x509.Certificate {
		return testkit.Value(a.IssueDevice(testkit.CSR(testkit.Key(name)), testpki.LeafOptions{Name: name, NotBefore: now}))(t)
	}
	p := testkit.Value(Parse([]byte(wifi(t))))(t)
	encrypted := testkit.Value(Encrypt(p, device("phone"), device("mac")))(t)
	if !encrypted.Encrypted || len(encrypted.Payloads) != 0 || encrypted.Identifier != p.Identifier || bytes.Contains(encrypted.XML, []byte("WPA2")) ||
		encrypted.keys["IsEncrypted"] != true || encrypted.keys["PayloadContent"] != nil {
		t.Errorf("%s", encrypted.XML)
	}
	dir := t.TempDir()
	for _, name := range []string{"phone", "mac"} {
		text := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: device(name).Raw}),
			pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(testkit.Key(name))})...)
		testkit.OK(t, os.WriteFile(filepath.Join(dir, name), text, 0o600))
		out := testkit.OpenSSL(t, dir, encrypted.keys["EncryptedPayloadContent"].([]byte), "cms", "-decrypt", "-inform", "DER", "-binary", "-inkey", name)
		var payloads any
		testkit.Value(plist.Unmarshal(out, &payloads))(t)
		if diff := cmp.Diff(p.keys["PayloadContent"], payloads); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	signed := testkit.Value(Sign(context.Background(), testkit.NewSigner(testkit.Key("profile")), identity(t), encrypted, now))(t)
	if r := Verify(signed, VerifyOptions{Now: now}); !r.OK() || !r.Profile.Encrypted {
		t.Errorf("%+v", r.Findings)
	}
	if _, err := Encrypt(encrypted, device("phone")); testkit.FindingID(err) != "profile.encrypted" {
		t.Errorf("again: %v", err)
	}
	small := testkit.Value(a.IssueDevice(testkit.CSR(testkit.KeyOf(1024, "small")), testpki.LeafOptions{NotBefore: now}))(t)
	for name, devices := range map[string][]*x509.Certificate{"none": nil, "nine": make([]*x509.Certificate, 9), "short key": {small}} {
		if _, err := Encrypt(p, devices...); testkit.FindingID(err) != "profile.recipient" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSeeds(t *testing.T) {
	testkit.Seeds(t, "FuzzParse", 3)
}

// FuzzParse: what is refused is a finding, and what is accepted is what another parser reads, whose keys are those of the XML.
func FuzzParse(f *testing.F) {
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := Parse(data)
		if err != nil {
			if found, ok := errors.AsType[*fault.Finding](err); !ok || found.Fix == "" || found.Subject() != fault.Profile {
				t.Errorf("%T %v", err, err)
			}
			return
		}
		if p.Identifier == "" || p.UUID == "" || len(p.Payloads) == 0 && !p.Encrypted || !bytes.Equal(p.XML, data) {
			t.Errorf("%+v", p)
		}
		if r := Verify(data, VerifyOptions{Now: now}); r.Profile == nil || r.OK() {
			t.Errorf("Verify reads it otherwise: %+v", r.Findings)
		}
	})
}
