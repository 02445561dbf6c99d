package softhsmtest_test

import (
	"bufio"
	"bytes"
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

// TestKMSDocument runs the commands of docs/kms.md that need no account, with the addresses of the doubles.
func TestKMSDocument(t *testing.T) {
	text := testkit.Value(os.ReadFile("../docs/kms.md"))(t)
	golden := testkit.Value(filepath.Abs("../testdata"))(t)
	dir := t.TempDir()
	testkit.OK(t, os.Symlink(golden, filepath.Join(dir, "testdata")))
	var script strings.Builder
	for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
		script.WriteString(block[1])
	}
	// The end of each reference is the address.
	_, aws, _ := strings.Cut(startAWS(t).ref, "endpoint=")
	_, gcp, _ := strings.Cut(startGCP(t).ref, "endpoint=")
	commands := strings.NewReplacer("http://127.0.0.1:8080", aws, "127.0.0.1:9010", gcp).Replace(script.String())
	out := runIn(t, dir, commands)
	if n := strings.Count(string(out), "+ hsmsign "); n < 8 {
		t.Errorf("%d commands were run:\n%s", n, out)
	}
	want := testkit.File(t, "golden/customer.req")
	for _, name := range []string{"aws.req", "gcp.req"} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not the golden request (%v)", name, err)
		}
	}
}

// TestKMSScripts runs the real program with each cloud's double. A script has the golden files, $REF (the vendor key's
// reference), $NEW (the reference of a key that does not exist yet), $MISSING and $MALFORMED.
func TestKMSScripts(t *testing.T) {
	for name, double := range map[string]struct {
		start                    func(*testing.T, ...string) cloud
		newKey, missing, strange func(ref string) string
	}{
		"aws": {
			startAWS,
			func(ref string) string { return strings.Replace(ref, "mdm-vendor", "mdm-new", 1) },
			func(ref string) string { return strings.Replace(ref, "mdm-vendor", "nothing", 1) },
			func(ref string) string { return strings.Replace(ref, "region=", "reigon=", 1) },
		},
		"gcp": {
			startGCP,
			func(ref string) string { return strings.Replace(ref, "cryptoKeys/vendor", "cryptoKeys/new", 1) },
			func(ref string) string { return strings.Replace(ref, "cryptoKeys/vendor", "cryptoKeys/nothing", 1) },
			func(ref string) string { return strings.Replace(ref, "keyRings", "keyrings", 1) },
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
				Cmds: scripttest.Commands(nil),
			})
		})
	}
}
