package pkcs11

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hsmsign/signer"
)

func parse(tb testing.TB, s string) signer.Ref {
	tb.Helper()
	ref, err := signer.ParseRef(s)
	if err != nil {
		tb.Fatal(err)
	}
	return ref
}

// The examples of RFC 7512 section 3 that name a private key or leave the type open, and the traps: a "+"
// and a "&" are themselves, and an id is raw bytes.
func TestParseURI(t *testing.T) {
	tests := []struct {
		in   string
		want uri
	}{
		{"", nil},
		{"object=my-key;type=private", uri{{"object", "my-key"}, {"type", "private"}}},
		{
			"token=The%20Software%20PKCS%2311%20Softtoken;manufacturer=Snake%20Oil,%20Inc.;model=1.0;" +
				"object=my-key;id=%69%95%3E%5C%F4%BD%EC%91;serial=",
			uri{
				{"token", "The Software PKCS#11 Softtoken"}, {"manufacturer", "Snake Oil, Inc."}, {"model", "1.0"},
				{"object", "my-key"}, {"id", "\x69\x95\x3e\x5c\xf4\xbd\xec\x91"}, {"serial", ""},
			},
		},
		{"slot-description=Sun%20Metaslot", uri{{"slot-description", "Sun Metaslot"}}},
		{
			"library-manufacturer=Snake%20Oil,%20Inc.;library-description=Soft%20Token%20Library;library-version=1.23",
			uri{{"library-manufacturer", "Snake Oil, Inc."}, {"library-description", "Soft Token Library"}, {"library-version", "1.23"}},
		},
		{
			"token=My%20token%25%20created%20by%20Joe;library-version=3;id=%01%02%03%Ba%dd%Ca%fe%04%05%06",
			uri{{"token", "My token% created by Joe"}, {"library-version", "3"}, {"id", "\x01\x02\x03\xba\xdd\xca\xfe\x04\x05\x06"}},
		},
		{"token=A%20name%20with%20a%20substring%20%25%3B", uri{{"token", "A name with a substring %;"}}},
		{"token=Name%20with%20a%20small%20A%20with%20acute:%20%C3%A1", uri{{"token", "Name with a small A with acute: á"}}},
		{"object=a+b", uri{{"object", "a+b"}}},
		{"object=R&D", uri{{"object", "R&D"}}},
		{"object=R%26D%3d", uri{{"object", "R&D="}}},
		{"object=a=b", uri{{"object", "a=b"}}},
		{"id=%00%ff;slot-id=7", uri{{"id", "\x00\xff"}, {"slot-id", "7"}}},
		{"slot-manufacturer=x", uri{{"slot-manufacturer", "x"}}},
	}
	for _, tt := range tests {
		got, err := parseURI(tt.in)
		if err != nil {
			t.Errorf("%q: %v", tt.in, err)
		} else if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(pathAttr{})); diff != "" {
			t.Errorf("%q: (-want +got)\n%s", tt.in, diff)
		}
	}
}

func TestParseURIRefuses(t *testing.T) {
	tests := []struct{ in, says string }{
		{"object=a;", "path attribute 2 is not of the form name=value"},
		{"object", "path attribute 1 is not of the form name=value"},
		{"objekt=a", `unknown path attribute "objekt"`},
		{"Object=a", `unknown path attribute "Object"`},
		{"token=a;vendor-aaa=value-a", `unknown path attribute "vendor-aaa"`}, // section 2.5: it matches nothing
		{"token=a;object=b;token=a", `path attribute "token" stands twice`},
		{"object=100%", `path attribute "object": a % must be followed`},
		{"id=%0g", `path attribute "id": a % must be followed`},
		{"object=my-pubkey;type=public", `path attribute "type" is "public"`},
		{"object=my-certificate;type=cert", `path attribute "type" is "cert"`},
		{"slot-id=-1", `path attribute "slot-id" is "-1"`},
		{"slot-id=0x1", `path attribute "slot-id" is "0x1"`},
		{"library-version=1.2.3", `path attribute "library-version" is "1.2.3"`},
		{"library-version=256", `path attribute "library-version" is "256"`},
	}
	for _, tt := range tests {
		_, err := parseURI(tt.in)
		if !errors.Is(err, signer.ErrReference) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%q: error %v; want %q", tt.in, err, tt.says)
		}
	}
}

// All of an id is encoded (RFC 7512 section 2.3), of other values what must be.
func TestURIString(t *testing.T) {
	u := uri{{"id", "a\x00\xff"}, {"object", "R&D a+b;/?%"}, {"serial", ""}}
	if got, want := u.String(), "id=%61%00%FF;object=R&D%20a+b%3B%2F%3F%25;serial="; got != want {
		t.Errorf("%q; want %q", got, want)
	}
}

func TestURIMatches(t *testing.T) {
	u, err := parseURI("token=mdm;serial=;slot-id=007;library-version=3")
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		what      string
		got, want bool
	}{
		{"the same", u.matches("token", "mdm"), true},
		{"another", u.matches("token", "mdm2"), false},
		{"absent matches all", u.matches("model", "any"), true},
		{"empty matches empty", u.matches("serial", ""), true},
		{"empty matches nothing else", u.matches("serial", "1"), false},
		{"leading zeros", u.matchesNumber("slot-id", 7), true},
		{"another slot", u.matchesNumber("slot-id", 8), false},
		{"minor 0 understood", u.matchesVersion(3, 0), true},
		{"another minor", u.matchesVersion(3, 1), false},
		{"another major", u.matchesVersion(2, 0), false},
		{"no version", uri{}.matchesVersion(2, 0), true},
	}
	for _, tt := range tests {
		if tt.got != tt.want {
			t.Errorf("%s: %v", tt.what, tt.got)
		}
	}
}

func TestParseReference(t *testing.T) {
	module := "/lib/m.so"
	if filepath.Separator == '\\' {
		module = `C:\m.dll`
	}
	base := "pkcs11:object=k?module-path=" + module
	good := []struct {
		in   string
		want reference
	}{
		{base + "&pin-source=file:/run/pin&max-sessions=64", reference{pinSource: "file:/run/pin", sessions: 64}},
		{base + "&mechanism=rsa-pkcs&max-sessions=1", reference{mechanism: "rsa-pkcs", sessions: 1}},
		{base + "&mechanism=sha256-rsa-pkcs&max-sessions=1", reference{mechanism: "sha256-rsa-pkcs", sessions: 1}},
		{base + "&pin-value=12%2634&max-sessions=1&insecure-mode=allow", reference{pinValue: "12&34", sessions: 1, anyPINMode: true}},
	}
	for _, tt := range good {
		got, err := parseReference(parse(t, tt.in))
		tt.want.module = module
		got.ref, got.path = signer.Ref{}, nil
		if err != nil {
			t.Errorf("%q: %v", tt.in, err)
		} else if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(reference{}, signer.Ref{})); diff != "" {
			t.Errorf("%q: (-want +got)\n%s", tt.in, diff)
		}
	}
	if r, err := parseReference(parse(t, "pkcs11:?module-name=softhsm2")); err != nil || r.module != "" || r.moduleName != "softhsm2" {
		t.Errorf("by name: %q, %q, %v", r.module, r.moduleName, err)
	}
	if r, err := parseReference(parse(t, base)); err != nil || r.sessions < 1 || r.sessions > 4 {
		t.Errorf("without max-sessions: %d, %v; want 1 to 4", r.sessions, err)
	}

	const secret = "s3cr3t"
	bad := []struct{ in, says string }{
		{"file:/etc/key", `scheme "file"`},
		{"pkcs11:object=k", `"module-path" must be there`},
		{"pkcs11:object=k?module-path=libsofthsm2.so", `"module-path" must be there and hold an absolute path`},
		{"pkcs11:objekt=k?pin-value=" + secret, `unknown path attribute "objekt"`},
		{base + "&module-name=" + secret, `"module-path" and "module-name" exclude each other`},
		{"pkcs11:object=k?module-name=", `"module-name" is a name and no path`},
		{"pkcs11:object=k?module-name=../" + secret, `"module-name" is a name and no path`},
		{base + "&pin-value=" + secret + "&pin-source=file:x", `exclude each other`},
		{base + "&pin-value=", `"pin-value" must have 1 to`},
		{base + "&pin-value=" + strings.Repeat(secret, 200), `"pin-value" must have 1 to`},
		{base + "&pin-source=", `"pin-source" is empty`},
		{base + "&max-sessions=0", `from 1 to 64`},
		{base + "&max-sessions=65", `from 1 to 64`},
		{base + "&max-sessions=" + secret, `from 1 to 64`},
		{base + "&mechanism=" + secret, `takes "rsa-pkcs" or "sha256-rsa-pkcs"`},
		{base + "&insecure-mode=" + secret, `takes "allow" only`},
	}
	for _, tt := range bad {
		_, err := parseReference(parse(t, tt.in))
		if !errors.Is(err, signer.ErrReference) || !strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), secret) {
			t.Errorf("%q: error %v; want %q and no secret", tt.in, err, tt.says)
		}
	}
}

// FuzzURI: what was read can be printed, reads back as the same, and prints the same.
func FuzzURI(f *testing.F) {
	f.Fuzz(func(t *testing.T, path string) {
		u, err := parseURI(path)
		if err != nil {
			if !errors.Is(err, signer.ErrReference) {
				t.Fatalf("%q: error %v outside its family", path, err)
			}
			return
		}
		printed := u.String()
		again, err := parseURI(printed)
		if err != nil {
			t.Fatalf("%q prints as %q, which does not read: %v", path, printed, err)
		}
		if diff := cmp.Diff(u, again, cmp.AllowUnexported(pathAttr{})); diff != "" {
			t.Fatalf("%q prints as %q, which reads otherwise: (-first +again)\n%s", path, printed, diff)
		}
		if again.String() != printed {
			t.Fatalf("%q prints as %q, then as %q", path, printed, again.String())
		}
		// A printed path stands in a key reference unharmed.
		ref, err := signer.ParseRef("pkcs11:" + printed + "?module-path=/m.so")
		if err != nil && len(printed) < signer.MaxRef/2 || err == nil && ref.Path != printed {
			t.Fatalf("%q prints as %q, which does not survive in a reference: %q, %v", path, printed, ref.Path, err)
		}
	})
}

func TestFuzzURICorpus(t *testing.T) {
	seeds, err := filepath.Glob(filepath.Join("testdata", "fuzz", "FuzzURI", "*"))
	if err != nil || len(seeds) < 8 {
		t.Fatalf("%d seeds for FuzzURI, %v; they are committed with the code", len(seeds), err)
	}
	read := 0
	for _, seed := range seeds {
		text, err := os.ReadFile(seed) // #nosec G304 -- a seed of this package
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(string(text), "go test fuzz v1\nstring(") {
			read++
		}
	}
	if read != len(seeds) {
		t.Errorf("%d of %d seeds are in the form that the fuzzer reads", read, len(seeds))
	}
}
