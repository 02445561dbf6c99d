package uri

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
	"hsmsign/signer"
)

// The examples of RFC 7512 section 3 that name a private key or omit the type, and the traps: "+" and "&" mean
// themselves, and an id is raw bytes.
func TestParse(t *testing.T) {
	tests := []struct {
		in   string
		want Path
	}{
		{"", nil},
		{"object=my-key;type=private", Path{{"object", "my-key"}, {"type", "private"}}},
		{
			"token=The%20Software%20PKCS%2311%20Softtoken;manufacturer=Snake%20Oil,%20Inc.;model=1.0;" +
				"object=my-key;id=%69%95%3E%5C%F4%BD%EC%91;serial=",
			Path{
				{"token", "The Software PKCS#11 Softtoken"}, {"manufacturer", "Snake Oil, Inc."}, {"model", "1.0"},
				{"object", "my-key"}, {"id", "\x69\x95\x3e\x5c\xf4\xbd\xec\x91"}, {"serial", ""},
			},
		},
		{"slot-description=Sun%20Metaslot", Path{{"slot-description", "Sun Metaslot"}}},
		{
			"library-manufacturer=Snake%20Oil,%20Inc.;library-description=Soft%20Token%20Library;library-version=1.23",
			Path{{"library-manufacturer", "Snake Oil, Inc."}, {"library-description", "Soft Token Library"}, {"library-version", "1.23"}},
		},
		{
			"token=My%20token%25%20created%20by%20Joe;library-version=3;id=%01%02%03%Ba%dd%Ca%fe%04%05%06",
			Path{{"token", "My token% created by Joe"}, {"library-version", "3.0"}, {"id", "\x01\x02\x03\xba\xdd\xca\xfe\x04\x05\x06"}},
		},
		{"token=A%20name%20with%20a%20substring%20%25%3B", Path{{"token", "A name with a substring %;"}}},
		{"token=Name%20with%20a%20small%20A%20with%20acute:%20%C3%A1", Path{{"token", "Name with a small A with acute: á"}}},
		{"object=a+b", Path{{"object", "a+b"}}},
		{"object=R&D", Path{{"object", "R&D"}}},
		{"object=R%26D%3d", Path{{"object", "R&D="}}},
		{"object=a=b", Path{{"object", "a=b"}}},
		{"id=%00%ff;slot-id=7", Path{{"id", "\x00\xff"}, {"slot-id", "7"}}},
		{"slot-manufacturer=x", Path{{"slot-manufacturer", "x"}}},
	}
	for _, tt := range tests {
		got, err := Parse(tt.in)
		if err != nil {
			t.Errorf("%q: %v", tt.in, err)
		} else if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%q: (-want +got)\n%s", tt.in, diff)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	tests := []struct{ in, says string }{
		{"token=mdm,object=vendor", `path attribute "token" contains "object="; ';' separates`},
		{"token=Oil, Inc.&module-path=/m", `path attribute "token" contains "module-path="`},
		{"token=a;pin%3Ds3cr3t=b", "the name of path attribute 2 is not a word"},
		{"type=x%26pin%3Ds3cr3t", `"type" is "x&pin=REDACTED"`},
		{"slot-id=1,PIN=s3cr3t", `"slot-id" is "1,PIN=REDACTED"`},
		{"library-version=pin-value=s3cr3t", `is "pin-value=REDACTED"`},
		{"object=a;", "path attribute 2 is not of the form name=value"},
		{"object", "path attribute 1 is not of the form name=value"},
		{"objekt=a", `unknown path attribute "objekt"`},
		{"Object=a", `unknown path attribute "Object"`},
		{"token=a;vendor-aaa=value-a", `unknown path attribute "vendor-aaa"`}, // section 2.5: it matches nothing
		{"token=a;object=b;token=a", `path attribute "token" is repeated`},
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
		_, err := Parse(tt.in)
		if !errors.Is(err, signer.ErrReference) || !strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), "s3cr3t") {
			t.Errorf("%q: error %v; want %q", tt.in, err, tt.says)
		}
	}
}

// A wrong name has a hint.
func TestHints(t *testing.T) {
	for in, want := range map[string]string{
		"label=vendor":         "write object=",
		"slot=1":               "write slot-id=",
		"objct=vendor":         `did you mean "object"?`,
		"module-path=/m.so":    `query attributes follow the "?"`,
		"token=a,object=b":     `query attributes follow the "?"`,
		"token=a&pin-source=b": `query attributes follow the "?"`,
	} {
		if _, err := Parse(in); !strings.Contains(fault.Hint(err), want) {
			t.Errorf("%q: %v, hint %q; want %q", in, err, fault.Hint(err), want)
		}
	}
}

func TestHexHint(t *testing.T) {
	for in, want := range map[string]string{
		"id=01": `id=01 means the characters "01"; write id=%01 for hexadecimal 01`, "id=0xA1f": `id=0xA1f means the characters "0xA1f"; write id=%0A%1F for hexadecimal a1f`,
		"id=%01": "", "id=": "", "id=vendor": "", "object=01": "",
	} {
		if got := testkit.Value(Parse(in))(t).HexHint(); got != want {
			t.Errorf("%q: %q; want %q", in, got, want)
		}
	}
}

// All of an id is encoded (RFC 7512 section 2.3), and of other values only what must be.
func TestString(t *testing.T) {
	u := Path{{"id", "a\x00\xff"}, {"object", "R&D a+b;/?%="}, {"serial", ""}}
	if got, want := u.String(), "id=%61%00%FF;object=R&D%20a+b%3B%2F%3F%25%3D;serial="; got != want {
		t.Errorf("%q; want %q", got, want)
	}
}

func TestMatches(t *testing.T) {
	u := testkit.Value(Parse("token=mdm;serial=;slot-id=007;library-version=3"))(t)
	tests := []struct {
		what      string
		got, want bool
	}{
		{"the same", u.Matches("token", "mdm"), true},
		{"another", u.Matches("token", "mdm2"), false},
		{"absent matches all", u.Matches("model", "any"), true},
		{"empty matches empty", u.Matches("serial", ""), true},
		{"empty matches nothing else", u.Matches("serial", "1"), false},
		{"leading zeros", u.Matches("slot-id", "7"), true},
		{"another slot", u.Matches("slot-id", "8"), false},
		{"minor 0 is the default", u.Matches("library-version", "3.0"), true},
		{"another minor", u.Matches("library-version", "3.1"), false},
		{"another major", u.Matches("library-version", "2.0"), false},
	}
	for _, tt := range tests {
		if tt.got != tt.want {
			t.Errorf("%s: %v", tt.what, tt.got)
		}
	}
}

// FuzzParse checks that a path that was read prints, reads back as the same, and prints the same.
func FuzzParse(f *testing.F) {
	testkit.Seeds(f, "FuzzParse", 8)
	f.Fuzz(func(t *testing.T, path string) {
		const pin = "s3cr3t"
		for _, with := range []string{path + ";type=a,pin=" + pin, path + ",pin-value=" + pin, "slot-id=" + path + "&p%49n%3D" + pin, "PIN=" + pin + path} {
			if _, err := Parse(with); err != nil && !strings.Contains(path, pin) && strings.Contains(err.Error()+fault.Hint(err), pin) {
				t.Fatalf("%q: %v", with, err)
			}
		}
		u, err := Parse(path)
		if err != nil {
			if !errors.Is(err, signer.ErrReference) {
				t.Fatalf("%q: error %v outside its family", path, err)
			}
			return
		}
		printed := u.String()
		again, err := Parse(printed)
		if err != nil {
			t.Fatalf("%q prints as %q, which does not read: %v", path, printed, err)
		}
		if diff := cmp.Diff(u, again); diff != "" {
			t.Fatalf("%q prints as %q, which reads otherwise: (-first +again)\n%s", path, printed, diff)
		}
		if again.String() != printed {
			t.Fatalf("%q prints as %q, then as %q", path, printed, again.String())
		}
		// A printed path survives in a key reference.
		ref, err := signer.ParseRef("pkcs11:" + printed + "?module-path=/m.so")
		if err != nil && len(printed) < signer.MaxRef/2 || err == nil && ref.Path != printed {
			t.Fatalf("%q prints as %q, which does not survive in a reference: %q, %v", path, printed, ref.Path, err)
		}
	})
}
