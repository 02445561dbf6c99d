package softhsmtest_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"hsmsign/internal/scripttest"
	"hsmsign/internal/testkit"
)

// cloud is a double of a KMS in a separate process, with the golden vendor key.
type cloud struct {
	ref string   // names the golden vendor key
	env []string // credentials
}

// startDouble starts a double, which serves until the test ends, and returns the lines that it prints first.
func startDouble(t *testing.T, name string, lines int, args ...string) []string {
	t.Helper()
	cmd := exec.Command(filepath.Join(binary, name), args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	})
	scan := bufio.NewScanner(out)
	var printed []string
	for len(printed) < lines && scan.Scan() {
		printed = append(printed, scan.Text())
	}
	if len(printed) != lines {
		t.Fatalf("%s printed %q", name, printed)
	}
	return printed
}

func startAWS(t *testing.T, args ...string) cloud {
	t.Helper()
	key := filepath.Join(goldenDir, "vendor.key")
	// The address, two credentials, the key's ARN.
	printed := startDouble(t, "awskms-double", 4, append([]string{"--listen", "127.0.0.1:0", "--key", "alias/mdm-vendor=" + key}, args...)...)
	return cloud{
		ref: "awskms:///alias/mdm-vendor?region=eu-west-1&endpoint=" + printed[0],
		env: append(printed[1:3:3], "AWS_EC2_METADATA_DISABLED=true", "AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null"),
	}
}

func startGCP(t *testing.T, args ...string) cloud {
	t.Helper()
	key := filepath.Join(goldenDir, "vendor.key")
	printed := startDouble(t, "gcpkms-double", 1, append([]string{"--listen", "127.0.0.1:0", "--key", key}, args...)...)
	return cloud{ref: "gcpkms://projects/test/locations/global/keyRings/mdm/cryptoKeys/vendor/cryptoKeyVersions/1?endpoint=" + printed[0]}
}

func startVault(t *testing.T, args ...string) cloud {
	t.Helper()
	key := filepath.Join(goldenDir, "vendor.key")
	// The address, the token, the key's path.
	printed := startDouble(t, "vault-double", 3, append([]string{"--listen", "127.0.0.1:0", "--key", "mdm-vendor=" + key}, args...)...)
	return cloud{ref: "vault://" + printed[0] + "/" + printed[2] + "&tls=off", env: printed[1:2]}
}

// azureVersion is the version of the vendor key on Azure's double.
const azureVersion = "78deebed173b48e48f55abf87ed4cf71"

func startAzure(t *testing.T, args ...string) cloud {
	t.Helper()
	key, ca := filepath.Join(goldenDir, "vendor.key"), filepath.Join(t.TempDir(), "ca.pem")
	// The address, four variables, the key's path.
	printed := startDouble(t, "azurekms-double", 6, append([]string{"--listen", "127.0.0.1:0", "--ca", ca, "--key", "mdm-vendor/" + azureVersion + "=" + key}, args...)...)
	return cloud{ref: "azurekms://" + printed[0] + "/" + printed[5] + "?ca=" + ca, env: printed[1:5]}
}

// TestAzureDocument runs the commands of docs/azure.md that need no account, with the address of the double.
func TestAzureDocument(t *testing.T) {
	address, ca, _ := strings.Cut(strings.TrimPrefix(startAzure(t).ref, "azurekms://"), "?ca=")
	address, _, _ = strings.Cut(address, "/")
	runDocument(t, "../docs/azure.md", 5, []string{"azure.req"}, "127.0.0.1:8443", address, "ca=ca.pem", "ca="+ca)
}

// TestVaultDocument runs the commands of docs/vault.md that need no server, with the address of the double.
func TestVaultDocument(t *testing.T) {
	address := strings.TrimPrefix(startVault(t).ref, "vault://")
	address, _, _ = strings.Cut(address, "/")
	runDocument(t, "../docs/vault.md", 5, []string{"vault.req"}, "127.0.0.1:8200", address)
}

// TestKMSDocument runs the commands of docs/kms.md that need no account, with the addresses of the doubles.
func TestKMSDocument(t *testing.T) {
	// The end of each reference is the address.
	_, aws, _ := strings.Cut(startAWS(t).ref, "endpoint=")
	_, gcp, _ := strings.Cut(startGCP(t).ref, "endpoint=")
	runDocument(t, "../docs/kms.md", 8, []string{"aws.req", "gcp.req"}, "http://127.0.0.1:8080", aws, "127.0.0.1:9010", gcp)
}

// runDocument runs the commands of a document, at least min of hsmsign, after replacing words in them. They must make the
// golden request under each of the names.
func runDocument(t *testing.T, name string, min int, requests []string, replace ...string) {
	t.Helper()
	text := testkit.Value(os.ReadFile(name))(t)
	golden := testkit.Value(filepath.Abs("../testdata"))(t)
	dir := t.TempDir()
	testkit.OK(t, os.Symlink(golden, filepath.Join(dir, "testdata")))
	var script strings.Builder
	for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
		script.WriteString(block[1])
	}
	out := runIn(t, dir, strings.NewReplacer(replace...).Replace(script.String()))
	if n := strings.Count(string(out), "+ hsmsign "); n < min {
		t.Errorf("%d commands were run:\n%s", n, out)
	}
	want := testkit.File(t, "golden/customer.req")
	for _, name := range requests {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not the golden request (%v)", name, err)
		}
	}
}

// TestKMSScripts runs the real program with each cloud's double. A script has the golden files, $REF (the vendor key's
// reference), $NEW (the reference of a key that does not exist yet), $MISSING and $MALFORMED, and the
// condition sha1.
func TestKMSScripts(t *testing.T) {
	for name, double := range map[string]struct {
		start                    func(*testing.T, ...string) cloud
		newKey, missing, strange func(ref string) string
		sha1                     bool // the store signs SHA-1 digests too
	}{
		"aws": {
			startAWS,
			func(ref string) string { return strings.Replace(ref, "mdm-vendor", "mdm-new", 1) },
			func(ref string) string { return strings.Replace(ref, "mdm-vendor", "nothing", 1) },
			func(ref string) string { return strings.Replace(ref, "region=", "reigon=", 1) }, false,
		},
		"gcp": {
			startGCP,
			func(ref string) string { return strings.Replace(ref, "cryptoKeys/vendor", "cryptoKeys/new", 1) },
			func(ref string) string { return strings.Replace(ref, "cryptoKeys/vendor", "cryptoKeys/nothing", 1) },
			func(ref string) string { return strings.Replace(ref, "keyRings", "keyrings", 1) }, false,
		},
		"vault": {
			startVault,
			func(ref string) string { return strings.Replace(ref, "mdm-vendor", "mdm-new", 1) },
			func(ref string) string { return strings.Replace(ref, "mdm-vendor", "nothing", 1) },
			func(ref string) string { return strings.Replace(ref, "version=", "versoin=", 1) }, true,
		},
		"azure": {
			startAzure,
			func(ref string) string { return strings.Replace(ref, "mdm-vendor/"+azureVersion, "mdm-new", 1) },
			func(ref string) string { return strings.Replace(ref, "mdm-vendor", "nothing", 1) },
			func(ref string) string { return strings.Replace(ref, "/keys/", "/secrets/", 1) }, false,
		},
	} {
		t.Run(name, func(t *testing.T) {
			kms := double.start(t)
			testscript.Run(t, testscript.Params{
				Dir:                 filepath.Join("testdata", "kms"),
				RequireExplicitExec: true,
				Setup: func(env *testscript.Env) error {
					if err := setupFiles(env, nil); err != nil {
						return err
					}
					for _, variable := range kms.env {
						name, value, _ := strings.Cut(variable, "=")
						env.Setenv(name, value)
					}
					env.Setenv("REF", kms.ref)
					env.Setenv("NEW", double.newKey(kms.ref))
					env.Setenv("MISSING", double.missing(kms.ref))
					env.Setenv("MALFORMED", double.strange(kms.ref))
					return nil
				},
				Condition: func(name string) (bool, error) { return double.sha1, checkCondition(name) },
				Cmds:      scripttest.Commands(map[string]scripttest.Command{"made": cmdMade}),
			})
		})
	}
}

// cmdMade: made NAME sets $NAME to the reference in the JSON of the last command, key generate --json.
func cmdMade(ts *testscript.TestScript, _ bool, args []string) {
	var key struct{ Ref string }
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &key))
	ts.Setenv(args[0], key.Ref)
}

// checkCondition accepts the only condition of these scripts: the store signs SHA-1 digests.
func checkCondition(name string) error {
	if name != "sha1" {
		return fmt.Errorf("unknown condition %q", name)
	}
	return nil
}
