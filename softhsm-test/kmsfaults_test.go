//go:build cgo && linux

package softhsmtest_test

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	aws "hsmsign/signer/awskms/awskmstest"
	gcp "hsmsign/signer/gcpkms/gcpkmstest"
)

// service is a double of a KMS within the test, so that it counts and fails as the test wants, with the golden vendor
// key in it.
type service struct {
	cloud
	fault   map[string]string                 // what it calls the faults that the tests know by the names below
	missing string                            // the permission that it says is missing
	stand   func(fault string) error          // every signature meets this fault from now on
	script  func(faults ...string) error      // the next signatures meet these, in order
	calls   func() (signatures, requests int) // that have come in
	close   func()
}

const (
	well = "well"
	// signatureDelay is how late every answer comes, so that many are under way at any time.
	signatureDelay = 10 * time.Millisecond
)

func goldenKey(t *testing.T) *rsa.PrivateKey {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(goldenDir, "vendor.key"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return parsed.(*rsa.PrivateKey)
}

func newAWS(t *testing.T, delay time.Duration) *service {
	t.Helper()
	server, err := aws.NewServer(aws.Config{Delay: delay})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	if _, err := server.AddKey("alias/mdm-vendor", goldenKey(t)); err != nil {
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
	server, err := gcp.NewServer(gcp.Config{Delay: delay})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	const name = "projects/mdm-prod/locations/europe-west1/keyRings/mdm/cryptoKeys/vendor/cryptoKeyVersions/1"
	if _, err := server.AddKey(name, goldenKey(t)); err != nil {
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

// What must not be seen anywhere.
const (
	awsSecret = "session-secret-of-the-test" // #nosec G101 -- of the double alone
	awsToken  = "session-token-of-the-test"  // #nosec G101 -- of the double alone
)

func services() map[string]func(*testing.T, time.Duration) *service {
	return map[string]func(*testing.T, time.Duration) *service{"aws": newAWS, "gcp": newGCP}
}

// meet lets every signature meet a fault.
func (s *service) meet(t *testing.T, fault string) {
	t.Helper()
	if err := s.stand(s.fault[fault]); err != nil {
		t.Error(err)
	}
}

// only keeps the first n CSRs of the batch.
func (b *bench) only(t *testing.T, n int) {
	t.Helper()
	for i := n; i < batchOf; i++ {
		if err := os.Remove(filepath.Join(b.dir, "in", fmt.Sprintf("c%03d.csr", i))); err != nil {
			t.Fatal(err)
		}
	}
}

// signAll runs the batch and gives exit code and standard error.
func (b *bench) signAll(t *testing.T, ref string) (int, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	return result(t, b.sign(ctx, ref))
}

// result runs a command to its end.
func result(t *testing.T, cmd *exec.Cmd) (int, string) {
	t.Helper()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), stderr.String()
}

// TestKMSCalls: one request a signature and none beside, for one CSR and for a batch; of a batch 64 are under way at
// once, or as many as max-rps lets through in time.
func TestKMSCalls(t *testing.T) {
	for name, start := range services() {
		t.Run(name, func(t *testing.T) {
			t.Run("one CSR", func(t *testing.T) {
				double := start(t, 0)
				b := newBench(t, double.env...)
				b.only(t, 1)
				if exit, stderr := b.signAll(t, double.ref); exit != 0 || b.outputs(t) != 1 {
					t.Fatalf("exit code %d: %s", exit, stderr)
				}
				if signatures, requests := double.calls(); signatures != 1 || requests > 2 {
					t.Errorf("%d signatures in %d requests", signatures, requests)
				}
			})
			t.Run("a batch", func(t *testing.T) {
				const csrs, delay = 128, 500 * time.Millisecond
				double := start(t, delay)
				b := newBench(t, double.env...)
				b.only(t, csrs)
				began := time.Now()
				if exit, stderr := b.signAll(t, double.ref); exit != 0 || b.outputs(t) != csrs {
					t.Fatalf("exit code %d: %s", exit, stderr)
				}
				if took := time.Since(began); took > csrs/64*delay+4*time.Second {
					t.Errorf("%v for %d signatures of %v at 64 in flight", took, csrs, delay)
				}
				if signatures, requests := double.calls(); signatures != csrs || requests != csrs {
					t.Errorf("%d signatures in %d requests for %d CSRs", signatures, requests, csrs)
				}
			})
			t.Run("a batch at a low rate", func(t *testing.T) {
				double := start(t, 0)
				b := newBench(t, double.env...)
				b.only(t, 8)
				if exit, stderr := b.signAll(t, double.ref+"&max-rps=2&timeout=2s"); exit != 0 || b.outputs(t) != 8 {
					t.Errorf("exit code %d: %s", exit, stderr)
				}
			})
		})
	}
}

// TestKMSResets: connections that break again and again under a batch of 1,000 cost time and nothing else.
func TestKMSResets(t *testing.T) {
	const csrs = 1000
	for name, start := range services() {
		t.Run(name, func(t *testing.T) {
			double := start(t, signatureDelay)
			if err := double.script(slices.Repeat(append(slices.Repeat([]string{"ok"}, 50), double.fault["reset"]), 20)...); err != nil {
				t.Fatal(err)
			}
			b := newBench(t, double.env...)
			csr, err := os.ReadFile(filepath.Join(b.dir, "in", "c000.csr"))
			if err != nil {
				t.Fatal(err)
			}
			for i := batchOf; i < csrs; i++ {
				if err := os.WriteFile(filepath.Join(b.dir, "in", fmt.Sprintf("c%03d.csr", i)), csr, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if exit, stderr := b.signAll(t, double.ref); exit != 0 || b.outputs(t) != csrs {
				t.Errorf("exit code %d: %s", exit, stderr)
			}
			if signatures, _ := double.calls(); signatures < csrs+19 { // the last one waits for request 1,020
				t.Errorf("%d requests: the connections were not reset", signatures)
			}
		})
	}
}

// TestKMSInterrupted: a command that waits for the service ends at once when it is interrupted, and says so by its code.
func TestKMSInterrupted(t *testing.T) {
	for name, start := range services() {
		t.Run(name, func(t *testing.T) {
			double := start(t, 0)
			double.meet(t, "silent")
			b := newBench(t, double.env...)
			b.only(t, 1)
			output := filepath.Join(b.dir, "c000.req")
			cmd := exec.Command(filepath.Join(binary, "hsmsign"), "sign", "--key", double.ref, "--cert", goldenDir+"/chain.pem",
				"--trust-root", goldenDir+"/root.pem", "-o", output, filepath.Join(b.dir, "in", "c000.csr"))
			cmd.Env = append(os.Environ(), b.env...)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
				if signatures, _ := double.calls(); signatures > 0 {
					break
				}
			}
			kill(t, cmd.Process, syscall.SIGINT)
			began := time.Now()
			_ = cmd.Wait()
			if code := cmd.ProcessState.ExitCode(); code != 1 || time.Since(began) > 2*time.Second {
				t.Errorf("exit code %d after %v", code, time.Since(began))
			}
			if _, err := os.Stat(output); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the output: %v", err)
			}
		})
	}
}

// TestKMSFaultsInABatch: whatever the service does in the middle of a batch, each request is whole and right or absent,
// the exit code and one line say how it ended, no secret is told, and a second run completes it.
func TestKMSFaultsInABatch(t *testing.T) {
	for name, start := range services() {
		for _, fault := range []struct {
			name        string
			exit        int
			text        string        // in standard error
			least, most time.Duration // from the fault to the end
			do          func(t *testing.T, s *service, program *os.Process)
		}{
			{"throttled for 3 s", 0, "600 signed", 3 * time.Second, 20 * time.Second, func(t *testing.T, s *service, _ *os.Process) {
				s.meet(t, "throttled")
				time.AfterFunc(3*time.Second, func() { s.meet(t, well) })
			}},
			{"damaged now and then", 0, "600 signed", 0, 20 * time.Second, func(t *testing.T, s *service, _ *os.Process) {
				if err := s.script(slices.Repeat([]string{"ok", "ok", "ok", "ok", s.fault["damaged"]}, 10)...); err != nil {
					t.Error(err)
				}
			}},
			{"failing", 6, "nternal", 0, 4 * time.Second, func(t *testing.T, s *service, _ *os.Process) { s.meet(t, "failing") }},
			{"silent", 6, "given up", 0, 4 * time.Second, func(t *testing.T, s *service, _ *os.Process) { s.meet(t, "silent") }},
			{"gone", 6, "connect", 0, 4 * time.Second, func(_ *testing.T, s *service, _ *os.Process) { s.close() }},
			{"wrong", 6, "bad signature", 0, 2 * time.Second, func(t *testing.T, s *service, _ *os.Process) { s.meet(t, "wrong") }},
			{"expired", 5, "credentials", 0, 2 * time.Second, func(t *testing.T, s *service, _ *os.Process) { s.meet(t, "expired") }},
			{"denied", 5, "", 0, 2 * time.Second, func(t *testing.T, s *service, _ *os.Process) { s.meet(t, "denied") }},
			{"disabled", 4, "unusable key", 0, 2 * time.Second, func(t *testing.T, s *service, _ *os.Process) { s.meet(t, "disabled") }},
			{"interrupted while silent", 1, "interrupt", 0, 2 * time.Second, func(t *testing.T, s *service, program *os.Process) {
				s.meet(t, "silent")
				time.Sleep(5 * signatureDelay)
				kill(t, program, syscall.SIGINT)
			}},
		} {
			t.Run(name+" "+fault.name, func(t *testing.T) {
				double := start(t, signatureDelay)
				b := newBench(t, double.env...)
				ref := double.ref
				if fault.most < 5*time.Second {
					ref += "&timeout=2s"
				}
				var since time.Time
				exit, stderr := b.during(t, ref, nil, func(program *os.Process) {
					since = time.Now()
					fault.do(t, double, program)
				})
				took, n := time.Since(since), b.outputs(t)
				if exit != fault.exit || took < fault.least || took > fault.most || exit == 0 && n != batchOf {
					t.Errorf("exit code %d after %v with %d requests: %s", exit, took, n, stderr)
				}
				if strings.Contains(stderr, awsSecret) || strings.Contains(stderr, awsToken) {
					t.Errorf("a secret is told: %s", stderr)
				}
				if n := strings.Count(stderr, "\n"); n > 2 || !strings.Contains(stderr, fault.text) { // the counts, and the reason
					t.Errorf("not one line that says %q: %s", fault.text, stderr)
				}
				if fault.name == "denied" && !strings.Contains(stderr, double.missing) {
					t.Errorf("the permission %q is not named: %s", double.missing, stderr)
				}
				other := start(t, 0)
				b.complete(t, other.ref)
			})
		}
	}
}
