package softhsmtest_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	softhsmtest "hsmsign/softhsm-test"
)

// commandsOf gives the hsmsign commands in a document's code blocks, continued lines joined.
func commandsOf(t *testing.T, document string) []string {
	t.Helper()
	text, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
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

// TestReadme runs the README's commands as they stand, in their order, in a folder that holds what they name. Only
// "chain fetch" is left out: it asks Apple.
func TestReadme(t *testing.T) {
	token := softhsmtest.New(t, softhsmtest.WithLabel("mdm"))
	dir := t.TempDir()
	read := func(name string) []byte {
		data, err := os.ReadFile(filepath.Join(goldenDir, name))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	token.Import(t, read("vendor.key"), "vendor", []byte{1})
	leaf, rest, _ := strings.Cut(string(read("chain.pem")), "-----END CERTIFICATE-----\n")
	if err := os.Mkdir(filepath.Join(dir, "csrs"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"vendor.key": read("vendor.key"), "vendor.csr": read("vendor.csr"), "acme.csr": read("customer.csr"),
		"csrs/acme.csr": read("customer.csr"), "mdm.cer": []byte(leaf + "-----END CERTIFICATE-----\n"),
		"apple.pem": []byte(rest), "root.pem": read("root.pem"), "pin": []byte(token.PIN),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	commands := commandsOf(t, "../README.md")
	if len(commands) < 9 {
		t.Fatalf("%d commands", len(commands))
	}
	for _, command := range commands {
		if strings.HasPrefix(command, "hsmsign chain fetch") {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		shell := exec.CommandContext(ctx, "bash", "-c", strings.ReplaceAll(command, "/usr/lib/softhsm/libsofthsm2.so", token.Module))
		shell.Dir = dir
		shell.Env = append(os.Environ(), append(token.Env(), "PATH="+binary+":"+os.Getenv("PATH"), "HOME="+dir,
			"XDG_CONFIG_HOME="+dir, "HSMSIGN_FORCE=true", "HSMSIGN_TRUST_ROOT="+filepath.Join(dir, "root.pem"))...)
		if out, err := shell.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", command, err, out)
		}
	}
}

// TestWalkthrough runs docs/walkthrough.md as it stands, from an empty store to a PKCS#12 file, with every kind of key.
func TestWalkthrough(t *testing.T) {
	module, err := softhsmtest.FindModule()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("../docs/walkthrough.md")
	if err != nil {
		t.Fatal(err)
	}
	aws, gcp := startAWS(t), startGCP(t)
	for _, store := range []struct {
		name, ref string
		env       []string
	}{
		{"softhsm", "", nil}, // the document makes token and reference
		{"file", "file:vendor.key?passphrase-file=vendor-pass", nil},
		{"awskms", strings.Replace(aws.ref, "mdm-vendor", "mdm-new", 1), aws.env},
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
			if err := os.WriteFile(filepath.Join(dir, "vendor-pass"), []byte("a passphrase of the vendor\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
			defer cancel()
			shell := exec.CommandContext(ctx, "bash", "-euxo", "pipefail", "-c",
				strings.ReplaceAll(script.String(), "/usr/lib/softhsm/libsofthsm2.so", module))
			shell.Dir = dir
			shell.Env = append(os.Environ(), append(store.env, "PATH="+binary+":"+os.Getenv("PATH"), "HOME="+dir, "XDG_CONFIG_HOME="+dir,
				"HSMSIGN_KEY="+store.ref)...)
			out, err := shell.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if strings.Count(string(out), "+ hsmsign ") < 13 {
				t.Errorf("not the whole way was gone:\n%s", out)
			}
			checkResults(t, dir)
		})
	}
}

// checkResults holds what the walkthrough left to what openssl and keytool make of it.
func checkResults(t *testing.T, dir string) {
	t.Helper()
	at := func(name string) string { return filepath.Join(dir, name) }
	run(t, "openssl", "verify", "-CAfile", at("pki/root.pem"), "-untrusted", at("vendor.pem"), at("vendor.pem"))
	run(t, "openssl", "verify", "-CAfile", at("pki/root.pem"), "-untrusted", at("pki/integration.pem"), at("MDM_Acme_Certificate.pem"))
	key := run(t, "openssl", "pkcs12", "-in", at("MDM_APNSCert.pfx"), "-passin", "file:"+at("export-pass"), "-nocerts", "-nodes")
	if !strings.Contains(string(key), "BEGIN PRIVATE KEY") {
		t.Errorf("openssl finds no key: %s", key)
	}
	if _, err := exec.LookPath("keytool"); err != nil {
		t.Fatal("there is no keytool here: run make deps")
	}
	list := run(t, "keytool", "-list", "-storetype", "PKCS12", "-keystore", at("MDM_APNSCert.pfx"), "-storepass:file", at("export-pass"))
	if !strings.Contains(string(list), "PrivateKeyEntry") {
		t.Errorf("keytool: %s", list)
	}
}
