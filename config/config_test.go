//go:build unix

package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

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
			got, err := Parse("x.yaml", []byte(tt.text))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(&tt.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	tests := []struct {
		name, text string
		want       string // of the error
		fix        string // in the hint
	}{
		{"unknown key", "key: file:k\nchian: []\n", `x.yaml:2:1: unknown key "chian"`, `did you mean "chain"?`},
		{"underscore", "out_dir: x\n", `x.yaml:1:1: unknown key "out_dir"`, `did you mean "out-dir"?`},
		{"capital", "Digest: sha1\n", `x.yaml:1:1: unknown key "Digest"`, `did you mean "digest"?`},
		{"relative module", "modules: [/a.so, b.so]\n", `x.yaml:1:18: modules: "b.so" is not an absolute path`, "whole path"},
		{"PIN of a certificate", "cert: pkcs11:object=a?pin-value=1234\n", "x.yaml:1:7: cert holds a pin-value", "pin-source"},
		{"PIN of a chain", "chain: [\"pkcs11:object=a?pin-value=1234\"]\n", "x.yaml:1:9: chain holds a pin-value", "pin-source"},
		{"longer", "certificate: x\n", `x.yaml:1:1: unknown key "certificate"`, `did you mean "cert"?`},
		{"shorter", "trust: x\n", `x.yaml:1:1: unknown key "trust"`, `did you mean "trust-root"?`},
		{"a letter too few", "digst: sha1\n", `x.yaml:1:1: unknown key "digst"`, `did you mean "digest"?`},
		{"a letter too many", "formatt: x\n", `x.yaml:1:1: unknown key "formatt"`, `did you mean "format"?`},
		{"a letter too many in the middle", "chaain: x\n", `x.yaml:1:1: unknown key "chaain"`, `did you mean "chain"?`},
		{"nothing near", "database: x\n", `x.yaml:1:1: unknown key "database"`, "the keys are: key, cert, chain, trust-root, format, digest, out-dir"},
		{"repeated key", "cert: a\nkey: b\ncert: c\n", `x.yaml:3:1: mapping key "cert" already defined at [1:1]`, ""},
		{"list for a text", "cert: [a]\n", "x.yaml:1:7: cert: sequence is not a text", "quotes"},
		{"text for a list", "chain: a.pem\n", "x.yaml:1:8: chain is a list", "write chain: [ FILE ]"},
		{"number", "\nout-dir: 2026\n", "x.yaml:2:10: out-dir: integer is not a text", "in quotes"},
		{"boolean", "out-dir: true\n", "x.yaml:1:10: out-dir: bool is not a text", "in quotes"},
		{"number in a list", "chain:\n  - a\n  - 5\n", "x.yaml:3:5: chain: integer is not a text", "in quotes"},
		{"nothing", "cert:\n", "cert: null is not a text", "in quotes"},
		{"empty entry", "chain: [a, '']\n", "x.yaml:1:12: an empty entry in chain", ""},
		{"many lines", "cert: |\n  a\n  b\n", "x.yaml:1:7: cert: literal is not a text", ""},
		{"format", "format: pem\n", `x.yaml:1:9: format is "pem"`, "write base64 or plist"},
		{"digest", "digest: SHA256\n", `x.yaml:1:9: digest is "SHA256"`, "write sha256 or sha1"},
		{"PIN", "key: pkcs11:token=a?Pin-Value=1234\n", "x.yaml:1:6: key holds a pin-value; a config file holds no secrets", "pin-source=file:PATH"},
		{"tab", "key: a\n\tcert: b\n", "x.yaml:2:1: a tab", "write spaces"},
		{"tab further on", "key:\ta\n", "x.yaml:1:5: a tab", "write spaces"},
		{"second document", "key: a\n---\ncert: b\n", "x.yaml:2:1: a second document begins; a config file is one", ""},
		{"second document after the end", "key: a\n...\ncert: b\n", "a second document begins; a config file is one", ""},
		{"list", "- key\n", "x.yaml:1:1: it holds no keys", "key: value"},
		{"text", "hello\n", "x.yaml:1:1: it holds no keys", "key: value"},
		{"anchor", "key: &x a\n", `x.yaml:1:6: "&": anchors, aliases, tags, directives and complex keys are not read here`, ""},
		{"alias", "key: *x\n", `x.yaml:1:6: "*": anchors`, ""},
		{"tag", "key: !!str a\n", `x.yaml:1:6: "!!str": anchors`, ""},
		{"merge", "<<: {key: a}\n", `x.yaml:1:1: "<<": anchors`, ""},
		{"directive", "%YAML 1.2\n---\nkey: a\n", `x.yaml:1:1: "%": anchors`, ""},
		{"complex key", "? key\n: a\n", `x.yaml:1:1: "?": anchors`, ""},
		{"number as key", "1: a\n", "x.yaml:1:1: a key that is not a word", ""},
		{"unclosed", "chain: [a,\n", "x.yaml:1:8: ", ""},
		{"not UTF-8", "key: a\ncert: \xff\n", "x.yaml:2:7: not UTF-8", ""},
		{"control character", "key: a\x00\n", "x.yaml:1:7: control character U+0000", ""},
		{"escaped control character", `key: "a\nb"`, "x.yaml:1:6: key holds a control character or is not UTF-8", ""},
		{"carriage return alone", "key: a\rcert: b", "x.yaml:1:7: control character U+000D", ""},
		{"nested", "chain: [[a]]\n", "x.yaml:1:9: chain: sequence is not a text", ""},
		{"nested in a block", "chain:\n  - - a\n", "x.yaml:2:5: a list in a list", ""},
		{"nested deep", strings.Repeat("[", 100_000), "x.yaml:1:5: nested too deep", ""},
		{"braces deep", strings.Repeat("{a: ", 50_000), "x.yaml:1:17: nested too deep", ""},
		{"vendors and key", "vendors: {a: {key: \"file:k\"}}\nkey: file:k\n", "x.yaml:2:1: key and vendors together", "below a name"},
		{"vendors and cert", "cert: c\nvendors: {a: {key: \"file:k\"}}\n", "x.yaml:1:1: cert and vendors together", "below a name"},
		{"vendors and chain", "vendors: {a: {key: \"file:k\"}}\nchain: [c]\n", "x.yaml:2:1: chain and vendors together", "below a name"},
		{"vendor that is none", "vendors: {acme: {key: \"file:k\"}}\nvendor: acmee\n", `x.yaml:2:1: vendor: there is no "acmee"`, `did you mean "acme"?`},
		{"vendor far off", "vendors: {b: {key: \"file:k\"}, acme: {key: \"file:k\"}}\nvendor: other\n", `x.yaml:2:1: vendor: there is no "other"`, "there are acme, b"},
		{"vendor without vendors", "vendor: acme\n", `x.yaml:1:1: vendor: there is no "acme"`, "no vendors"},
		{"vendors, unknown key", "vendors:\n  a:\n    key: file:k\n    crt: x\n", `x.yaml:4:5: unknown key "crt"`, `did you mean "cert"?`},
		{"vendors, key of the file", "vendors:\n  a:\n    key: file:k\n    digest: sha1\n", `x.yaml:4:5: unknown key "digest"`, "the keys are: key, cert, chain, trust-root"},
		{"vendors, no key", "vendors:\n  a:\n    cert: x\n", "x.yaml:2:3: vendors: a has no key", "write key:"},
		{"vendors, PIN", "vendors:\n  a:\n    key: pkcs11:token=a?pin-value=1234\n", "x.yaml:3:10: key holds a pin-value", "pin-source"},
		{"vendors, list", "vendors: [a]\n", "x.yaml:1:10: vendors is a mapping", "NAME:"},
		{"vendors, text", "vendors:\n  a: b\n", "x.yaml:2:6: vendors: a is a mapping", "below it"},
		{"vendors, nothing", "vendors:\n  a:\n", "vendors: a is a mapping", "below it"},
		{"vendors, number", "vendors:\n  5: {key: k}\n", `x.yaml:2:3: vendors: "5" is not a name`, "begin with a letter"},
		{"vendors, bad name", "vendors:\n  a b: {key: k}\n", `x.yaml:2:3: vendors: "a b" is not a name`, "begin with a letter"},
		{"vendors, repeated", "vendors:\n  a: {key: k}\n  a: {key: l}\n", "x.yaml:3:3: ", ""},
		{"too many vendors", "vendors: {" + manyVendors(33) + "}", "33 vendors; at most 32", ""},
		{"too large", strings.Repeat("#", MaxFile+1), "x.yaml:1:1: larger than 262144 bytes", ""},
	}
	for _, tt := range tests {
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
			if !strings.Contains(e.Hint(), tt.fix) {
				t.Errorf("fix %q, want %q", e.Fix, tt.fix)
			}
			if strings.Contains(err.Error()+e.Fix, "1234") {
				t.Error("the error tells the PIN")
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

func TestLoad(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a b%?&")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	load := func(key string) *Config {
		t.Helper()
		path := filepath.Join(dir, "hsmsign.yaml")
		if err := os.WriteFile(path, []byte("key: '"+key+"'\ncert: vendor.pem\nchain: [/a.pem, b/../c.pem]\ntrust-root: [d.pem]\nout-dir: ."), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := Load(path)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	escaped := filepath.Dir(dir) + "/a%20b%25%3F%26"
	for _, tt := range []struct{ key, want string }{
		{"file:vendor.key", "file:" + escaped + "/vendor.key"},
		{"FILE:a%20b.key?insecure-mode=allow&passphrase-file=pass", "file:" + escaped + "/a%20b.key?insecure-mode=allow&passphrase-file=" + escaped + "/pass"},
		{"file:/k?passphrase-file=/p", "file:/k?passphrase-file=/p"},
		{"file:///k", "file:///k"},
		{"pkcs11:token=a?module-path=m.so", "pkcs11:token=a?module-path=m.so"},
		{"awskms:///alias/x", "awskms:///alias/x"},
		{"file:", "file:"},
		{"", ""},
	} {
		want := &Config{
			Key: tt.want, Cert: dir + "/vendor.pem", Chain: []string{"/a.pem", dir + "/c.pem"},
			TrustRoot: []string{dir + "/d.pem"}, OutDir: dir,
		}
		if diff := cmp.Diff(want, load(tt.key)); diff != "" {
			t.Errorf("%s: -want +got:\n%s", tt.key, diff)
		}
	}
}

// The paths of each vendor are taken from the folder, too.
func TestLoadVendors(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "hsmsign.yaml")
	if err := os.WriteFile(path, []byte("vendors:\n  a: {key: \"file:k\", cert: c.pem, chain: [d.pem], trust-root: [/e.pem]}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]Vendor{"a": {Key: "file:" + dir + "/k", Cert: dir + "/c.pem", Chain: []string{dir + "/d.pem"}, TrustRoot: []string{"/e.pem"}}}
	if diff := cmp.Diff(want, c.Vendors); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// A certificate may lie in a token.
func TestLoadTokenCertificate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hsmsign.yaml")
	const ref = "pkcs11:token=a;object=b?module-path=/m.so"
	if err := os.WriteFile(path, []byte("cert: "+ref+"\nchain: ["+ref+"]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&Config{Cert: ref, Chain: []string{ref}}, c); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestLoadRefuses(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "hsmsign.yaml")
	if err := os.WriteFile(path, []byte("kye: a\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path); err == nil || err.Error() != path+`:1:1: unknown key "kye"` {
		t.Errorf("a bad file: %v", err)
	}
	for _, mode := range []fs.FileMode{0o620, 0o602, 0o666} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		_, err := Load(path)
		var e *Error
		if !errors.As(err, &e) || !strings.Contains(e.Message, "can write to it") || e.Fix != "chmod go-w "+path {
			t.Errorf("mode %o: %v", mode, err)
		}
	}
	if err := os.WriteFile(path, make([]byte, MaxFile+2), 0o600); err != nil { // keeps the mode
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o644); err != nil { // #nosec G302 -- that others read it is allowed
		t.Fatal(err)
	}
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("a large file: %v", err)
	}
	if _, err := Load(filepath.Join(dir, "missing.yaml")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	if _, err := Load(dir); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a folder: %v", err)
	}
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(fifo); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a pipe that nobody writes to: %v", err)
	}
}

// TestLoadOwner needs root to make a file of somebody else.
func TestLoadOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root")
	}
	path := filepath.Join(t.TempDir(), "hsmsign.yaml")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(path, 12345, 12345); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), "belongs to user 12345") {
		t.Errorf("a file of user 12345: %v", err)
	}
}

func TestTrusted(t *testing.T) {
	for _, tt := range []struct {
		uid, me int
		want    bool
	}{{0, 0, true}, {0, 1000, true}, {1000, 1000, true}, {1001, 1000, false}, {1000, 0, false}} {
		if trusted(tt.uid, tt.me) != tt.want {
			t.Errorf("a file of %d for %d: %v", tt.uid, tt.me, !tt.want)
		}
	}
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	file := func(parts ...string) string {
		path := filepath.Join(append([]string{dir}, parts...)...)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	file("hsmsign.yaml") // the working directory's, which never counts
	flag, env, user, system := file("flag.yaml"), file("env.yaml"), file("home", "hsmsign", "hsmsign.yaml"), file("etc", "hsmsign.yaml")
	missing := filepath.Join(dir, "missing.yaml")
	tests := []struct {
		name, explicit, env, home, system string
		path, where                       string
		err                               error
	}{
		{"flag", flag, env, "home", system, flag, "--config", nil},
		{"environment", "", env, "home", system, env, "HSMSIGN_CONFIG", nil},
		{"user", "", "", "home", system, user, "user", nil},
		{"system", "", "", "elsewhere", system, system, "system", nil},
		{"no home", "", "", "", system, system, "system", nil},
		{"none", "", "", "elsewhere", missing, "", "", nil},
		{"flag, missing", missing, env, "home", system, "", "", fs.ErrNotExist},
		{"environment, missing", "", missing, "home", system, "", "", fs.ErrNotExist},
		{"user, unreadable", "", "", "flag.yaml", system, "", "", syscall.ENOTDIR},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			getenv := func(name string) string {
				if name != "HSMSIGN_CONFIG" {
					t.Errorf("reads %s", name)
				}
				return tt.env
			}
			home := func() (string, error) {
				if tt.home == "" {
					return "", errors.New("no home")
				}
				return filepath.Join(dir, tt.home), nil
			}
			path, where, err := find(tt.explicit, getenv, home, tt.system)
			if path != tt.path || where != tt.where || !errors.Is(err, tt.err) {
				t.Errorf("%q, %q, %v; want %q, %q, %v", path, where, err, tt.path, tt.where, tt.err)
			}
		})
	}
	if path, where, err := Find(flag, func(string) string { return "" }, os.UserConfigDir); path != flag || where != "--config" || err != nil {
		t.Errorf("Find: %q, %q, %v", path, where, err)
	}
}
