package server

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"hsmsign/agent/policy"
	"hsmsign/request"
	"hsmsign/server/authn/awsiam"
)

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("..", path))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// short returns a time as the documents write it.
func short(d time.Duration) string {
	return strings.ReplaceAll(d.String(), "m0s", "m")
}

func hours(d time.Duration) string { return strings.TrimSuffix(d.String(), "0m0s") }

func kib(n int64) string { return fmt.Sprintf("%d KiB", n>>10) }

// TestLimitsAreDocumented compares the limits in docs/service.md with the code: every row, and no other.
func TestLimitsAreDocumented(t *testing.T) {
	d := Limits{}.withDefaults()
	bodies := map[string]int64{}
	handler := (&Server{}).newRoutes()
	for _, path := range []string{"/v1/requests", "/v1/verify", "/v1/customers/x/push-certificates", "/v1/freeze"} {
		bodies[path] = routeOf(t, handler, path).body
	}
	want := map[string]string{
		"header of a request": kib(maxHeader), "TLS handshake and header": short(d.Header), "request with its body": short(d.Body), "idle connection": short(d.Idle),
		"connections of all listeners": fmt.Sprint(d.Connections), "body with a CSR (the CSR itself: " + kib(request.MaxCSR) + ")": kib(bodies["/v1/requests"]),
		"body of `POST /v1/verify`": kib(bodies["/v1/verify"]), "body with a push certificate": kib(bodies["/v1/customers/x/push-certificates"]), "other JSON bodies": kib(bodies["/v1/freeze"]),
		"signatures at once": fmt.Sprint(d.Running), "requests that wait for their turn": fmt.Sprint(d.Waiting), "wait for a turn": short(queueWait),
		"requests of one caller at once": fmt.Sprint(d.Each), "requests of one caller a second": fmt.Sprint(anyRate), "request after its body": short(requestWait),
		"drain after SIGTERM": short(drainWait), "interval of checks of the vendor's key": short(probeEvery), "age of the last signature at which `/readyz` says 503": short(probeOld),
		"interval of comparing the replicas' policies": short(policyEvery), "last sign of life of a replica after which its policy is not compared": short(replicaOld), "records a second about requests of strangers": fmt.Sprint(logRate),
		"exports of the ledger at once": fmt.Sprint(maxExports), "export of the ledger": short(exportWait),
		"entries of one page of a list": "1000", "validity of a token": fmt.Sprint(policy.MaxTokenDays, " days"),
		"session of the console without a request": short(sessionIdle), "session of the console": hours(sessionAbsolute), "age of a sign-in to change customers, attach, approve or reject": short(freshFor),
		"link of `hsmsign console login`": short(linkWait), "sign-in at a provider": short(signInWait), "sign-ins, or cookies of sessions that do not exist, of one address (IPv6: /64) at once": fmt.Sprintf("%d, %d", signInBurst, signInRate),
		"validity of an AWS signature after its `X-Amz-Date`": short(awsiam.MaxAge), "call to AWS STS": short(awsiam.Timeout),
		// Tests of their packages compare these: TestServeLimitsAreDocumented, awsiam.TestLimitsAreDocumented, that of package oidc, and package policy's own.
		"calls to AWS STS a second from a source that has identified a caller (address and access key)": "", "calls to AWS STS a second with another access key from the address of such a source": "",
		"calls to AWS STS a second from another address (IPv6: /64)": "", "calls to AWS STS at once": "",
		"signature, in the key store": "", "interval of comparing TLS files": "", "validity of a client certificate": "",
		"length of an OIDC token": "", "difference of the clocks of an issuer and the service": "", "interval of fetching the keys of an issuer": "", "interval of fetching them without a reason": "",
		"discovery and keys of an issuer": "", "answer of an issuer": "", "keys of an issuer": "", "use of the keys of an issuer that does not answer": "", "OIDC tokens that wait for the keys of an issuer at once": "",
	}
	_, section, _ := strings.Cut(read(t, "docs/service.md"), "\n## Limits\n")
	rows := regexp.MustCompile(`(?m)^\| (.*) \| (.*) \|$`).FindAllStringSubmatch(section, -1)
	if len(rows) != len(want)+1 {
		t.Errorf("%d rows, want %d and the heading", len(rows), len(want))
	}
	for what, value := range want {
		found := false
		for _, row := range rows {
			if row[1] == what || strings.HasPrefix(row[1], what+";") || strings.HasPrefix(row[1], what+",") {
				found = true
				if value != "" && row[2] != value {
					t.Errorf("%s: the document says %s, the code %s", what, row[2], value)
				}
			}
		}
		if !found {
			t.Errorf("there is no row %q", what)
		}
	}
}

// routeOf returns the route of a path that is sent.
func routeOf(t *testing.T, mux *http.ServeMux, path string) *route {
	t.Helper()
	handler, _ := mux.Handler(httptest.NewRequest(http.MethodPost, path, nil))
	found, ok := handler.(*route)
	if !ok {
		t.Fatalf("%s has no route", path)
	}
	return found
}

// TestUnits checks the units for systemd: those that systemd itself checks, and what the service needs of them.
func TestUnits(t *testing.T) {
	unit := read(t, "deploy/systemd/hsmsign.service")
	stop := regexp.MustCompile(`(?m)^TimeoutStopSec=(.*)$`).FindStringSubmatch(unit)
	if stop == nil {
		t.Fatal("there is no TimeoutStopSec")
	}
	if wait, err := time.ParseDuration(stop[1]); err != nil || wait <= drainWait {
		t.Errorf("systemd waits %v, and the drain %v: %v", wait, drainWait, err)
	}
	for _, line := range []string{"Type=notify", "KillMode=mixed", "NoNewPrivileges=yes", "LimitCORE=0", "RuntimeDirectory=hsmsign", "LoadCredential=secrets:/etc/hsmsign/secrets", `ExecReload=/bin/sh -c "kill -HUP $MAINPID"`} {
		if !strings.Contains(unit, "\n"+line) {
			t.Errorf("there is no %s", line)
		}
	}
	// With these the service does not see who connects its Unix socket.
	if regexp.MustCompile(`(?m)^(PrivateUsers=yes|ProtectProc=invisible)`).MatchString(unit) {
		t.Error("the service cannot see its peers")
	}
	for _, address := range regexp.MustCompile(`(?m)^ListenStream=(.*)$`).FindAllStringSubmatch(read(t, "deploy/systemd/hsmsign.socket"), -1) {
		text := "tls://" + address[1]
		if strings.HasPrefix(address[1], "/") {
			text = "unix://" + address[1]
		}
		if _, err := ParseAddress(text); err != nil {
			t.Error(err)
		}
	}
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	units := []string{"hsmsign.service", "hsmsign.socket", "hsmsign-due.service", "hsmsign-due.timer"}
	for _, name := range units {
		text := strings.ReplaceAll(read(t, "deploy/systemd/"+name), "/usr/bin/hsmsign", "/bin/true")
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "systemd-analyze", append([]string{"verify", "--man=no"}, units...)...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "SYSTEMD_UNIT_PATH="+dir+":")
	if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(string(out), "hsmsign") {
		t.Errorf("%v: %s", err, out)
	}
}
