package config

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"hsmsign/agent/policy"
	"hsmsign/internal/testkit"
)

// full sets every key.
const full = `# all of it
key: "pkcs11:token=mdm;object=vendor?pin-source=file:/run/pin"
cert: /etc/hsmsign/vendor.pem   # the vendor's
chain: [ wwdr.pem, 'apple root.pem' ]
trust-root:
  - test.pem
format: plist
digest: sha1
out-dir: out
`

func TestParse(t *testing.T) {
	want := Config{
		Key: "pkcs11:token=mdm;object=vendor?pin-source=file:/run/pin", Cert: "/etc/hsmsign/vendor.pem",
		Chain: []string{"wwdr.pem", "apple root.pem"}, TrustRoot: []string{"test.pem"},
		Format: "plist", Digest: "sha1", OutDir: "out",
	}
	tests := []struct {
		name, text string
		want       Config
	}{
		{"full", full, want},
		{"Windows line ends", strings.ReplaceAll(full, "\n", "\r\n"), want},
		{"byte order mark", "\ufeff" + full, want},
		{"document header", "---\n" + full + "...\n", want},
		{"no module allowed", "modules: []\n", Config{Modules: []string{}}},
		{"modules", "modules: [/a.so, /b.so]\n", Config{Modules: []string{"/a.so", "/b.so"}}},
		{"flow", `{key: "file:k", chain: [a, b]}`, Config{Key: "file:k", Chain: []string{"a", "b"}}},
		{"vendors", "vendor: new\ntrust-root: [t.pem]\nvendors:\n  old: {key: \"file:a\", cert: a.pem}\n  new:\n    key: file:b\n    chain: [c.pem]\n    trust-root:\n      - r.pem\n", Config{
			Vendor: "new", TrustRoot: []string{"t.pem"}, Vendors: map[string]Vendor{
				"old": {Key: "file:a", Cert: "a.pem"},
				"new": {Key: "file:b", Chain: []string{"c.pem"}, TrustRoot: []string{"r.pem"}},
			},
		}},
		{"vendors, flow", `{vendors: {a: {key: "file:k", chain: [a, b]}}}`, Config{Vendors: map[string]Vendor{"a": {Key: "file:k", Chain: []string{"a", "b"}}}}},
		{"no vendors", "key: file:k\nvendors: {}\nvendor: ''\n", Config{Key: "file:k"}},
		{"empty", "", Config{}},
		{"comments only", "# nothing\n\n# set\n", Config{}},
		{"empty values", "key: \"\"\nchain: []\nformat: ''\n", Config{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := testkit.Value(Parse("x.yaml", []byte(tt.text)))(t)
			if diff := cmp.Diff(&tt.want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if (got.Modules == nil) != (tt.want.Modules == nil) { // nil allows any module
				t.Errorf("modules: %#v, want %#v", got.Modules, tt.want.Modules)
			}
		})
	}
}

// refusals are texts that Parse refuses.
var refusals = []struct {
	name, text string
	want       string // of the error
	fix        string // in the hint
}{
	{"unknown key", "key: file:k\nchian: []\n", `x.yaml:2:1: unknown key "chian"`, `did you mean "chain"?`},
	{"relative module", "modules: [/a.so, b.so]\n", `x.yaml:1:18: modules: "b.so" is not an absolute path`, "absolute path"},
	{"PIN of a certificate", "cert: pkcs11:object=a?pin-value=1234\n", "x.yaml:1:7: cert contains a pin-value", "pin-source"},
	{"PIN of a chain", "chain: [\"pkcs11:object=a?pin-value=1234\"]\n", "x.yaml:1:9: chain contains a pin-value", "pin-source"},
	{"nothing near", "database: x\n", `x.yaml:1:1: unknown key "database"`, "the keys are: key, cert, chain, trust-root, format, digest, out-dir"},
	{"repeated key", "cert: a\nkey: b\ncert: c\n", `x.yaml:3:1: mapping key "cert" already defined at [1:1]`, ""},
	{"list for a string", "cert: [a]\n", "x.yaml:1:7: cert must be a string of one line, not sequence", "quotes"},
	{"string for a list", "chain: a.pem\n", "x.yaml:1:8: chain must be a list, not string", "write chain: [ FILE ]"},
	{"number", "\nout-dir: 2026\n", "x.yaml:2:10: out-dir must be a string of one line, not int", "in quotes"},
	{"boolean", "out-dir: true\n", "x.yaml:1:10: out-dir must be a string of one line, not boolean", "in quotes"},
	{"number in a list", "chain:\n  - a\n  - 5\n", "x.yaml:3:5: chain must be a string of one line, not int", "in quotes"},
	{"null", "cert:\n", "cert must be a string of one line, not null", "in quotes"},
	{"empty entry", "chain: [a, '']\n", "x.yaml:1:12: an empty entry in chain", "remove"},
	{"many lines", "cert: |\n  a\n  b\n", "x.yaml:1:7: cert must be a string of one line, not scalar", "quotes"},
	{"format", "format: pem\n", `x.yaml:1:9: format is "pem"`, "write base64 or plist"},
	{"digest", "digest: SHA256\n", `x.yaml:1:9: digest is "SHA256"`, "write sha256 or sha1"},
	{"PIN", "key: pkcs11:token=a?Pin-Value=1234\n", "x.yaml:1:6: key contains a pin-value; a config file contains no secrets", "pin-source=file:PATH"},
	{"tab", "key: a\n\tcert: b\n", "x.yaml:2:1: a tab", "write spaces"},
	{"tab further on", "key:\ta\n", "x.yaml:1:5: a tab", "write spaces"},
	{"second document", "key: a\n---\ncert: b\n", "x.yaml:2:1: a second document begins; a config file is one", "remove the line"},
	{"second document after the end", "key: a\n...\ncert: b\n", "a second document begins; a config file is one", "remove the line"},
	{"list", "- key\n", "x.yaml:1:1: the file must contain keys, not sequence", "key: value"},
	{"text", "hello\n", "x.yaml:1:1: the file must contain keys, not string", "key: value"},
	{"anchor", "key: &x a\n", `x.yaml:1:6: "&": anchors, aliases, tags, directives and complex keys are not supported`, ""},
	{"alias", "key: *x\n", `x.yaml:1:6: "*": anchors`, ""},
	{"tag", "key: !!str a\n", `x.yaml:1:6: "!!str": anchors`, ""},
	{"merge", "<<: {key: a}\n", `x.yaml:1:1: "<<": anchors`, ""},
	{"directive", "%YAML 1.2\n---\nkey: a\n", `x.yaml:1:1: "%": anchors`, ""},
	{"complex key", "? key\n: a\n", `x.yaml:1:1: "?": anchors`, ""},
	{"number as key", "1: a\n", `x.yaml:1:1: "1" is not a string; a key must be one`, "quotes"},
	{"unclosed", "chain: [a,\n", "x.yaml:1:8: ", ""},
	{"not UTF-8", "key: a\ncert: \xff\n", "x.yaml:2:7: not UTF-8", ""},
	{"control character", "key: a\x00\n", "x.yaml:1:7: control character U+0000", ""},
	{"escaped control character", `key: "a\nb"`, "x.yaml:1:6: key contains a control character or is not UTF-8", ""},
	{"carriage return alone", "key: a\rcert: b", "x.yaml:1:7: control character U+000D", ""},
	{"nested", "chain: [[a]]\n", "x.yaml:1:9: chain must be a string of one line, not sequence", ""},
	{"nested in a block", "chain:\n  - - a\n", "x.yaml:2:5: a list in a list", ""},
	{"nested deep", strings.Repeat("[", 100_000), "x.yaml:1:9: nested too deep", ""},
	{"braces deep", strings.Repeat("{a: ", 50_000), "x.yaml:1:33: nested too deep", ""},
	{"vendors and key", "vendors: {a: {key: \"file:k\"}}\nkey: file:k\n", "x.yaml:2:1: key and vendors together", "below a name"},
	{"vendors and cert", "cert: c\nvendors: {a: {key: \"file:k\"}}\n", "x.yaml:1:1: cert and vendors together", "below a name"},
	{"vendors and chain", "vendors: {a: {key: \"file:k\"}}\nchain: [c]\n", "x.yaml:2:1: chain and vendors together", "below a name"},
	{"unknown vendor", "vendors: {acme: {key: \"file:k\"}}\nvendor: acmee\n", `x.yaml:2:1: vendor: there is no "acmee"`, `did you mean "acme"?`},
	{"vendor far off", "vendors: {b: {key: \"file:k\"}, acme: {key: \"file:k\"}}\nvendor: other\n", `x.yaml:2:1: vendor: there is no "other"`, "there are acme, b"},
	{"vendor without vendors", "vendor: acme\n", `x.yaml:1:1: vendor: there is no "acme"`, "no vendors"},
	{"vendors, unknown key", "vendors:\n  a:\n    key: file:k\n    crt: x\n", `x.yaml:4:5: unknown key "crt"`, `did you mean "cert"?`},
	{"vendors, key of the file", "vendors:\n  a:\n    key: file:k\n    digest: sha1\n", `x.yaml:4:5: unknown key "digest"`, "the keys are: key, cert, chain, trust-root"},
	{"vendors, no key", "vendors:\n  a:\n    cert: x\n", "x.yaml:2:3: vendors: a has no key", "write key:"},
	{"vendors, text", "vendors:\n  a: b\n", "x.yaml:2:6: a must contain keys, not string", "below it"},
	{"vendors, nothing", "vendors:\n  a:\n", "a must contain keys, not null", "below it"},
	{"vendors, bad name", "vendors:\n  a b: {key: k}\n", `x.yaml:2:3: vendors: "a b" is not a name`, "begin with a letter"},
	{"vendors, repeated", "vendors:\n  a: {key: k}\n  a: {key: l}\n", "x.yaml:3:3: ", ""},
	{"vendors, quoted and repeated", "vendors: {a: {key: k}, 'a': {key: l}}\n", "x.yaml:1:24: ", ""},
	{"too many vendors", "vendors: {" + manyVendors(33) + "}", "33 vendors; at most 32", ""},
	{"too large", strings.Repeat("#", MaxFile+1), "x.yaml:1:1: larger than 262144 bytes", ""},
}

func TestParseRefuses(t *testing.T) {
	for _, tt := range refusals {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Parse("x.yaml", []byte(tt.text))
			if err == nil {
				t.Fatalf("no error but %+v", got)
			}
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("a %T, not an *Error", err)
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %q, want %q", err, tt.want)
			}
			if e.Fix == "" || !strings.Contains(e.Fix, tt.fix) {
				t.Errorf("fix %q, want %q", e.Fix, tt.fix)
			}
			if strings.Contains(err.Error()+e.Fix, "1234") {
				t.Error("the error contains the PIN")
			}
		})
	}
}

func manyVendors(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "v%d: {key: k}, ", i)
	}
	return b.String()
}

// ownForm decodes itself.
type ownForm struct{ text string }

func (o *ownForm) UnmarshalYAML(node ast.Node) error {
	o.text = node.String()
	return nil
}

// The types that Config does not use yet: nested structs, pointers, numbers, booleans, and types that decode themselves.
func TestNested(t *testing.T) {
	type role struct {
		May       []string `yaml:"may" values:"sign or read"`
		PerDay    int      `yaml:"per-day,omitempty"`
		MustExist bool     `yaml:"must-exist"`
		Approvals ownForm  `yaml:"approvals"`
	}
	type tls struct {
		Cert string `yaml:"cert"`
	}
	type serve struct {
		TLS *tls `yaml:"tls"`
	}
	type nested struct {
		Roles map[string]role `yaml:"roles"`
		Serve serve           `yaml:"serve"`
	}
	for text, want := range map[string]string{
		"roles:\n  a: {may: [sign], per-day: 5, must-exist: true}\nserve: {tls: {cert: x}}\n": "",
		"roles: {a: {approvals: none}, b: {approvals: {new-key: 1}}}\n":                       "",
		"roles: {a: {may: [sign, rea]}}\n":                                                    `1:25: may is "rea"`,
		"roles: {a: {per-day: '5'}}\n":                                                        "1:22: per-day must be a number, not string",
		"roles: {a: {must-exist: \"true\"}}\n":                                                "1:25: must-exist must be true or false, not string",
		"serve:\n  tls:\n    crt: x\n":                                                        `3:5: unknown key "crt"`,
		"serve:\n  tls:\n":                                                                    "tls must contain keys, not null",
		"serve:\n  tls:\n    cert: 5\n":                                                       "3:11: cert must be a string of one line, not int",
		"serve: {tls: {cert: x}}\nserv: {}\n":                                                 `2:1: unknown key "serv"`,
	} {
		file := testkit.Value(parser.ParseBytes([]byte(text), 0))(t)
		got := ""
		if err := checkNode("the file", file.Docs[0].Body, reflect.TypeFor[nested](), ""); err != nil {
			got = err.Error()
		} else if err := yaml.NodeToValue(file.Docs[0].Body, &nested{}, yaml.Strict()); err != nil {
			t.Errorf("%s%v", text, err)
		}
		if !strings.Contains(got, want) || (got == "") != (want == "") {
			t.Errorf("%s%q, want %q", text, got, want)
		}
	}
}

func TestSeeds(t *testing.T) { testkit.Seeds(t, "FuzzParse", 5) }

// FuzzParse checks that Parse returns an error with a place and a fix, or a Config without a PIN that is equal after
// yaml.Marshal and Parse.
func FuzzParse(f *testing.F) {
	f.Add([]byte(full))
	f.Add([]byte("vendor: a\nvendors:\n  a: {key: \"file:k\", cert: c, chain: [d], trust-root: [e]}\n  b:\n    key: file:l\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse("x.yaml", data)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || e.Line < 1 || e.Column < 1 || e.Message == "" || e.Fix == "" {
				t.Fatalf("an error without a place or a fix: %#v", err)
			}
			return
		}
		for _, v := range append(slices.Collect(maps.Values(c.Vendors)), Vendor{Key: c.Key}) {
			if strings.Contains(strings.ToLower(v.Key), "pin-value") {
				t.Errorf("a PIN was accepted: %q", v.Key)
			}
		}
		text := testkit.Value(yaml.Marshal(c))(t)
		again, err := Parse("again.yaml", text)
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		if diff := cmp.Diff(c, again, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("-first +second:\n%s\n%s", diff, text)
		}
	})
}

// Callers and roles are decoded whole, and as strictly as the rest.
func TestCallers(t *testing.T) {
	const text = `
callers:
  ada:
    role: approver
    person: ada
    client-cert: { spki-sha256: [ "0a" ], san: [ "uri:spiffe://example.org/ada", "dns:ada.example" ] }
    from: [ 10.0.0.0/8, "2001:db8::/32" ]
  portal: { role: signer, owners: [ ada ], customer: acme, uid: [ 7 ], tokens: [ "abcdefgh:20260601T130000Z:0a", "abcdefgi:20260601T130000Z:0b" ] }
roles:
  signer: { may: [ sign ], entitlement: { program: /usr/lib/hsmsign/entitled, timeout: 2s } }
  approver: { may: [ read ] }
`
	want := Config{
		Callers: map[string]policy.CallerConfig{
			"ada": {
				Role: "approver", Person: "ada", From: []string{"10.0.0.0/8", "2001:db8::/32"},
				ClientCert: policy.ClientCertConfig{SPKI: []string{"0a"}, SAN: []string{"uri:spiffe://example.org/ada", "dns:ada.example"}},
			},
			"portal": {Role: "signer", Owners: []string{"ada"}, Customer: "acme", UID: []int{7}, Tokens: []string{"abcdefgh:20260601T130000Z:0a", "abcdefgi:20260601T130000Z:0b"}},
		},
		Roles: map[string]policy.RoleConfig{
			"signer":   {May: []string{"sign"}, Entitlement: &policy.EntitlementConfig{Program: "/usr/lib/hsmsign/entitled", Timeout: "2s"}},
			"approver": {May: []string{"read"}},
		},
	}
	got := testkit.Value(Parse("x.yaml", []byte(text)))(t)
	if diff := cmp.Diff(&want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for text, want := range map[string]string{
		"callers: {a: {client-cert: {spki: []}}}":                     `unknown key "spki"`,
		"callers: {a: {client-cert: []}}":                             "client-cert must contain keys, not sequence",
		"callers: {a: {client-cert: {san: dns:a}}}":                   "san must be a list, not string",
		"callers: {a: {client-cert: {spki-sha256: [1234]}}}":          "spki-sha256 must be a string of one line, not int",
		"callers: {a: {tokens: [7]}}":                                 "tokens must be a string of one line, not int",
		"callers: {a: {tokens: ''}}":                                  "tokens must be a list, not string",
		"callers: {a: {token: []}}":                                   `unknown key "token"`,
		"callers: {a: {from: 10.0.0.0/8}}":                            "from must be a list, not string",
		"callers: {a: {uid: ['7']}}":                                  "uid must be a number, not string",
		"roles: {a: {entitlement: /bin/x}}":                           "entitlement must contain keys, not string",
		"roles: {a: {entitlement: {program: x}}}":                     `program: "x" is not an absolute path`,
		"roles: {a: {entitlement: {program: /x, timeout: 5}}}":        "timeout must be a string of one line, not int",
		"roles: {a: {entitlement: {program: /x, args: [a]}}}":         `unknown key "args"`,
		"roles: {a: {entitlement: {program: /x}, entitlement: null}}": "already defined",
		"roles: {a: {entitlement: null}}":                             "entitlement must contain keys, not null",
	} {
		if _, err := Parse("x.yaml", []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %s", text, err, want)
		}
	}
}
