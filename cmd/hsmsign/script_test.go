package main

import (
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"hsmsign/chain"
	"hsmsign/request"
	"hsmsign/testpki"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"hsmsign": main})
}

// TestScripts runs the real program. Every script starts in a folder with the golden files (vendor.key, chain.pem,
// root.pem, customer.csr, customer.req, ...) and csr/, a CSR file for each rule.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		RequireExplicitExec: true,
		Setup:               setupScript,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code":   cmdCode,
			"refuse": cmdRefuse,
			"vendor": cmdVendor,
			"fill":   cmdFill,
			"serve":  cmdServe,
			"absent": cmdAbsent,
		},
	})
}

func setupScript(env *testscript.Env) error {
	for from, to := range map[string]string{"golden": ".", "csr": "csr"} {
		if err := copyDir(filepath.Join("..", "..", "testdata", from), filepath.Join(env.WorkDir, to)); err != nil {
			return err
		}
	}
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

// cmdCode: code N program args... runs the program and wants exit code N.
func cmdCode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N program args...")
	}
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		exit, ok := err.(*exec.ExitError) //nolint:errorlint // testscript returns it bare
		if !ok {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if strconv.Itoa(got) != args[0] {
		ts.Fatalf("exit code %d, want %s", got, args[0])
	}
}

// cmdRefuse: refuse N program args... wants exit code N, nothing on standard output and one line on standard error.
func cmdRefuse(ts *testscript.TestScript, neg bool, args []string) {
	cmdCode(ts, neg, args)
	if out := ts.ReadFile("stdout"); out != "" {
		ts.Fatalf("standard output: %q", out)
	}
	line := ts.ReadFile("stderr")
	if !strings.HasPrefix(line, "hsmsign: ") || strings.Count(line, "\n") != 1 || !strings.HasSuffix(line, "\n") {
		ts.Fatalf("not one line on standard error: %q", line)
	}
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

// cmdFill: fill FILE N writes N bytes.
func cmdFill(ts *testscript.TestScript, _ bool, args []string) {
	n, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	f, err := os.Create(ts.MkAbs(args[0]))
	ts.Check(err)
	ts.Check(f.Truncate(n))
	ts.Check(f.Close())
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

// cmdAbsent: absent FILE... wants that none exists, and that nothing unfinished lies about.
func cmdAbsent(ts *testscript.TestScript, _ bool, args []string) {
	for _, a := range args {
		if _, err := os.Lstat(ts.MkAbs(a)); err == nil {
			ts.Fatalf("%s exists", a)
		}
		left, err := filepath.Glob(filepath.Join(filepath.Dir(ts.MkAbs(a)), tempPrefix+"*"))
		if err != nil || len(left) > 0 {
			ts.Fatalf("left behind: %v %v", left, err)
		}
	}
}
