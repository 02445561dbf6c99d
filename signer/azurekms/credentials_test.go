package azurekms

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/internal/signerkit"
	"hsmsign/internal/testkit"
	"hsmsign/signer"
	"hsmsign/signer/azurekms/azurekmstest"
)

// TestCredentials: a client secret, a workload identity and a managed identity, and what is reported of them.
func TestCredentials(t *testing.T) {
	server, reference := start(t, azurekmstest.Config{})
	secret := server.Environment()
	set := func(changes ...string) []string { return append(slices.Clone(secret), changes...) }
	federated := filepath.Join(t.TempDir(), "token")
	testkit.OK(t, os.WriteFile(federated, []byte(azurekmstest.FederatedToken), 0o600))
	workload := append(slices.Clone(secret[:3]), "AZURE_FEDERATED_TOKEN_FILE="+federated)
	managed := []string{"IDENTITY_ENDPOINT=https://" + server.Address() + azurekmstest.IdentityPath, "IDENTITY_HEADER=" + azurekmstest.IdentityHeader}
	broken := append(slices.Clone(secret[:3]), "AZURE_CLIENT_CERTIFICATE_PATH=/no/such/cert.pem")
	for _, tt := range []struct {
		name, query string
		env         []string
		text, fix   string // of an ErrAuth; "": it signs
		source      string // in the diagnosis
	}{
		// First: the SDK keeps the tokens of a managed identity for the whole process.
		{name: "wrong header", env: append(managed[:1:1], "IDENTITY_HEADER=wrong"), text: "not that of the identity", fix: "managed identity"},
		{name: "client secret", env: secret, source: "the environment"},
		{name: "workload identity", env: workload, source: "the workload identity"},
		{name: "managed identity", env: managed, source: "the managed identity"},
		{name: "by name", query: "&credential=managed", env: append(slices.Clone(secret), managed...), source: "the managed identity"},
		{name: "one of several identities", query: "&credential=managed&client-id=" + testClientID, env: managed, source: "the managed identity"},
		{name: "wrong secret", env: set("AZURE_CLIENT_SECRET=wrong-secret-value"), text: "status 401: invalid_client: AADSTS7000215: Invalid client secret provided.", fix: "AZURE_CLIENT_SECRET"},
		{name: "unknown client", env: set("AZURE_CLIENT_ID=other"), text: "AADSTS700016", fix: "workload identity"},
		{name: "another tenant", env: set("AZURE_TENANT_ID=99999999-2222-3333-4444-555555555555"), text: "tenant", fix: "AZURE_TENANT_ID"},
		{name: "no such certificate", env: broken, text: `environment: failed to read certificate file "/no/such/cert.pem"`, fix: "AZURE_CLIENT_CERTIFICATE_PATH"},
		{name: "not configured", query: "&credential=workload", text: "workload: no client ID specified", fix: "workload identity"},
		{name: "no environment", query: "&credential=environment", text: "environment: missing environment variable", fix: "AZURE_TENANT_ID"},
		{name: "az is not installed", query: "&credential=cli", env: []string{"PATH=/nonexistent"}, text: "no Azure token", fix: ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			environment(t, tt.env...)
			key, err := signerkit.Open(t, Backend(quick()), reference+tt.query, nil)
			if tt.text != "" {
				signerkit.WantError(t, err, signer.ErrAuth, tt.text, tt.fix)
				if shown := err.Error() + fault.Hint(err); strings.Contains(shown, "wrong-secret-value") || strings.Contains(shown, "Trace ID") {
					t.Errorf("%s", shown)
				}
				return
			}
			testkit.OK(t, err)
			signerkit.MustSign(t, key)
			if _, steps := signerkit.Diagnose(t, Backend(quick()), reference+tt.query, nil); !strings.Contains(steps["credentials"].Detail, tt.source) {
				t.Errorf("%+v", steps["credentials"])
			}
		})
	}
}

// TestTokenFaults: a server of tokens that fails or throttles is retried; it is not a refusal.
func TestTokenFaults(t *testing.T) {
	for _, fault := range []azurekmstest.Fault{azurekmstest.Throttle, azurekmstest.Internal, azurekmstest.Reset, azurekmstest.Delay(time.Millisecond)} {
		t.Run(string(fault), func(t *testing.T) {
			server, reference := start(t, azurekmstest.Config{})
			testkit.OK(t, server.Script("Token", fault))
			signerkit.MustSign(t, signerkit.MustOpen(t, Backend(quick()), reference, nil))
		})
	}
	// A machine without a managed identity: nothing answers, and that is not an outage.
	server, reference := start(t, azurekmstest.Config{})
	environment(t, "IDENTITY_ENDPOINT=https://127.0.0.1:1/msi/token", "IDENTITY_HEADER=other")
	_, err := signerkit.Open(t, Backend(quick()), reference+"&credential=managed&client-id="+strings.Replace(testClientID, "6", "7", 1), nil)
	signerkit.WantError(t, err, signer.ErrAuth, "no Azure token", "managed identity")
	if n := server.Challenges(); n != 1 {
		t.Errorf("%d challenges: the request was repeated", n)
	}
}
