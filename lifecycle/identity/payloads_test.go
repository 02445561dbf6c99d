package identity

import (
	"context"
	"encoding/base64"
	"strings"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
	"hsmsign/lifecycle/profile"
	"hsmsign/testpki"
)

// enrollment returns the enrollment profile of testpki with the identity, after the replacements (old, new, ...).
func enrollment(t testing.TB, kind string, replace ...string) string {
	t.Helper()
	return strings.NewReplacer(replace...).Replace(string(testkit.Value(testpki.EnrollmentProfile(fixtures(), kind))(t)))
}

func read(t testing.TB, text string) *Content {
	t.Helper()
	return ReadProfile(context.Background(), testkit.Value(profile.Parse([]byte(text)))(t))
}

func findingIDs(findings []fault.Finding) string {
	var all []string
	for _, f := range findings {
		all = append(all, f.ID)
	}
	return strings.Join(all, " ")
}

// The three ways to an identity, and the MDM payload that names it.
func TestReadProfile(t *testing.T) {
	trusted, p12 := fixture(t, Trusted).Certificate, fixture(t, DevicePKCS12).Certificate
	for _, tt := range []struct {
		kind, settings, ids string
		replace             time.Time
	}{
		{DeviceSCEP, "URL=https://scep.example/scep Name=hsmsign TEST Device CA Key Type=RSA Keysize=2048 Challenge=present, not shown", "", trusted.NotAfter},
		{DeviceACME, "DirectoryURL=https://acme.example/directory ClientIdentifier=C02TEST00001 KeyType=ECSECPrimeRandom KeySize=384 HardwareBound=true Attest=true", "", trusted.NotAfter},
		{DevicePKCS12, "", "identity.key-in-profile", p12.NotAfter},
	} {
		c := read(t, enrollment(t, tt.kind))
		if len(c.Payloads) != 3 || findingIDs(c.Findings) != tt.ids || !c.ReplaceBefore.Equal(tt.replace) {
			t.Fatalf("%s: %+v", tt.kind, c)
		}
		root, id, mdm := c.Payloads[0], c.Payloads[1], c.Payloads[2]
		var shown []string
		for _, s := range id.Settings {
			shown = append(shown, s.Name+"="+s.Value)
		}
		if root.Kind != Trusted || len(root.Certificates) != 1 || !root.Certificates[0].Equal(trusted) || id.Kind != tt.kind || strings.Join(shown, " ") != tt.settings {
			t.Errorf("%s: %+v, %v", tt.kind, root, shown)
		}
		if opened := len(id.Certificates) == 1 && id.Certificates[0].Equal(p12); opened != (tt.kind == DevicePKCS12) {
			t.Errorf("%s: %d certificates", tt.kind, len(id.Certificates))
		}
		if last := mdm.Settings[len(mdm.Settings)-1]; mdm.Kind != "" || last.Name != "identity" || !strings.Contains(last.Value, id.UUID) {
			t.Errorf("%s: %+v", tt.kind, mdm)
		}
		if mdm.Settings[3] != (Setting{"SignMessage", "true"}) {
			t.Errorf("%s: %+v", tt.kind, mdm.Settings)
		}
	}
}

func TestReadProfileFinds(t *testing.T) {
	const challenge = "<key>Challenge</key>"
	scep := enrollment(t, DeviceSCEP)
	id := read(t, scep).Payloads[1].UUID
	named := func(uuid string) string {
		return strings.Replace(scep, "<key>IdentityCertificateUUID</key>\n\t\t\t<string>"+id, "<key>IdentityCertificateUUID</key>\n\t\t\t<string>"+uuid, 1)
	}
	p12 := base64.StdEncoding.EncodeToString(testkit.Value(fixture(t, DevicePKCS12).PKCS12(true))(t))
	for _, tt := range []struct{ name, text, ids string }{
		{"http", strings.Replace(scep, "https://scep", "http://scep", 1), "identity.scep-ca"},
		{"http with a fingerprint", strings.NewReplacer("https://scep", "http://scep", challenge, "<key>CAFingerprint</key><data>AAAA</data>"+challenge).Replace(scep), ""},
		{"topic", enrollment(t, DeviceACME, "com.apple.mgmt.", "com.example."), "identity.topic"},
		{"server", strings.Replace(scep, "https://mdm.example/server", "http://mdm.example/server", 1), "identity.server"},
		{"no identity", named("B9A9F1E0-0000-4000-8000-000000000000"), "identity.unresolved"},
		{"no UUID", named(""), "identity.unresolved"},
		{"identity of another type", named(read(t, scep).Payloads[0].UUID), "identity.unresolved"},
		{"lower case", named(strings.ToUpper(id)), ""},
		{"passphrase", enrollment(t, DevicePKCS12, testpki.Passphrase, "wrong"), "identity.key-in-profile identity.pkcs12"},
		{"no passphrase", enrollment(t, DevicePKCS12, "<key>Password</key>", "<key>Other</key>"), "identity.key-in-profile"},
		{"damaged", enrollment(t, DevicePKCS12, p12[100:104], "AAAA"), "identity.key-in-profile identity.pkcs12"},
		{"certificate", enrollment(t, DeviceACME, base64.StdEncoding.EncodeToString(fixture(t, Trusted).Certificate.Raw), "AAAA"), "identity.certificate"},
	} {
		c := read(t, tt.text)
		if got := findingIDs(c.Findings); got != tt.ids {
			t.Errorf("%s: %q, want %q: %+v", tt.name, got, tt.ids, c.Findings)
		}
		if another := tt.name == "identity of another type"; another && !strings.Contains(c.Findings[0].Message, "com.apple.security.root") {
			t.Errorf("%s: %+v", tt.name, c.Findings)
		}
		for _, f := range c.Findings {
			if strings.Contains(f.Message, testpki.Passphrase) || strings.Contains(f.Fix, testpki.Passphrase) {
				t.Errorf("%s: a secret in %+v", tt.name, f)
			}
		}
	}
}

// Not more than four PKCS#12 payloads are opened, and none after the command was interrupted.
func TestReadProfileBounds(t *testing.T) {
	one := enrollment(t, DevicePKCS12)
	begin := strings.Index(one, "\t\t<dict>\n\t\t\t<key>PayloadType</key>\n\t\t\t<string>com.apple.security.pkcs12")
	payload := one[begin : strings.Index(one[begin:], "</dict>\n")+begin+len("</dict>\n")]
	id := read(t, one).Payloads[1].UUID
	many := one
	for i := range 5 {
		many = many[:begin] + strings.ReplaceAll(payload, id, id[:len(id)-1]+string(rune('g'+i))) + many[begin:]
	}
	opened := 0
	for _, p := range read(t, many).Payloads {
		if p.Type == typePKCS12 && len(p.Certificates) > 0 {
			opened++
		}
	}
	if opened != maxOpened {
		t.Errorf("%d payloads were opened", opened)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if c := ReadProfile(ctx, testkit.Value(profile.Parse([]byte(one)))(t)); len(c.Payloads) != 3 {
		t.Errorf("%+v", c)
	}
}

func TestReadDEPProfile(t *testing.T) {
	data := testkit.Value(testpki.DEPProfile(fixtures()))(t)
	p := testkit.Value(ReadDEPProfile(data))(t)
	if !IsDEPProfile(data) || len(p.Anchors) != 1 || !p.Anchors[0].Equal(fixture(t, DEPAnchor).Certificate) || p.URL != "https://mdm.example/enroll" || p.Name != "hsmsign TEST" {
		t.Errorf("%+v", p)
	}
	for text, want := range map[string]string{
		"": "is damaged", `{"anchor_certs": ["-----BEGIN"]}`: "not base64", `{"anchor_certs": ["eA=="]}`: "not a certificate", `{"anchor_certs": "eA=="}`: "is damaged",
		`{"anchor_certs": [""` + strings.Repeat(`,""`, maxAnchors) + `]}`: "65 anchors", strings.Repeat(" ", MaxDEPProfile+1): "larger than",
	} {
		if p, err := ReadDEPProfile([]byte(text)); testkit.FindingID(err) != "identity.dep" || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40s: %+v, %v; want %q", text, p, err, want)
		}
	}
	if IsDEPProfile([]byte(`{"profile_name": ""}`)) || IsDEPProfile([]byte("anchor_certs")) {
		t.Error("another file is a DEP profile")
	}
}

// FuzzReadProfile: no payload panics, and no setting of it is long or has control characters.
func FuzzReadProfile(f *testing.F) {
	for _, kind := range []string{DeviceSCEP, DeviceACME, DevicePKCS12} {
		f.Add([]byte(enrollment(f, kind)))
	}
	f.Add([]byte(enrollment(f, DeviceSCEP, "<key>PayloadContent</key>\n\t\t\t<dict>", "<key>Other</key>\n\t\t\t<dict>")))
	f.Add([]byte(enrollment(f, DeviceACME, "<key>PayloadContent</key>\n\t\t\t<data>", "<key>PayloadContent</key>\n\t\t\t<string>")))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := profile.Parse(data)
		if err != nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		for _, one := range ReadProfile(ctx, p).Payloads {
			for _, s := range one.Settings {
				if len(s.Value) > 2*maxText || strings.ContainsAny(s.Value, "\n\x1b") {
					t.Errorf("%+v", s)
				}
			}
		}
	})
}

// FuzzReadDEPProfile: no JSON panics.
func FuzzReadDEPProfile(f *testing.F) {
	testkit.Seeds(f, "FuzzReadDEPProfile", 4)
	f.Add(testkit.Value(testpki.DEPProfile(fixtures()))(f))
	f.Fuzz(func(t *testing.T, data []byte) {
		if p, err := ReadDEPProfile(data); (p == nil) == (err == nil) {
			t.Errorf("%v, %v", p, err)
		}
	})
}
