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
