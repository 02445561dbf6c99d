package main

import (
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"hsmsign/chain"
	"hsmsign/internal/scripttest"
	"hsmsign/request"
	"hsmsign/testpki"
)

// commands are the programs that a script can run.
var commands = map[string]func(){"hsmsign": main}

func TestMain(m *testing.M) { testscript.Main(m, commands) }

// TestScripts runs the real program. Every script starts in a folder with the golden files (vendor.key, chain.pem,
// root.pem, customer.csr, customer.req, ...) and csr/, a CSR file for each rule.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		RequireExplicitExec: true,
		Setup:               setupScript,
		Cmds:                scripttest.Commands(map[string]scripttest.Command{"vendor": cmdVendor, "profilepki": cmdProfilePKI, "serve": cmdServe, "mdmcert": cmdMDMCert, "issuepush": cmdIssuePush, "agekey": cmdAgeKey, "flip": cmdFlip, "schema": cmdSchema, "witness": cmdWitness, "replica": cmdReplica, "servicepki": cmdServicePKI(t), "freeport": cmdFreePort, "ready": cmdReady, "proxy": cmdProxy, "awskms": cmdAWSKMS, "gcpkms": cmdGCPKMS, "oidcissuer": cmdIssuer(t), "sts": cmdSTS}),
	})
}

func setupScript(env *testscript.Env) error {
	for from, to := range map[string]string{"golden": ".", "csr": "csr"} {
		if err := copyDir(filepath.Join("..", "..", "testdata", from), filepath.Join(env.WorkDir, to)); err != nil {
			return err
		}
	}
	env.Setenv("AUDIT", filepath.Join(filepath.Dir(schemaDir), "audit.py"))
	// No configuration of the machine's own.
	env.Setenv("HOME", filepath.Join(env.WorkDir, "home"))
	env.Setenv("XDG_CONFIG_HOME", filepath.Join(env.WorkDir, "home", ".config"))
	return nil
}

func copyDir(from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(from, e.Name()))
		if err != nil {
			return err
		}
		// git keeps no mode 0600, and a key file that others can read is refused.
		if err := os.WriteFile(filepath.Join(to, e.Name()), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// cmdVendor: vendor KIND makes KIND.pem, a test chain for vendor.key with a vendor certificate of that kind, and
// KIND-root.pem.
func cmdVendor(ts *testscript.TestScript, _ bool, args []string) {
	now := time.Now()
	kinds := map[string]testpki.VendorOptions{
		"fresh":   {},
		"expired": {NotBefore: now.AddDate(-1, 0, -2), NotAfter: now.AddDate(0, 0, -2)},
		"future":  {NotBefore: now.AddDate(0, 0, 3)},
		"soon":    {NotBefore: now.AddDate(-1, 0, 10), NotAfter: now.AddDate(0, 0, 10)},
		"ca":      {IsCA: true},
		"bare":    {OmitExtension: true},
		"push":    {UID: "com.apple.mgmt.External.6a3f"},
	}
	opts, ok := kinds[args[0]]
	if !ok {
		ts.Fatalf("unknown kind %q", args[0])
	}
	csr, err := request.ParseCSR([]byte(ts.ReadFile("vendor.csr")))
	ts.Check(err)
	authority, err := testpki.New(now.AddDate(-2, 0, 0))
	ts.Check(err)
	vendor, err := authority.IssueVendor(csr.Parsed, opts)
	ts.Check(err)
	certs := []*x509.Certificate{vendor, authority.WWDR, authority.Root}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+".pem"), []byte(chain.PEM(certs)), 0o600))
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+"-root.pem"), []byte(chain.PEM(certs[2:])), 0o600))
}

// cmdServe: serve FOLDER serves it over HTTPS; $SERVER is its address, and SSL_CERT_FILE makes it trusted.
func cmdServe(ts *testscript.TestScript, _ bool, args []string) {
	server := httptest.NewTLSServer(http.FileServer(http.Dir(ts.MkAbs(args[0]))))
	ts.Defer(server.Close)
	ca := ts.MkAbs("server-ca.pem")
	ts.Check(os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600))
	ts.Setenv("SERVER", server.URL)
	ts.Setenv("SSL_CERT_FILE", ca)
}

// cmdSchema: schema NAME wants that each line of standard output is an object of the schema docs/schema/NAME.json, and that
// there is at least one.
func cmdSchema(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: schema NAME")
	}
	schema, err := jsonschema.NewCompiler().Compile(filepath.Join(schemaDir, args[0]+".json"))
	ts.Check(err)
	lines := strings.Split(strings.TrimSuffix(ts.ReadFile("stdout"), "\n"), "\n")
	for _, line := range lines {
		object, err := jsonschema.UnmarshalJSON(strings.NewReader(line))
		if err == nil {
			err = schema.Validate(object)
		}
		if err != nil {
			ts.Fatalf("%s\n%v", line, err)
		}
	}
}

// cmdAgeKey: agekey FILE makes an age identity, and its recipient in FILE.pub.
func cmdAgeKey(ts *testscript.TestScript, _ bool, args []string) {
	identity, err := age.GenerateX25519Identity()
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte("# of a test\n"+identity.String()+"\n"), 0o600))
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+".pub"), []byte(identity.Recipient().String()+"\n"), 0o600))
}

// cmdFlip: flip FILE OFFSET inverts one bit of a file; a negative offset counts from the end.
func cmdFlip(ts *testscript.TestScript, _ bool, args []string) {
	data := []byte(ts.ReadFile(args[0]))
	at, err := strconv.Atoi(args[1])
	ts.Check(err)
	if at < 0 {
		at += len(data)
	}
	data[at] ^= 1
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), data, 0o600))
}

// schemaDir is absolute: a script has a folder of its own.
var schemaDir, _ = filepath.Abs(filepath.Join("..", "..", "docs", "schema"))
