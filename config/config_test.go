//go:build unix

package config

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"hsmsign/agent/policy"
	"hsmsign/fault"
	"hsmsign/internal/testkit"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestLoad(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a b%?&")
	testkit.OK(t, os.Mkdir(dir, 0o700))
	path := filepath.Join(dir, "hsmsign.yaml")
	const ref = "pkcs11:token=a;object=b?module-path=m.so"
	escaped := filepath.Dir(dir) + "/a%20b%25%3F%26"
	for _, tt := range []struct {
		text string
		want Config
	}{
		{"key: file:vendor.key\ncert: vendor.pem\nout-dir: .\n", Config{Key: "file:" + escaped + "/vendor.key", Cert: dir + "/vendor.pem", OutDir: dir}},
		{"chain: [/a.pem, b/../c.pem]\ntrust-root: [d.pem]\n", Config{Chain: []string{"/a.pem", dir + "/c.pem"}, TrustRoot: []string{dir + "/d.pem"}}},
		{"key: FILE:a%20b.key?insecure-mode=allow&passphrase-file=pass\n",
			Config{Key: "file:" + escaped + "/a%20b.key?insecure-mode=allow&passphrase-file=" + escaped + "/pass"}},
		{"key: file:/k?passphrase-file=/p\n", Config{Key: "file:/k?passphrase-file=/p"}},
		{"key: file:/k?passphrase-file=credential:p\nledger: { store: \"sqlite:/l\", checkpoint-key: \"credential:k\" }\nserve: { tls: { key: \"credential:t\" } }\n",
			Config{Key: "file:/k?passphrase-file=credential:p", Ledger: Ledger{Store: "sqlite:/l", CheckpointKey: "credential:k"}, Serve: Serve{TLS: TLS{Key: "credential:t"}}}},
		{"key: file:///k\n", Config{Key: "file:///k"}},
		{"key: awskms:///alias/x\n", Config{Key: "awskms:///alias/x"}},
		{"key: 'file:'\n", Config{Key: "file:"}},
		{"key: ''\n", Config{}},
		{"ledger:\n  store: sqlite:l.db\n  copies: [ c, /d ]\n  required: 1\n  witnesses:\n    - { name: w, operator: Acme, url: \"https://w\", verifier-key: k }\n", Config{Ledger: Ledger{
			Store: "sqlite:" + dir + "/l.db", Copies: []string{dir + "/c", "/d"}, Required: 1, Witnesses: []Witness{{"w", "Acme", "https://w", "k"}}}}},
		{"serve: { drop-in: { fleet: true, mdmcert: { spool: mail } } }\n", Config{Serve: Serve{DropIn: DropIn{Fleet: true, MDMCert: MDMCert{Spool: dir + "/mail"}}}}},
		{"agent: unix:///run/a.sock\n", Config{Agent: Agent{URL: "unix:///run/a.sock"}}},
		{"agent: { url: \"https://s:1\", client-cert: c.pem, client-key: /k.pem, ca: ../ca.pem, token-from: \"file:t\" }\n", Config{Agent: Agent{
			"https://s:1", dir + "/c.pem", "/k.pem", filepath.Dir(dir) + "/ca.pem", "file:" + dir + "/t", false}}},
		{"agent: { url: \"https://s:1\", aws: true }\n", Config{Agent: Agent{URL: "https://s:1", AWS: true}}},
		{"agent: { url: \"https://s:1\", token-from: \"exec:/bin/cat t\" }\n", Config{Agent: Agent{URL: "https://s:1", TokenFrom: "exec:/bin/cat t"}}},
		{"oidc: { k: { issuer: \"https://k\", audience: a, kind: kubernetes, max-age: 2h, ca: ca.pem, token-file: t } }\n", Config{OIDC: map[string]OIDC{
			"k": {"https://k", "a", "kubernetes", "2h", dir + "/ca.pem", dir + "/t"}}}},
		// References to a token do not change, also those of certificates.
		{"key: " + ref + "\ncert: " + ref + "\nchain: ['" + ref + "']\n", Config{Key: ref, Cert: ref, Chain: []string{ref}}},
		{"vendors:\n  a: {key: \"file:/k\", cert: c.pem, chain: [d.pem], trust-root: [/e.pem]}\n", Config{Vendors: map[string]Vendor{
			"a": {Key: "file:/k", Cert: dir + "/c.pem", Chain: []string{dir + "/d.pem"}, TrustRoot: []string{"/e.pem"}}}}},
	} {
		testkit.OK(t, os.WriteFile(path, []byte(tt.text), 0o600))
		c := testkit.Value(Load(path))(t)
		if diff := cmp.Diff(&tt.want, c, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s-want +got:\n%s", tt.text, diff)
		}
	}
}

// issuers are the OIDC issuers of a configuration, for a policy.
func issuers(c *Config) map[string]policy.OIDCIssuer {
	all := map[string]policy.OIDCIssuer{}
	for name, i := range c.OIDC {
		all[name] = policy.OIDCIssuer{URL: i.Issuer, Audience: i.Audience, Kind: i.Kind, MaxAge: i.MaxAge}
	}
	return all
}

func TestLoadRefuses(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "hsmsign.yaml")
	write := func(data []byte, mode fs.FileMode) {
		t.Helper()
		testkit.OK(t, errors.Join(os.WriteFile(path, data, mode), os.Chmod(path, mode)))
	}
	refused := func(path, message, fix string) {
		t.Helper()
		_, err := Load(path)
		e, ok := errors.AsType[*Error](err)
		if !ok || !strings.Contains(err.Error(), message) || !strings.Contains(e.Fix, fix) || fault.KindOf(err) != fault.Usage {
			t.Errorf("%v, want %q with %q", err, message, fix)
		}
	}
	write([]byte("kye: a\n"), 0o600)
	refused(path, path+`:1:1: unknown key "kye"`, "key")
	for _, mode := range []fs.FileMode{0o620, 0o602, 0o666} {
		write(nil, mode)
		refused(path, "can write to it", "chmod go-w "+path)
	}
	write(make([]byte, MaxFile+2), 0o644) // read access for others is allowed
	refused(path, "larger than", "")
	refused(dir, "not a regular file", "")
	fifo := filepath.Join(dir, "fifo") // without a writer
	testkit.OK(t, syscall.Mkfifo(fifo, 0o600))
	refused(fifo, "not a regular file", "")
	if _, err := Load(filepath.Join(dir, "missing.yaml")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}

// Only root can make a file of another user.
func TestLoadOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root")
	}
	path := filepath.Join(t.TempDir(), "hsmsign.yaml")
	testkit.OK(t, errors.Join(os.WriteFile(path, nil, 0o600), os.Chown(path, 12345, 12345)))
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
	t.Chdir(t.TempDir())
	for _, path := range []string{"hsmsign.yaml", "flag.yaml", "env.yaml", "home/hsmsign/hsmsign.yaml", "etc.yaml"} { // the first is ignored
		testkit.OK(t, errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, nil, 0o600)))
	}
	for _, tt := range []struct {
		name, explicit, env, home, system string
		path, where                       string
		err                               error
	}{
		{"flag", "flag.yaml", "env.yaml", "home", "etc.yaml", "flag.yaml", "--config", nil},
		{"environment", "", "env.yaml", "home", "etc.yaml", "env.yaml", "HSMSIGN_CONFIG", nil},
		{"user", "", "", "home", "etc.yaml", "home/hsmsign/hsmsign.yaml", "user", nil},
		{"system", "", "", "elsewhere", "etc.yaml", "etc.yaml", "system", nil},
		{"no home", "", "", "", "etc.yaml", "etc.yaml", "system", nil},
		{"no file", "", "", "elsewhere", "missing.yaml", "", "", nil},
		{"flag, missing", "missing.yaml", "env.yaml", "home", "etc.yaml", "", "", fs.ErrNotExist},
		{"environment, missing", "", "missing.yaml", "home", "etc.yaml", "", "", fs.ErrNotExist},
		{"user, unreadable", "", "", "flag.yaml", "etc.yaml", "", "", syscall.ENOTDIR},
	} {
		getenv := func(name string) string { return map[string]string{"HSMSIGN_CONFIG": tt.env}[name] }
		home := func() (string, error) {
			if tt.home == "" {
				return "", errors.New("no home")
			}
			return tt.home, nil
		}
		if path, where, err := find(tt.explicit, getenv, home, tt.system); path != tt.path || where != tt.where || !errors.Is(err, tt.err) {
			t.Errorf("%s: %q, %q, %v; want %q, %q, %v", tt.name, path, where, err, tt.path, tt.where, tt.err)
		}
	}
	if path, where, err := Find("flag.yaml", os.Getenv, os.UserConfigDir); path != "flag.yaml" || where != "--config" || err != nil {
		t.Errorf("Find: %q, %q, %v", path, where, err)
	}
}

// hsmsign.example.yaml shows every key of Config once, as a comment, and Parse accepts what it shows.
func TestExample(t *testing.T) {
	data := testkit.Must(os.ReadFile("../hsmsign.example.yaml"))
	if c, err := Parse("hsmsign.example.yaml", data); err != nil || !cmp.Equal(&Config{}, c) {
		t.Errorf("a key is set: %+v, %v", c, err)
	}
	// The vendor keys exclude key, cert and chain.
	var texts [2]strings.Builder
	var shown, fields []string
	for _, m := range regexp.MustCompile(`(?m)^# ([a-z-]+): .*$`).FindAllStringSubmatch(string(data), -1) {
		shown = append(shown, m[1])
		for i, excluded := range [][]string{{"vendor", "vendors"}, {"key", "cert", "chain"}} {
			if !slices.Contains(excluded, m[1]) {
				texts[i].WriteString(strings.TrimPrefix(m[0], "# ") + "\n")
			}
		}
	}
	for i := range texts {
		c, err := Parse("hsmsign.example.yaml", []byte(texts[i].String()))
		if err == nil && len(c.Vendors) > 0 {
			_, err = policy.New(c.Callers, c.Roles, policy.Environment{Vendors: slices.Collect(maps.Keys(c.Vendors)), Issuers: issuers(c)})
		}
		if err != nil {
			t.Errorf("with the comments removed: %v\n%s", err, texts[i].String())
		}
	}
	for _, field := range reflect.VisibleFields(reflect.TypeFor[Config]()) {
		fields = append(fields, field.Tag.Get("yaml"))
	}
	slices.Sort(fields)
	slices.Sort(shown)
	if diff := cmp.Diff(fields, shown); diff != "" {
		t.Errorf("the keys of the example: -Config +shown:\n%s", diff)
	}
}

// The recipes of docs/callers.md are configurations that are accepted.
func TestRecipes(t *testing.T) {
	doc := string(testkit.Must(os.ReadFile("../docs/callers.md")))
	roles := map[string]policy.RoleConfig{"signer": {May: []string{policy.Read}, Customers: []string{"*"}}}
	blocks := regexp.MustCompile("(?s)```yaml\n(oidc:.*?)```").FindAllStringSubmatch(doc, -1)
	kinds := map[string]bool{}
	for _, block := range blocks {
		c, err := Parse("callers.md", []byte(block[1]))
		if err == nil {
			var p *policy.Policy
			if p, err = policy.New(c.Callers, roles, policy.Environment{Issuers: issuers(c)}); err == nil {
				for _, name := range p.Issuers() {
					_, kind, _ := strings.Cut(p.ExplainIssuer(name), " (")
					kinds[kind[:strings.Index(kind, ")")]] = true
				}
			}
		}
		if err != nil {
			t.Errorf("%v; %s\n%s", err, fault.Hint(err), block[1])
		}
	}
	if got := slices.Sorted(maps.Keys(kinds)); !slices.Equal(got, slices.Sorted(slices.Values(policy.OIDCKinds))) {
		t.Errorf("there are recipes for %v", got)
	}
}
