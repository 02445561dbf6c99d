package softhsmtest_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"hsmsign/internal/scripttest"
	"hsmsign/internal/testkit"
	softhsmtest "hsmsign/softhsm-test"
)

const (
	binaryWait = 5 * time.Minute
	goldenDir  = "../testdata/golden"
)

// binary is the folder of the real program and the doubles of the KMSs, which are built once.
var binary string

func TestMain(m *testing.M) { os.Exit(runTests(m)) }

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "hsmsign-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	ctx, cancel := context.WithTimeout(context.Background(), binaryWait)
	defer cancel()
	build := exec.CommandContext(ctx, "go", "build", "-o", dir, "hsmsign/cmd/hsmsign",
		"hsmsign/signer/awskms/awskmstest/cmd/awskms-double", "hsmsign/signer/gcpkms/gcpkmstest/cmd/gcpkms-double",
		"hsmsign/signer/vault/vaulttest/cmd/vault-double", "hsmsign/signer/azurekms/azurekmstest/cmd/azurekms-double")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build hsmsign: %v\n%s", err, out)
		return 1
	}
	binary = dir
	return m.Run()
}

// TestScripts runs the real program with a SoftHSM2 token that has the golden vendor key as "vendor", id 01. A script has
// the golden files, $REF (the key's reference), $MODULE, $TOKEN (the label), $PIN and the file pin.
func TestScripts(t *testing.T) {
	scripts, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, script := range scripts {
		t.Run(filepath.Base(script), func(t *testing.T) {
			token := vendorToken(t, softhsmtest.WithLabel("mdm"))
			testscript.Run(t, testscript.Params{
				Files:               []string{script},
				RequireExplicitExec: true,
				Setup:               func(env *testscript.Env) error { return setup(env, token) },
				Cmds:                scripttest.Commands(nil),
			})
		})
	}
}

func setup(env *testscript.Env, token *softhsmtest.Token) error {
	if err := setupFiles(env, map[string]string{"pin": token.PIN + "\n", "wrong-pin": "0000\n"}); err != nil {
		return err
	}
	env.Setenv("SOFTHSM2_CONF", token.Conf)
	env.Setenv("TOKENS", filepath.Join(token.Dir, "tokens"))
	env.Setenv("MODULE", token.Module)
	env.Setenv("TOKEN", token.Label)
	env.Setenv("PIN", token.PIN)
	env.Setenv("REF", token.Ref("vendor"))
	return nil
}

// setupFiles gives a script the program, the golden files and more files.
func setupFiles(env *testscript.Env, more map[string]string) error {
	entries, err := os.ReadDir(goldenDir)
	if err != nil {
		return err
	}
	files := map[string][]byte{}
	for name, text := range more {
		files[name] = []byte(text)
	}
	for _, e := range entries {
		if files[e.Name()], err = os.ReadFile(filepath.Join(goldenDir, e.Name())); err != nil {
			return err
		}
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(env.WorkDir, name), data, 0o600); err != nil {
			return err
		}
	}
	env.Setenv("PATH", binary+string(filepath.ListSeparator)+env.Getenv("PATH"))
	env.Setenv("HOME", env.WorkDir)
	env.Setenv("XDG_CONFIG_HOME", filepath.Join(env.WorkDir, "config"))
	return nil
}

// TestGolden: with one key every backend makes the same request and the same CSR, and openssl accepts them.
func TestGolden(t *testing.T) {
	token := vendorToken(t)
	dir := t.TempDir()
	keyFile := filepath.Join(dir, "vendor.key")
	write(t, dir, map[string][]byte{"vendor.key": testkit.File(t, "golden/vendor.key")})
	want := testkit.File(t, "golden/customer.req")
	hsmsign := filepath.Join(binary, "hsmsign")
	subject := []string{"--common-name", "Example", "--email", "mdm@example.com", "--country", "US"}
	wantCSR := run(t, hsmsign, append([]string{"push", "csr", "--push-key", keyFile}, subject...)...)
	aws, gcp, vault, azure := startAWS(t), startGCP(t), startVault(t), startAzure(t)
	for _, variable := range slices.Concat(aws.env, vault.env, azure.env) {
		name, value, _ := strings.Cut(variable, "=")
		t.Setenv(name, value)
	}
	for name, ref := range map[string]string{
		"file": "file:" + keyFile, "softhsm": token.Ref("vendor"), "awskms": aws.ref, "gcpkms": gcp.ref, "vault": vault.ref, "azurekms": azure.ref,
	} {
		t.Run(name, func(t *testing.T) {
			got := run(t, hsmsign, "sign", "--key", ref,
				"--cert", goldenDir+"/chain.pem", "--trust-root", goldenDir+"/root.pem", goldenDir+"/customer.csr")
			if !bytes.Equal(got, want) {
				t.Errorf("not the golden request: %.80q...", got)
			}
			for _, of := range [][]string{{"vendor", "csr", "--key", ref}, {"push", "csr", "--push-key", ref}} {
				if got := run(t, hsmsign, append(of, subject...)...); !bytes.Equal(got, wantCSR) {
					t.Errorf("%s csr: %s, want %s", of[0], got, wantCSR)
				}
			}
		})
	}
	t.Run("openssl", func(t *testing.T) { checkGolden(t, dir) })
}

// checkGolden checks the golden request with other programs.
func checkGolden(t *testing.T, dir string) {
	at := func(name string) string { return filepath.Join(dir, name) }
	save := func(name string, data []byte) string {
		write(t, dir, map[string][]byte{name: data})
		return at(name)
	}
	plist := save("request.plist", run(t, "openssl", "base64", "-d", "-A", "-in", goldenDir+"/customer.req"))
	run(t, "xmllint", "--noout", plist)
	run(t, "plistutil", "-i", plist, "-o", at("request.bplist"))
	value := func(key string) []byte {
		return run(t, "xmllint", "--xpath", `string(//key[.="`+key+`"]/following-sibling::string[1])`, plist)
	}
	decode := func(name, key string) string {
		return save(name, run(t, "openssl", "base64", "-d", "-A", "-in", save(name+".b64", bytes.TrimSpace(value(key)))))
	}
	signature, csr := decode("signature", "PushCertSignature"), decode("csr.der", "PushCertRequestCSR")
	if got, want := run(t, "cat", csr), run(t, "openssl", "req", "-in", goldenDir+"/customer.csr", "-outform", "DER"); !bytes.Equal(got, want) {
		t.Error("the CSR inside is not the customer's")
	}
	chain := save("chain.pem", value("PushCertCertificateChain"))
	public := save("vendor.pub", run(t, "openssl", "x509", "-in", chain, "-noout", "-pubkey"))
	if out := run(t, "openssl", "dgst", "-sha256", "-verify", public, "-signature", signature, csr); !bytes.Contains(out, []byte("Verified OK")) {
		t.Errorf("openssl dgst: %s", out)
	}
	run(t, "openssl", "verify", "-CAfile", goldenDir+"/root.pem", "-untrusted", chain, chain)
}

// run runs a program and returns its standard output.
func run(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s%s", name, args, err, out, stderr.Bytes())
	}
	return out
}
