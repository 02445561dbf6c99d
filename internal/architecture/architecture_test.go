// Package architecture holds the directions in which the rooms of the program may know each other. It has no code.
package architecture

import (
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "hsmsign"

// mayImport says which of our packages a package imports in its program code, and why no other.
var mayImport = map[string]struct {
	own []string
	why string
}{
	"finding":               {nil, "everybody speaks of findings; they speak of nobody"},
	"config":                {nil, "a file's content; what it means is the command line's business"},
	"testpki":               {[]string{"internal/wholefile"}, "stands in for Apple, so it must not share a mistake with what it tests"},
	"signer":                {nil, "the centre: backends and callers know it, it knows none of them"},
	"signer/file":           {[]string{"internal/wholefile", "signer"}, "a backend knows the interface and nothing else of ours; this one writes files"},
	"signer/pkcs11":         {[]string{"signer"}, "a backend knows the interface and nothing else of ours"},
	"signer/remote":         {[]string{"signer"}, "what the backends over a network share: bounds, retries, the breaker"},
	"signer/awskms":         {[]string{"signer", "signer/remote"}, "a backend knows the interface, and what all remote ones share"},
	"signer/gcpkms":         {[]string{"signer", "signer/remote"}, "a backend knows the interface, and what all remote ones share"},
	"signer/awskms/kmstest": {nil, "users' CI imports it; a double must not share a mistake with what it tests"},
	"signer/gcpkms/kmstest": {nil, "users' CI imports it; a double must not share a mistake with what it tests"},
	"signer/awskms/kmstest/cmd/awskms-double": {[]string{"internal/double", "signer/awskms/kmstest"}, "the double as a process"},
	"signer/gcpkms/kmstest/cmd/gcpkms-double": {[]string{"internal/double", "signer/gcpkms/kmstest"}, "the double as a process"},
	"signer/signertest":                       {[]string{"signer"}, "users run it on backends of their own"},
	"softhsm-test":                            {[]string{"signer"}, "users' CI imports it"},
	"chain":                                   {[]string{"finding"}, "certificates only: no key, no request"},
	"request":                                 {[]string{"chain", "finding"}, "the file only: it never sees a key"},
	"agent":                                   {[]string{"chain", "request", "signer"}, "the use case; which backend signs is handed to it"},
	"certreq":                                 {[]string{"signer"}, "the CSR only: whose it is, and who takes it, is the caller's business"},
	"push":                                    {[]string{"certreq", "chain", "finding", "signer"}, "the customer's side: it knows no vendor's key and no request"},
	"identity":                                {[]string{"certreq", "chain", "finding", "signer"}, "the vendor's own key and certificate; which backend holds the key, and customers, are not its business"},
	"internal/double":                         {nil, "what the doubles' programs share; it knows none of them"},
	"internal/scripttest":                     {nil, "for tests of the program from outside"},
	"internal/wholefile":                      {nil, "bytes and a path"},
	"cmd/hsmsign": {[]string{"agent", "certreq", "chain", "config", "finding", "identity", "internal/wholefile", "push", "request", "signer", "signer/awskms", "signer/file", "signer/gcpkms", "signer/pkcs11", "testpki"},
		"puts all together"},
}

// onlyIn says which of our packages may import a library; its types must not spread.
var onlyIn = map[string][]string{
	"github.com/miekg/pkcs11":            {"signer/pkcs11"},
	"github.com/aws/aws-sdk-go-v2":       {"signer/awskms", "signer/awskms/kmstest"},
	"cloud.google.com/go/kms":            {"signer/gcpkms", "signer/gcpkms/kmstest"},
	"google.golang.org/grpc":             {"signer/gcpkms", "signer/gcpkms/kmstest"},
	"github.com/sony/gobreaker/v2":       {"signer/remote"},
	"howett.net/plist":                   {"request"},
	"github.com/goccy/go-yaml":           {"config"},
	"github.com/urfave/cli/v2":           {"cmd/hsmsign"},
	"github.com/schollz/progressbar/v3":  {"cmd/hsmsign"},
	"golang.org/x/term":                  {"cmd/hsmsign"},
	"software.sslmate.com/src/go-pkcs12": {"push", "signer/file"},
	"golang.org/x/crypto":                {"signer/file"},
	"github.com/smallstep/pkcs7":         nil, // a second opinion in tests; on damaged input it panics
	"github.com/rogpeppe/go-internal":    {"internal/scripttest"},
}

type listed struct {
	ImportPath string
	Imports    []string
}

func packages(t *testing.T) []listed {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", module+"/...")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var all []listed
	for dec := json.NewDecoder(strings.NewReader(string(out))); dec.More(); {
		var p listed
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	return all
}

func TestDirections(t *testing.T) {
	seen := map[string]bool{}
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, module+"/")
		seen[name] = true
		rule, ok := mayImport[name]
		if !ok && len(p.Imports) > 0 {
			t.Errorf("%s: a new room: say here whom it may know, and in docs/design.md why it is there", name)
			continue
		}
		for _, imported := range p.Imports {
			own, isOwn := strings.CutPrefix(imported, module+"/")
			if isOwn && !slices.Contains(rule.own, own) {
				t.Errorf("%s imports %s: %s", name, own, rule.why)
			}
			for library, rooms := range onlyIn {
				if (imported == library || strings.HasPrefix(imported, library+"/")) && !slices.Contains(rooms, name) {
					t.Errorf("%s imports %s, which belongs into %v", name, imported, rooms)
				}
			}
		}
	}
	for name, rule := range mayImport {
		if !seen[name] {
			t.Errorf("%s is not there any more (%s)", name, rule.why)
		}
	}
}

// Only commands print, exit and read the environment; test kits do what a test does.
func TestOnlyTheCommandSpeaks(t *testing.T) {
	speech := []string{"os.Exit(", "os.Getenv(", "os.LookupEnv(", "os.Stdout", "os.Stderr", "fmt.Print", "log.Print", "log.Fatal", "panic("}
	found := 0
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel("../..", path)
		if d.IsDir() {
			if strings.HasPrefix(d.Name(), ".") && d.Name() != ".." || d.Name() == "cmd" || rel == "softhsm-test" {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		found++
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for i, line := range strings.Split(string(data), "\n") {
			code, _, _ := strings.Cut(line, "//")
			for _, s := range speech {
				if strings.Contains(code, s) {
					t.Errorf("%s:%d: %s belongs into cmd/hsmsign", rel, i+1, s)
				}
			}
		}
		return nil
	})
	if err != nil || found < 10 {
		t.Fatalf("%d files, %v", found, err)
	}
}
