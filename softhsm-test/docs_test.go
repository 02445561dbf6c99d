package softhsmtest_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"hsmsign/internal/testkit"
	softhsmtest "hsmsign/softhsm-test"
)

// commandsOf returns the hsmsign commands in a document's code blocks, with continued lines joined.
func commandsOf(t *testing.T, document string) []string {
	t.Helper()
	text := testkit.Value(os.ReadFile(document))(t)
	var commands []string
	for _, block := range regexp.MustCompile("(?s)```\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
		for _, line := range strings.Split(strings.ReplaceAll(block[1], "\\\n", " "), "\n") {
			if strings.HasPrefix(line, "hsmsign ") {
				commands = append(commands, line)
			}
		}
	}
	return commands
}

// runIn runs a script with bash in a folder, with the program in its PATH.
func runIn(t *testing.T, dir, script string, env ...string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	shell := exec.CommandContext(ctx, "bash", "-euxo", "pipefail", "-c", script)
	shell.Dir = dir
	shell.Env = append(os.Environ(), append(env, "PATH="+binary+":"+os.Getenv("PATH"), "HOME="+dir, "XDG_CONFIG_HOME="+dir)...)
	out, err := shell.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return out
}

// write writes files into a folder.
func write(t *testing.T, dir string, files map[string][]byte) {
	t.Helper()
	for name, data := range files {
		testkit.OK(t, os.WriteFile(filepath.Join(dir, name), data, 0o600))
	}
}

// debianModule is SoftHSM2's module in the documents.
const debianModule = "/usr/lib/softhsm/libsofthsm2.so"

// TestReadme runs the README's commands in their order, in a folder with the files that they name. Only "chain fetch" and
// --agent are omitted: they ask Apple and a service.
func TestReadme(t *testing.T) {
	token := vendorToken(t, softhsmtest.WithLabel("mdm"))
	dir := t.TempDir()
	golden := func(name string) []byte { return testkit.File(t, "golden/"+name) }
	leaf, rest, _ := strings.Cut(string(golden("chain.pem")), "-----END CERTIFICATE-----\n")
	testkit.OK(t, os.Mkdir(filepath.Join(dir, "csrs"), 0o700))
	write(t, dir, map[string][]byte{
		"vendor.key": golden("vendor.key"), "vendor.csr": golden("vendor.csr"), "acme.csr": golden("customer.csr"),
		"csrs/acme.csr": golden("customer.csr"), "mdm.cer": []byte(leaf + "-----END CERTIFICATE-----\n"),
		"apple.pem": []byte(rest), "root.pem": golden("root.pem"), "pin": []byte(token.PIN),
	})
	commands := slices.DeleteFunc(commandsOf(t, "../README.md"), func(c string) bool {
		return strings.HasPrefix(c, "hsmsign chain fetch") || strings.Contains(c, " --agent ")
	})
	if len(commands) < 8 {
		t.Fatalf("%d commands", len(commands))
	}
	runIn(t, dir, strings.ReplaceAll(strings.Join(commands, "\n"), debianModule, token.Module),
		append(token.Env(), "HSMSIGN_FORCE=true", "HSMSIGN_TRUST_ROOT="+filepath.Join(dir, "root.pem"))...)
}

// TestWalkthrough runs docs/walkthrough.md unchanged, from an empty store to a PKCS#12 file, with every kind of key.
func TestWalkthrough(t *testing.T) {
	module := testkit.Value(softhsmtest.FindModule())(t)
	text := testkit.Value(os.ReadFile("../docs/walkthrough.md"))(t)
	aws, gcp, vault := startAWS(t), startGCP(t), startVault(t)
	for _, store := range []struct {
		name, ref string
		env       []string
	}{
		{"softhsm", "", nil}, // the document creates token and reference
		{"file", "file:vendor.key?passphrase-file=vendor-pass", nil},
		{"awskms", strings.Replace(aws.ref, "mdm-vendor", "mdm-new", 1), aws.env},
		{"vault", strings.Replace(vault.ref, "mdm-vendor", "mdm-new", 1), vault.env},
		{"gcpkms", strings.Replace(gcp.ref, "cryptoKeys/vendor", "cryptoKeys/new", 1), gcp.env},
	} {
		t.Run(store.name, func(t *testing.T) {
			dir := t.TempDir()
			var script strings.Builder
			for _, block := range regexp.MustCompile("(?s)```sh( softhsm)?\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
				if block[1] == "" || store.ref == "" {
					script.WriteString(block[2])
				}
			}
			write(t, dir, map[string][]byte{"vendor-pass": []byte("a passphrase of the vendor\n")})
			out := runIn(t, dir, strings.ReplaceAll(script.String(), debianModule, module), append(store.env, "HSMSIGN_KEY="+store.ref)...)
			if strings.Count(string(out), "+ hsmsign ") < 13 {
				t.Errorf("commands are missing:\n%s", out)
			}
			checkResults(t, dir, store.name == "file")
		})
	}
}

// checkResults checks the walkthrough's results with openssl, and with keytool, which is slow.
func checkResults(t *testing.T, dir string, keytool bool) {
	t.Helper()
	at := func(name string) string { return filepath.Join(dir, name) }
	run(t, "openssl", "verify", "-CAfile", at("pki/root.pem"), "-untrusted", at("vendor.pem"), at("vendor.pem"))
	run(t, "openssl", "verify", "-CAfile", at("pki/root.pem"), "-untrusted", at("pki/integration.pem"), at("MDM_Acme_Certificate.pem"))
	key := run(t, "openssl", "pkcs12", "-in", at("MDM_APNSCert.pfx"), "-passin", "file:"+at("export-pass"), "-nocerts", "-nodes")
	if !strings.Contains(string(key), "BEGIN PRIVATE KEY") {
		t.Errorf("openssl finds no key: %s", key)
	}
	if !keytool {
		return
	}
	if _, err := exec.LookPath("keytool"); err != nil {
		t.Fatal("keytool is missing: run make deps")
	}
	list := run(t, "keytool", "-list", "-storetype", "PKCS12", "-keystore", at("MDM_APNSCert.pfx"), "-storepass:file", at("export-pass"))
	if !strings.Contains(string(list), "PrivateKeyEntry") {
		t.Errorf("keytool: %s", list)
	}
}
