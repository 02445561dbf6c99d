//go:build cgo

package main

import (
	"errors"
	"os/exec"
	"strings"
	"testing"

	"hsmsign/fault"
)

// A build without the cloud SDKs says so, and has none of their code.
func TestNoCloud(t *testing.T) {
	hsmsign := buildProgram(t, "nocloud")
	out, err := exec.Command(hsmsign, "version").CombinedOutput() // #nosec G204 -- a test's own arguments
	if err != nil || !strings.Contains(string(out), "key stores: file, pkcs11, vault\n") {
		t.Errorf("%v: %s", err, out)
	}
	out, err = exec.Command(hsmsign, "key", "show", "--key", "awskms:///alias/mdm").CombinedOutput() // #nosec G204 -- as above
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != fault.Usage.Exit() || !strings.Contains(string(out), "-tags nocloud") {
		t.Errorf("%v: %s", err, out)
	}
	out, err = exec.Command(hsmsign, "sign", "--agent", "https://127.0.0.1:1", "--agent-aws", "x.csr").CombinedOutput() // #nosec G204 -- as above
	if !errors.As(err, &exit) || exit.ExitCode() != fault.Usage.Exit() || !strings.Contains(string(out), "this build has no AWS SDK, it was made with -tags nocloud") {
		t.Errorf("%v: %s", err, out)
	}
	deps, err := exec.Command("go", "list", "-deps", "-tags", "nocloud", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, prefix := range []string{"github.com/aws/", "cloud.google.com/", "google.golang.org/grpc", "google.golang.org/api", "google.golang.org/genproto", "github.com/Azure/", "github.com/AzureAD/"} {
		if strings.Contains(string(deps), "\n"+prefix) {
			t.Errorf("the build without cloud SDKs has packages of %s", prefix)
		}
	}
}
