// Package architecture holds the directions in which the rooms of the program may know each other. It has no code.
package architecture

import (
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"hsmsign/internal/testkit"
)

// module is the module path; see make rename.
var module = sync.OnceValue(func() string {
	out, err := exec.Command("go", "list", "-m").Output()
	if err != nil {
		panic(err)
	}
	return strings.TrimSpace(string(out))
})

// mayImport says which of our packages a package imports in its program code, and why no other.
var mayImport = map[string]struct {
	own []string
	why string
}{
	"fault":                         {nil, "every package reports findings and failures; fault knows no package"},
	"secret":                        {[]string{"fault"}, "where a secret comes from; what it opens is the caller's business"},
	"config":                        {[]string{"agent/policy", "fault", "internal/suggest"}, "the content of a file; the caller decides what it means"},
	"testpki":                       {[]string{"internal/wholefile"}, "it replaces Apple in tests, so it must not share a mistake with what it tests"},
	"signer":                        {[]string{"fault", "internal/suggest"}, "the center: backends and callers know it, it knows none of them"},
	"signer/file":                   {[]string{"fault", "internal/cbc", "internal/filekind", "internal/pfx", "internal/strictder", "internal/wholefile", "secret", "signer"}, "a backend knows the interface only; this one writes files"},
	"signer/pkcs11":                 {[]string{"fault", "secret", "signer", "signer/isolate", "signer/pkcs11/internal/p11kit", "signer/pkcs11/internal/uri"}, "a backend knows the interface only; this one can run in a worker process"},
	"signer/pkcs11/internal/p11kit": {[]string{"signer"}, "p11-kit's configuration files"},
	"signer/pkcs11/internal/uri":    {[]string{"fault", "internal/suggest", "signer"}, "the path of a PKCS#11 URI"},
	"signer/isolate":                {[]string{"fault", "signer"}, "any Signer in a worker process: it knows no backend"},
	"signer/kms":                    {[]string{"fault", "signer"}, "what the backends of network key stores share: limits, retries, the breaker, the Signer"},
	"signer/awskms":                 {[]string{"fault", "signer", "signer/kms"}, "a backend imports the interface, and what the clouds share"},
	"signer/gcpkms":                 {[]string{"fault", "signer", "signer/kms"}, "a backend imports the interface, and what the clouds share"},
	"signer/vault":                  {[]string{"fault", "secret", "signer", "signer/kms"}, "a backend imports the interface, and what the network stores share; this one reads its own token"},
	"signer/vault/vaulttest":        {[]string{"internal/double"}, "users' CI imports it; a double must not share a mistake with the code that it tests"},
	"signer/vault/vaulttest/cmd/vault-double":          {[]string{"internal/double", "signer/vault/vaulttest"}, "the double as a process"},
	"signer/azurekms":                                  {[]string{"fault", "signer", "signer/kms"}, "a backend imports the interface, and what the clouds share"},
	"signer/azurekms/azurekmstest":                     {[]string{"internal/double"}, "users' CI imports it; a double must not share a mistake with the code that it tests"},
	"signer/azurekms/azurekmstest/cmd/azurekms-double": {[]string{"internal/double", "signer/azurekms/azurekmstest"}, "the double as a process"},
	"signer/awskms/awskmstest":                         {[]string{"internal/double"}, "users' CI imports it; a double must not share a mistake with the code that it tests"},
	"signer/gcpkms/gcpkmstest":                         {[]string{"internal/double"}, "users' CI imports it; a double must not share a mistake with the code that it tests"},
	"signer/awskms/awskmstest/cmd/awskms-double":       {[]string{"internal/double", "signer/awskms/awskmstest"}, "the double as a process"},
	"signer/gcpkms/gcpkmstest/cmd/gcpkms-double":       {[]string{"internal/double", "signer/gcpkms/gcpkmstest"}, "the double as a process"},
	"signer/signertest":                                {[]string{"fault", "signer"}, "users run it on their own backends"},
	"softhsm-test":                                     {[]string{"signer"}, "users' CI imports it"},
	"chain":                                            {[]string{"fault", "internal/filekind", "internal/pemtext", "internal/strictder"}, "certificates only: no key, no request"},
	"request":                                          {[]string{"chain", "fault", "internal/filekind", "internal/pemtext", "internal/strictder"}, "the file only: it never sees a key"},
	"ledger/record":                                    {[]string{"fault"}, "what a ledger records: no database, so that programs without a ledger link none"},
	"ledger/witness":                                   {[]string{"fault"}, "one witness over HTTP: what to send and when is the ledger's business"},
	"ledger/witnesstest":                               {nil, "a witness for tests; it must not share a mistake with the client that it tests"},
	"ledger":                                           {[]string{"fault", "internal/input", "internal/wholefile", "ledger/record", "ledger/witness"}, "the record of each use of the key, over any database/sql store"},
	"ledger/sqlite":                                    {[]string{"fault", "ledger"}, "one store of the ledger; the driver is known here only"},
	"ledger/postgres":                                  {[]string{"fault", "ledger"}, "one store of the ledger; the driver is known here only"},
	"ledger/postgres/postgrestest":                     {nil, "a private server for tests"},
	"ledger/ledgertest":                                {[]string{"fault", "ledger", "ledger/record", "ledger/witnesstest"}, "the battery that every store passes"},
	"ledger/reconcile":                                 {[]string{"fault", "ledger", "ledger/record", "signer"}, "a cloud's log against the entries; it opens no store and no file"},
	"ledger/watch":                                     {[]string{"chain", "fault", "internal/input", "lifecycle/abm"}, "the chains of files and TLS endpoints; it knows no ledger"},
	"ledger/backup":                                    {[]string{"fault", "internal/input", "internal/wholefile", "ledger", "ledger/record", "ledger/sqlite"}, "copies of a ledger as files, and back; SQLite only has files"},
	"ledger/open":                                      {[]string{"fault", "ledger", "ledger/postgres", "ledger/sqlite"}, "the only room that knows all stores of the ledger"},
	"agent/policy":                                     {[]string{"agent/policy/hook", "fault", "internal/suggest", "ledger/record"}, "who may ask for what, and whose approvals count; it knows no key, and reads no file but the programs that hook runs"},
	"agent/policy/hook":                                {[]string{"fault", "internal/input"}, "a program that is asked; what it is told is the business of agent"},
	"agent":                                            {[]string{"agent/policy", "agent/policy/hook", "api", "chain", "fault", "ledger/record", "lifecycle/profile", "lifecycle/vendorcert", "request", "signer"}, "the use cases; the key store is passed in, so a program that imports agent links only what it uses"},
	"api/ledgerapi":                                    {[]string{"api", "ledger", "ledger/record"}, "the shapes of what a ledger returns; agent, which imports api, must know no ledger"},
	"server":                                           {[]string{"agent", "agent/policy", "api", "api/ledgerapi", "chain", "fault", "ledger", "ledger/record", "lifecycle/mdmcert", "lifecycle/profile", "lifecycle/pushcert", "request", "server/authn", "server/authn/awsiam", "server/authn/oidc", "server/console", "server/dropin", "server/notify", "server/traces"}, "HTTP in front of agent and ledger; it reads no configuration and opens no key"},
	"server/notify":                                    {[]string{"api", "api/ledgerapi", "fault", "internal/wholefile", "ledger", "ledger/record"}, "what leaves the outbox, and what is due; what a mail to a customer says is passed in, and so are the secrets"},
	"server/notify/notifytest":                         {nil, "a mail server and a webhook for tests; they must not share a mistake with what they test"},
	"server/console":                                   {[]string{"api", "fault"}, "what a browser is shown: it asks nobody and decides nothing"},
	"server/traces":                                    {[]string{"fault"}, "spans to a collector; it knows no request and no key"},
	"server/traces/tracestest":                         {nil, "a collector for tests; it must not share a mistake with the client that it tests"},
	"server/authn":                                     {[]string{"agent/policy", "fault", "server/authn/awsiam", "server/authn/oidc"}, "who sent a request; what the caller may is the policy's business"},
	"server/dropin":                                    {[]string{"fault", "ledger", "ledger/record", "lifecycle/mdmcert", "request", "server/notify"}, "the wire forms of other products, and mails from the ledger, which notify sends; who asks, and what is signed, is the business of server"},
	"server/authn/oidc":                                {[]string{"fault"}, "tokens of issuers; whose claims they are is the policy's business, and files are read by the caller"},
	"server/authn/oidc/oidctest":                       {[]string{"internal/testkit"}, "an issuer for tests; it must not share a mistake with the verifier that it tests"},
	"server/authn/awsiam":                              {[]string{"fault"}, "what AWS STS says of a signature; the mapping to a caller is the policy's business"},
	"server/authn/awsiam/awsiamtest":                   {nil, "a double of AWS STS; it must not share a mistake with the code that it tests"},
	"client/awsiam":                                    {[]string{"fault"}, "a credential from the AWS SDK, which package client must not link"},
	"client":                                           {[]string{"api", "fault"}, "what a program needs that asks a service: no key, no ledger, no server"},
	"internal/servicekit":                              {[]string{"agent", "agent/policy", "internal/testkit", "ledger", "ledger/sqlite", "server", "server/authn", "server/authn/oidc", "server/notify", "signer", "testpki"}, "the service for tests of several packages; no product code imports it"},
	"api":                                              {[]string{"chain", "fault", "internal/strictder", "ledger/record", "lifecycle/identity", "lifecycle/profile", "lifecycle/pushcert", "request", "signer"}, "the shapes of results; it opens nothing and decides nothing"},
	"keystore":                                         {[]string{"chain", "fault", "internal/input", "secret", "signer", "signer/awskms", "signer/file", "signer/azurekms", "signer/gcpkms", "signer/pkcs11", "signer/vault"}, "the only room that knows all backends"},
	"lifecycle/certreq":                                {[]string{"fault", "internal/strictder", "signer"}, "the CSR only: whose it is, and who signs it, is the caller's business"},
	"lifecycle/vendorcert":                             {[]string{"chain", "fault", "internal/pemtext", "internal/strictder", "lifecycle/certreq", "signer"}, "the vendor's key and certificate; which backend holds the key is not its business"},
	"lifecycle/ceremony":                               {[]string{"api", "chain", "fault", "internal/wholefile", "keystore", "lifecycle/certreq", "lifecycle/vendorcert", "signer"}, "the key ceremony and its transcript"},
	"lifecycle/pushcert":                               {[]string{"chain", "fault"}, "the customer's certificate: it knows no vendor key and no request"},
	"lifecycle/mdmcert":                                {[]string{"fault", "internal/cms", "internal/filekind", "internal/pemtext", "internal/strictder", "signer"}, "the wire form of mdmcert.download"},
	"lifecycle/profile":                                {[]string{"fault", "internal/cms", "internal/filekind", "internal/pemtext", "signer"}, "the profile and its signature; whose key signs, and who asks, is the business of agent"},
	"lifecycle/abm":                                    {[]string{"fault", "internal/cms", "internal/filekind", "signer"}, "the server token; where key and token are is the business of the caller"},
	"internal/cms":                                     {[]string{"fault", "internal/cbc", "internal/filekind", "signer"}, "signed and encrypted messages; the callers know what is inside"},
	"internal/cbc":                                     {nil, "block ciphers and padding; the callers know the formats"},
	"internal/double":                                  {nil, "what the doubles share; it imports neither"},
	"internal/scripttest":                              {nil, "for tests of the program from outside"},
	"internal/signerkit":                               {[]string{"fault", "internal/testkit", "signer", "signer/kms"}, "what tests of several key stores share; no product code imports it"},
	"internal/console":                                 {[]string{"fault", "internal/input"}, "what a command line prints and asks"},
	"internal/input":                                   {nil, "bytes of a file that a user names"},
	"lifecycle/identity":                               {[]string{"chain", "fault", "internal/cms", "internal/pfx", "internal/strictder", "lifecycle/profile", "lifecycle/pushcert"}, "the kinds of certificates, and what devices send and get; it holds no key"},
	"internal/pfx":                                     {nil, "PKCS#12 within limits; the callers know what the key is for"},

	"internal/filekind":  {[]string{"internal/pemtext"}, "what a file contains; the callers know what they need"},
	"internal/pemtext":   {nil, "the blocks of a text; the callers know the labels"},
	"internal/strictder": {nil, "the structure of certificates and CSRs; the callers have the rules"},
	"internal/suggest":   {nil, "two names, and how far apart they are"},
	"internal/testkit":   {[]string{"fault", "testpki"}, "helpers that tests of several packages share; no product code imports it"},
	"internal/wholefile": {nil, "bytes and a path"},
	"cmd/hsmsign": {[]string{"agent", "agent/policy", "api", "api/ledgerapi", "chain", "client", "client/awsiam", "config", "fault", "internal/console", "internal/filekind", "internal/input", "internal/pfx", "internal/strictder", "internal/suggest", "internal/wholefile", "keystore", "ledger", "ledger/backup", "ledger/open", "ledger/reconcile", "ledger/record", "ledger/watch", "lifecycle/abm", "lifecycle/ceremony", "lifecycle/certreq", "lifecycle/identity", "lifecycle/mdmcert",
		"lifecycle/profile", "lifecycle/pushcert", "lifecycle/vendorcert", "request", "secret", "server", "server/authn", "server/authn/awsiam", "server/authn/oidc", "server/notify", "server/traces", "signer", "signer/file", "testpki"},
		"flags, terminal, printing"},
}

// onlyIn says which of our packages may import a library; its types must not spread.
var onlyIn = map[string][]string{
	"github.com/miekg/pkcs11":             {"signer/pkcs11"},
	"github.com/aws/aws-sdk-go-v2":        {"client/awsiam", "signer/awskms", "signer/awskms/awskmstest"},
	"cloud.google.com/go/kms":             {"signer/gcpkms", "signer/gcpkms/gcpkmstest"},
	"google.golang.org/grpc":              {"signer/gcpkms", "signer/gcpkms/gcpkmstest"},
	"github.com/Azure":                    {"signer/azurekms"},
	"github.com/sony/gobreaker/v2":        {"signer/kms"},
	"modernc.org/sqlite":                  {"ledger/sqlite"},
	"github.com/jackc/pgx/v5":             {"ledger/postgres", "ledger/postgres/postgrestest"},
	"golang.org/x/mod":                    {"ledger", "ledger/ledgertest", "ledger/witness", "ledger/witnesstest"},
	"github.com/transparency-dev/formats": {"ledger", "ledger/witness", "ledger/witnesstest"},
	"filippo.io/age":                      {"cmd/hsmsign", "ledger/backup"},
	"howett.net/plist":                    {"lifecycle/profile", "request"},
	"github.com/goccy/go-yaml":            {"config"},
	"github.com/urfave/cli/v2":            {"cmd/hsmsign"},
	"github.com/schollz/progressbar/v3":   {"internal/console"},
	"golang.org/x/term":                   {"internal/console"},
	"software.sslmate.com/src/go-pkcs12":  {"internal/pfx", "lifecycle/pushcert", "testpki"},
	"golang.org/x/crypto":                 {"signer/file", "internal/strictder"},
	"github.com/coreos/go-systemd/v22":    {"cmd/hsmsign", "server"},
	"github.com/prometheus/client_golang": {"server"},
	"github.com/wneessen/go-mail":         {"server/notify"},
	"github.com/emersion/go-smtp":         {"server/notify/notifytest"},
	"github.com/emersion/go-sasl":         {"server/notify/notifytest"},
	"go.opentelemetry.io":                 {"server/traces", "server/traces/tracestest"}, // its types must not spread
	"github.com/smallstep/pkcs7":          {"internal/cms"},                              // it verifies; on damaged input it panics, which internal/cms catches
	"github.com/rogpeppe/go-internal":     {"internal/scripttest"},
	"github.com/getkin/kin-openapi":       nil, // tests compare the API with its description
	"github.com/coreos/go-oidc/v3":        {"server/authn/oidc"},
	"github.com/go-jose/go-jose/v4":       {"server/authn/oidc"},
	"golang.org/x/oauth2":                 {"server/authn/oidc"},
	"github.com/zitadel/oidc/v3":          nil, // a provider in a process of its own, for tests
}

type listed struct {
	ImportPath string
	Imports    []string
}

func packages(t *testing.T) []listed {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", module()+"/...")
	cmd.Stderr = os.Stderr
	out := testkit.Value(cmd.Output())(t)
	var all []listed
	for dec := json.NewDecoder(strings.NewReader(string(out))); dec.More(); {
		var p listed
		testkit.OK(t, dec.Decode(&p))
		all = append(all, p)
	}
	return all
}

func TestDirections(t *testing.T) {
	seen := map[string]bool{}
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, module()+"/")
		seen[name] = true
		rule, ok := mayImport[name]
		if !ok && len(p.Imports) > 0 {
			t.Errorf("%s: a new room: say here whom it may know, and in docs/design.md why it is there", name)
			continue
		}
		for _, imported := range p.Imports {
			own, isOwn := strings.CutPrefix(imported, module()+"/")
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
			if strings.HasPrefix(d.Name(), ".") && d.Name() != ".." || d.Name() == "cmd" || rel == "softhsm-test" || d.Name() == "testkit" || d.Name() == "postgrestest" {
				return filepath.SkipDir
			}
			if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil && rel != "." {
				return filepath.SkipDir // a module of its own is another program
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

// maySign says which files of the program code sign, and what. A vendor key signs customers' CSRs, the vendor's own CSR and the
// probe message, and nothing else.
var maySign = map[string]string{
	"agent/agent.go":                     "customers' CSRs",
	"agent/probe.go":                     "the probe message",
	"agent/vendor.go":                    "for agent.go and probe.go",
	"signer/probe.go":                    "the probe message",
	"signer/signer.go":                   "the function itself, and the adapter for crypto/x509",
	"signer/isolate/serve.go":            "what its parent asks for",
	"lifecycle/vendorcert/vendorcert.go": "the probe message, which Apple's certificate must verify",
	"lifecycle/certreq/certreq.go":       "a CSR: the vendor's own, or a customer's with the customer's key",
	"agent/profile.go":                   "profiles that were parsed",
	"lifecycle/profile/sign.go":          "profiles that were parsed, with a key that is no vendor key",
	"internal/cms/sign.go":               "for lifecycle/profile: the attributes of a SignedData",
	"internal/cms/recipient.go":          "the certificate of a key that decrypts and was just generated",
	"signer/signertest/checks.go":        "the conformance suite, with a key for tests",
	"signer/signertest/bench.go":         "likewise",
	"signer/signertest/signertest.go":    "likewise",
	"internal/signerkit/signerkit.go":    "likewise",
}

// TestWhoSigns: no other file has a key sign.
func TestWhoSigns(t *testing.T) {
	found := map[string]bool{}
	testkit.OK(t, filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && strings.HasPrefix(d.Name(), ".") && d.Name() != ".." {
			return fs.SkipDir
		}
		rel, _ := filepath.Rel("../..", path)
		if d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(data)) {
			code, _, _ := strings.Cut(line, "//")
			if signs.MatchString(code) && !strings.Contains(code, "SignContext(context.Background(), ") { // a backend's Sign
				if found[rel] = true; maySign[rel] == "" {
					t.Errorf("%s has a key sign: %s", rel, strings.TrimSpace(line))
				}
			}
		}
		return nil
	}))
	for file := range maySign {
		if !found[file] {
			t.Errorf("%s signs nothing any more", file)
		}
	}
}

// signs finds the ways to a signature of a signer.Signer.
var signs = regexp.MustCompile(`[^.]signer\.Sign\(|cms\.Sign\(|profile\.Sign\(|signer\.CryptoSigner\(|\.SignContext\(|\.SignMessageContext\(|v\.sign\(|[^.\w]Sign\(ctx, `)
