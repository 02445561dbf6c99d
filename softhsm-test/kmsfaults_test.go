//go:build cgo && linux

package softhsmtest_test

import (
	"errors"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"hsmsign/internal/testkit"
	aws "hsmsign/signer/awskms/awskmstest"
	azure "hsmsign/signer/azurekms/azurekmstest"
	gcp "hsmsign/signer/gcpkms/gcpkmstest"
	vault "hsmsign/signer/vault/vaulttest"
)

// service is a double of a KMS in the test process, so that it counts and fails as the test wants, with the golden
// vendor key.
type service struct {
	cloud
	fault   map[string]string                 // the double's names of the faults
	missing string                            // the permission whose lack it reports
	stand   func(fault string) error          // lets every signature meet this fault, after the script
	script  func(faults ...string) error      // lets the next signatures meet these faults, in order
	calls   func() (signatures, requests int) // that have come in
	close   func()
}

const (
	well = "well"
	// signatureDelay is the delay of every answer, so that many requests are in flight at any time.
	signatureDelay = 10 * time.Millisecond
)

func newAWS(t *testing.T, delay time.Duration) *service {
	t.Helper()
	server := testkit.Value(aws.NewServer(aws.Config{Delay: delay}))(t)
	t.Cleanup(func() { _ = server.Close() })
	if _, err := server.AddKey("alias/mdm-vendor", testkit.GoldenKey(t)); err != nil {
		t.Fatal(err)
	}
	session := aws.Credentials{AccessKeyID: "ASIAEXAMPLE0000000000", SecretAccessKey: awsSecret, SessionToken: awsToken}
	server.AddCredentials(session)
	return &service{
		cloud: cloud{
			ref: "awskms:///alias/mdm-vendor?region=eu-west-1&endpoint=" + server.Endpoint(),
			env: []string{
				"AWS_ACCESS_KEY_ID=" + session.AccessKeyID, "AWS_SECRET_ACCESS_KEY=" + awsSecret, "AWS_SESSION_TOKEN=" + awsToken,
				"AWS_EC2_METADATA_DISABLED=true", "AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null",
			},
		},
		fault: map[string]string{
			well: "ok", "throttled": "ThrottlingException", "failing": "KMSInternalException", "expired": "ExpiredTokenException",
			"reset": "reset", "damaged": "truncate", "wrong": "flip-bit", "disabled": "DisabledException", "silent": "hang", "denied": "AccessDeniedException",
		},
		missing: "grant kms:Sign to",
		stand:   func(fault string) error { return server.Stand("Sign", aws.Fault(fault)) },
		script: func(faults ...string) error {
			for _, f := range faults {
				if err := server.Script("Sign", aws.Fault(f)); err != nil {
					return err
				}
			}
			return nil
		},
		calls: func() (signatures, requests int) {
			return server.Calls("Sign"), server.Calls("*")
		},
		close: func() { _ = server.Close() },
	}
}

func newGCP(t *testing.T, delay time.Duration) *service {
	t.Helper()
	server := testkit.Value(gcp.NewServer(gcp.Config{Delay: delay}))(t)
	t.Cleanup(func() { _ = server.Close() })
	const name = "projects/mdm-prod/locations/europe-west1/keyRings/mdm/cryptoKeys/vendor/cryptoKeyVersions/1"
	if _, err := server.AddKey(name, testkit.GoldenKey(t)); err != nil {
		t.Fatal(err)
	}
	return &service{
		cloud: cloud{ref: "gcpkms://" + name + "?endpoint=" + server.Endpoint()},
		fault: map[string]string{
			well: "ok", "throttled": "throttle", "failing": "internal", "expired": "unauthenticated",
			"reset": "reset", "damaged": "corrupt-signature-crc", "wrong": "corrupt-signature", "disabled": "disabled", "silent": "hang", "denied": "permission-denied",
		},
		missing: "cloudkms.cryptoKeyVersions.useToSign",
		stand:   func(fault string) error { return server.Stand("AsymmetricSign", gcp.Fault(fault)) },
		script: func(faults ...string) error {
			for _, f := range faults {
				if err := server.Script("AsymmetricSign", gcp.Fault(f)); err != nil {
					return err
				}
			}
			return nil
		},
		calls: func() (signatures, requests int) {
			return server.Calls("AsymmetricSign"), server.Calls("*")
		},
		close: func() { _ = server.Close() },
	}
}

func newVault(t *testing.T, delay time.Duration) *service {
	t.Helper()
	server := testkit.Value(vault.NewServer(vault.Config{Delay: delay}))(t)
	t.Cleanup(func() { _ = server.Close() })
	path := testkit.Value(server.AddKey("mdm-vendor", testkit.GoldenKey(t)))(t)
	return &service{
		cloud: cloud{ref: "vault://" + server.Address() + "/" + path + "&tls=off", env: []string{"VAULT_TOKEN=" + vault.Token}},
		fault: map[string]string{
			well: "ok", "throttled": "throttle", "failing": "internal", "expired": "invalid-token",
			"reset": "reset", "damaged": "truncate", "wrong": "flip-bit", "disabled": "disabled", "silent": "hang", "denied": "denied",
		},
		missing: `allows "update transit/sign/mdm-vendor/sha2-256"`,
		stand:   func(fault string) error { return server.Stand("Sign", vault.Fault(fault)) },
		script: func(faults ...string) error {
			for _, f := range faults {
				if err := server.Script("Sign", vault.Fault(f)); err != nil {
					return err
				}
			}
			return nil
		},
		calls: func() (signatures, requests int) {
			return server.Calls("Sign"), server.Calls("*")
		},
		close: func() { _ = server.Close() },
	}
}

func newAzure(t *testing.T, delay time.Duration) *service {
	t.Helper()
	server := testkit.Value(azure.NewServer(azure.Config{Delay: delay}))(t)
	t.Cleanup(func() { _ = server.Close() })
	path := testkit.Value(server.AddKey("mdm-vendor", testkit.GoldenKey(t)))(t)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	testkit.OK(t, os.WriteFile(ca, server.CA(), 0o600))
	return &service{
		cloud: cloud{ref: "azurekms://" + server.Address() + "/" + path + "?ca=" + url.QueryEscape(ca), env: server.Environment()}, // the name of the test is part of the folder
		fault: map[string]string{
			well: "ok", "throttled": "throttle", "failing": "internal", "expired": "expired",
			"reset": "reset", "damaged": "truncate", "wrong": "flip-bit", "disabled": "disabled", "silent": "hang", "denied": "denied",
		},
		missing: "role of deploy/terraform/azure",
		stand:   func(fault string) error { return server.Stand("Sign", azure.Fault(fault)) },
		script: func(faults ...string) error {
			for _, f := range faults {
				if err := server.Script("Sign", azure.Fault(f)); err != nil {
					return err
				}
			}
			return nil
		},
		calls: func() (signatures, requests int) {
			return server.Calls("Sign"), server.Calls("*")
		},
		close: func() { _ = server.Close() },
	}
}

// The secrets, which no output may contain.
const (
	awsSecret = "session-secret-of-the-test" // #nosec G101 -- of the double alone
	awsToken  = "session-token-of-the-test"  // #nosec G101 -- of the double alone
)

func services() map[string]func(*testing.T, time.Duration) *service {
	return map[string]func(*testing.T, time.Duration) *service{"aws": newAWS, "gcp": newGCP, "vault": newVault, "azure": newAzure}
}

// meet sets the fault of every signature after the script.
func (s *service) meet(t *testing.T, fault string) {
	t.Helper()
	if err := s.stand(s.fault[fault]); err != nil {
		t.Error(err)
	}
}

// TestKMSCalls: a batch makes one request for each signature and no other, 64 at the same time, or as many as max-rps
// allows, however long that takes.
func TestKMSCalls(t *testing.T) {
	for name, start := range services() {
		for _, tt := range []struct {
			csrs  int
			delay time.Duration
			query string
			extra int // requests besides the signatures
		}{{1, 0, "", 1}, {128, 500 * time.Millisecond, "", 0}, {6, 0, "&max-rps=4&timeout=1s", 1}} {
			t.Run(name+" "+tt.query, func(t *testing.T) {
				double := start(t, tt.delay)
				b := newBatch(t, tt.csrs, double.env...)
				began := time.Now()
				b.complete(t, double.ref+tt.query)
				if took := time.Since(began); took > time.Duration(tt.csrs)*tt.delay/4+20*time.Second {
					t.Errorf("%v for %d signatures of %v, 64 at the same time", took, tt.csrs, tt.delay)
				}
				if signatures, requests := double.calls(); signatures != tt.csrs || requests > tt.csrs+tt.extra {
					t.Errorf("%d signatures in %d requests for %d CSRs", signatures, requests, tt.csrs)
				}
			})
		}
	}
}

// TestKMSResets: connections that break again and again during a batch cost only time.
func TestKMSResets(t *testing.T) {
	const csrs = 200
	for name, start := range services() {
		t.Run(name, func(t *testing.T) {
			double := start(t, signatureDelay)
			testkit.OK(t, double.script(slices.Repeat(append(slices.Repeat([]string{"ok"}, 20), double.fault["reset"]), 5)...))
			newBatch(t, csrs, double.env...).complete(t, double.ref)
			if signatures, _ := double.calls(); signatures <= csrs {
				t.Errorf("%d requests: the connections were not reset", signatures)
			}
		})
	}
}

// TestKMSInterrupted: a command that waits for the service ends at once when it is interrupted, with its exit code.
func TestKMSInterrupted(t *testing.T) {
	for name, start := range services() {
		t.Run(name, func(t *testing.T) {
			double := start(t, 0)
			double.meet(t, "silent")
			b := newBatch(t, 1, double.env...)
			output := filepath.Join(b.dir, "c000.req")
			cmd := exec.Command(filepath.Join(binary, "hsmsign"), "sign", "--key", double.ref, "--cert", goldenDir+"/chain.pem",
				"--trust-root", goldenDir+"/root.pem", "-o", output, filepath.Join(b.dir, "in", "c000.csr"))
			cmd.Env = append(os.Environ(), b.env...)
			testkit.OK(t, cmd.Start())
			testkit.Eventually(t, "a signature", func() bool { signatures, _ := double.calls(); return signatures > 0 })
			kill(t, cmd.Process, syscall.SIGINT)
			began := time.Now()
			_ = cmd.Wait()
			if code := cmd.ProcessState.ExitCode(); code != 130 || time.Since(began) > 10*time.Second {
				t.Errorf("exit code %d after %v", code, time.Since(began))
			}
			if _, err := os.Stat(output); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the output: %v", err)
			}
		})
	}
}

// TestKMSFaultsInABatch: whatever the service does after the 80th signature of a batch, when some of the 64 at the same time
// have been verified, each request is whole and right or absent, the exit code and one line say how it ended, no output
// contains a secret, and a second run completes it.
func TestKMSFaultsInABatch(t *testing.T) {
	const csrs = 160
	type does func(t *testing.T, s *service, program *os.Process)
	for name, start := range services() {
		for _, fault := range []struct {
			name   string
			exit   int
			text   string // in standard error
			during does   // nil: nothing
		}{
			{"throttled", 0, "160 signed", func(t *testing.T, s *service, _ *os.Process) {
				before, _ := s.calls()
				testkit.Eventually(t, "retries", func() bool { n, _ := s.calls(); return n > before+csrs })
				s.meet(t, well)
			}},
			{"damaged", 0, "160 signed", func(t *testing.T, s *service, _ *os.Process) { s.meet(t, well) }},
			{"failing", 6, "nternal", nil},
			{"silent", 6, "given up", nil},
			{"gone", 6, "connect", func(_ *testing.T, s *service, _ *os.Process) { s.close() }},
			{"wrong", 6, "bad signature", nil},
			{"expired", 5, "authentication failed", nil},
			{"denied", 5, "", nil},
			{"disabled", 4, "unusable key", nil},
			{"interrupted", 130, "interrupt", func(t *testing.T, _ *service, program *os.Process) { kill(t, program, syscall.SIGINT) }},
		} {
			t.Run(name+" "+fault.name, func(t *testing.T) {
				double := start(t, signatureDelay)
				testkit.OK(t, double.script(slices.Repeat([]string{"ok"}, csrs/2)...))
				stands := fault.name
				if stands == "gone" || stands == "interrupted" {
					stands = "silent"
				}
				double.meet(t, stands)
				b, ref := newBatch(t, csrs, double.env...), double.ref
				if fault.exit != 0 {
					ref += "&timeout=2s"
				}
				var exit int
				var stderr string
				if fault.during == nil {
					exit, stderr = b.sign(t, ref)
				} else {
					exit, stderr = b.during(t, ref, nil, func(program *os.Process) { fault.during(t, double, program) })
				}
				if strings.Contains(stderr, awsSecret) || strings.Contains(stderr, awsToken) || strings.Contains(stderr, vault.Token) || strings.Contains(stderr, azure.ClientSecret) {
					t.Errorf("a secret is printed: %s", stderr)
				}
				if n := strings.Count(stderr, "\n"); n > 2 || !strings.Contains(stderr, fault.text) { // the counts, and the reason
					t.Errorf("not one line with %q: %s", fault.text, stderr)
				}
				if fault.name == "denied" && !strings.Contains(stderr, double.missing) {
					t.Errorf("the permission %q is not named: %s", double.missing, stderr)
				}
				well := start(t, 0)
				b.env = append(b.env, well.env...)
				b.check(t, well.ref, exit, stderr, fault.exit)
			})
		}
	}
}
