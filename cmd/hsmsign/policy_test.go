package main

import (
	"flag"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"hsmsign/config"
	"hsmsign/internal/testkit"
)

// The facts of the policy change with the keys and certificates of every vendor identity, trusted roots and witnesses, and
// contain no secret.
func TestFacts(t *testing.T) {
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	facts := func(change func(c *config.Config), env map[string]string) map[string]string {
		t.Helper()
		for _, name := range []string{"a.pem", "b.pem", "chain.pem", "root.pem"} {
			testkit.OK(t, os.WriteFile(file(name), []byte(name), 0o600))
		}
		c := &config.Config{
			Vendor: "a", TrustRoot: []string{file("root.pem")}, Vendors: map[string]config.Vendor{
				"a": {Key: "pkcs11:token=a?pin-source=file:/run/pin", Cert: file("a.pem"), Chain: []string{file("chain.pem")}}, "b": {Key: "file:/b.key", Cert: file("b.pem")},
			},
		}
		c.Ledger.Witnesses, c.Ledger.Required = []config.Witness{{Name: "w", Operator: "o", URL: "https://w.example", VerifierKey: "w+1+x"}}, 1
		change(c)
		s := &settings{ctx: cli.NewContext(cli.NewApp(), flag.NewFlagSet("", flag.ContinueOnError), nil), getenv: func(name string) string { return env[name] }, config: c}
		testkit.OK(t, s.choose())
		return s.facts()
	}
	nothing := func(*config.Config) {}
	before := facts(nothing, nil)
	if again := facts(nothing, nil); !maps.Equal(before, again) {
		t.Errorf("the facts differ: %v and %v", before, again)
	}
	vendor := func(name string, change func(v *config.Vendor)) func(*config.Config) {
		return func(c *config.Config) {
			v := c.Vendors[name]
			change(&v)
			c.Vendors[name] = v
		}
	}
	write := func(name string) func(*config.Config) {
		return func(*config.Config) { testkit.OK(t, os.WriteFile(file(name), []byte("other"), 0o600)) }
	}
	for name, change := range map[string]func(*config.Config){
		"key": vendor("a", func(v *config.Vendor) { v.Key = "pkcs11:token=b" }), "key of another": vendor("b", func(v *config.Vendor) { v.Key = "file:/c.key" }),
		"certificate": vendor("a", func(v *config.Vendor) { v.Cert = "pkcs11:token=a;object=c" }), "no certificate": vendor("b", func(v *config.Vendor) { v.Cert = "" }),
		"content": write("a.pem"), "content of another": write("b.pem"), "chain": write("chain.pem"), "root": write("root.pem"),
		"vendor":      func(c *config.Config) { c.Vendors["c"] = config.Vendor{Key: "file:/c.key"} },
		"witness key": func(c *config.Config) { c.Ledger.Witnesses[0].VerifierKey = "w+1+y" }, "operator": func(c *config.Config) { c.Ledger.Witnesses[0].Operator = "p" },
		"required": func(c *config.Config) { c.Ledger.Required = 0 }, "no root": func(c *config.Config) { c.TrustRoot = nil },
	} {
		if after := facts(change, nil); maps.Equal(before, after) {
			t.Errorf("%s: the facts are the same", name)
		}
	}
	if after := facts(nothing, map[string]string{"HSMSIGN_KEY": "file:/d.key"}); after["vendor a key"] != "file:/d.key" || after["vendor b key"] != "file:/b.key" {
		t.Errorf("with a key of the environment: %v", after)
	}
	secret := facts(nothing, map[string]string{"HSMSIGN_KEY": "pkcs11:token=a?pin-value=1234", "HSMSIGN_CERT": "file:?pin-value=1234"})
	for name, value := range secret {
		if strings.Contains(value, "1234") {
			t.Errorf("%s: %s", name, value)
		}
	}
	// A large file, a folder and a pipe are named only.
	testkit.OK(t, os.WriteFile(file("large.pem"), make([]byte, maxFact+1), 0o600))
	if got := certificateFacts(file("large.pem"), dir, file("none")); got != file("large.pem")+"\n"+dir+"\n"+file("none") {
		t.Error(got)
	}
}
