package azurekms

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hsmsign/fault"
	"hsmsign/internal/signerkit"
	"hsmsign/internal/testkit"
	"hsmsign/signer"
	"hsmsign/signer/kms"
)

const (
	testVersion  = "78deebed173b48e48f55abf87ed4cf71"
	testClientID = "66666666-7777-8888-9999-000000000000"
)

func TestParseReference(t *testing.T) {
	public := reference{host: "acme.vault.azure.net", site: sites()[0]}
	with := func(r reference, change func(*reference)) reference { change(&r); return r }
	named := with(public, func(r *reference) { r.name, r.version = "mdm-Vendor", testVersion })
	for in, want := range map[string]reference{
		"azurekms://acme.vault.azure.net/keys/mdm-Vendor/" + testVersion:                    named,
		"azurekms://ACME.Vault.azure.net/keys/mdm-Vendor/" + testVersion:                    named,
		"azurekms://acme.vault.azure.net/keys/mdm-Vendor":                                   with(named, func(r *reference) { r.version = "" }),
		"azurekms://acme.vault.azure.net/keys":                                              public,
		"azurekms://127.0.0.1:8443/keys/x?ca=/ca.pem":                                       {host: "127.0.0.1:8443", double: true, name: "x", ca: "/ca.pem"},
		"azurekms://[::1]:8443/keys/x":                                                      {host: "[::1]:8443", double: true, name: "x"},
		"azurekms://acme.vault.azure.net/keys?credential=workload":                          with(public, func(r *reference) { r.credentialKind = "workload" }),
		"azurekms://acme.vault.azure.net/keys?credential=managed&client-id=" + testClientID: with(public, func(r *reference) { r.credentialKind, r.clientID = "managed", testClientID }),
		"azurekms://acme.vault.azure.net/keys?require-hsm=yes&protection=hsm":               with(public, func(r *reference) { r.requireHSM = true }),
		"azurekms://acme.vault.azure.net/keys?protection=software":                          with(public, func(r *reference) { r.software = true }),
		"azurekms://acme.vault.azure.net/keys?max-rps=12.5&max-concurrent=8&timeout=1m":     with(public, func(r *reference) { r.policy = kms.Policy{MaxRPS: 12.5, MaxConcurrent: 8, Timeout: time.Minute} }),
		"azurekms://acme.managedhsm.azure.net/keys":                                         {host: "acme.managedhsm.azure.net", site: sites()[1]},
		"azurekms://acme.vault.azure.cn/keys":                                               {host: "acme.vault.azure.cn", site: sites()[2]},
		"azurekms://acme.managedhsm.azure.cn/keys":                                          {host: "acme.managedhsm.azure.cn", site: sites()[3]},
		"azurekms://acme.vault.usgovcloudapi.net/keys":                                      {host: "acme.vault.usgovcloudapi.net", site: sites()[4]},
		"azurekms://acme.managedhsm.usgovcloudapi.net/keys":                                 {host: "acme.managedhsm.usgovcloudapi.net", site: sites()[5]},
	} {
		got, err := parseReference(signerkit.Ref(t, in), kms.Policy{})
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(reference{}, site{})); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got)\n%s", in, err, diff)
		}
	}
	for host, authority := range map[string]string{
		"acme.vault.azure.net": "", "acme.vault.azure.cn": "https://login.chinacloudapi.cn/", "acme.managedhsm.usgovcloudapi.net": "https://login.microsoftonline.us/",
	} {
		r, err := parseReference(signerkit.Ref(t, "azurekms://"+host+"/keys"), kms.Policy{})
		if got := r.site.cloud.ActiveDirectoryAuthorityHost; err != nil || got != authority {
			t.Errorf("%s: tokens from %q, want %q", host, got, authority)
		}
	}
}

func TestParseReferenceRefuses(t *testing.T) {
	const vault = "azurekms://acme.vault.azure.net/keys"
	for _, tt := range []struct{ in, text string }{
		{"azurekms:acme/keys/x", "write azurekms://VAULT"},
		{"azurekms://acme.vault.azure.net", "write azurekms://VAULT"},
		{"azurekms://acme.vault.azure.net/secrets/x", "write azurekms://VAULT"},
		{vault + "/x/" + testVersion + "/y", "write azurekms://VAULT"},
		{vault + "/", "ends with a slash"},
		{vault + "/x/", "ends with a slash"},
		{"azurekms:///keys/x", "not the host of a vault"},
		{"azurekms://vault.azure.net/keys/x", "not the host of a vault"},
		{"azurekms://a.vault.azure.net/keys/x", "not the host of a vault"},
		{"azurekms://a.b.vault.azure.net/keys/x", "not the host of a vault"},
		{"azurekms://acme.vault.azure.net.evil.example/keys/x", "not the host of a vault"},
		{"azurekms://evilvault.azure.net/keys/x", "not the host of a vault"},
		{"azurekms://acme.vault.azure.net:443/keys/x", "not the host of a vault"},
		{"azurekms://acme.vault.microsoftazure.de/keys/x", "not the host of a vault"},
		{"azurekms://127.0.0.1/keys/x", "not the host of a vault"},
		{"azurekms://127.0.0.1:0/keys/x", "not the host of a vault"},
		{"azurekms://10.0.0.1:443/keys/x", "not the host of a vault"},
		{"azurekms://localhost:8443/keys/x", "not the host of a vault"},
		{vault + "/a_b", "not the name of a key"},
		{vault + "/..", "not the name of a key"},
		{vault + "/" + strings.Repeat("a", 128), "not the name of a key"},
		{vault + "/x/latest", "not a version"},
		{vault + "/x/" + strings.ToUpper(testVersion), "not a version"},
		{vault + "/x/" + testVersion + "0", "not a version"},
		{vault + "?credential=secret", "environment, workload, managed or cli"},
		{vault + "?credential=", "environment, workload, managed or cli"},
		{vault + "?client-id=" + testClientID, "credential=managed"},
		{vault + "?credential=managed&client-id=x", "a UUID"},
		{vault + "?require-hsm=no", "the only value is yes"},
		{vault + "?protection=none", "hsm or software"},
		{vault + "?protection=software&require-hsm=yes", "contradicts"},
		{"azurekms://acme.managedhsm.azure.net/keys?protection=software", "contradicts"},
		{vault + "?ca=/ca.pem", "loopback only"},
		{"azurekms://127.0.0.1:8443/keys?ca=", "loopback only"},
		{vault + "?max-concurrent=1025", "max-concurrent"},
		{vault + "?endpoint=https://x", "unknown query attribute"},
	} {
		_, err := parseReference(signerkit.Ref(t, tt.in), kms.Policy{})
		if !errors.Is(err, signer.ErrReference) || !strings.Contains(err.Error()+"; "+fault.Hint(err), tt.text) {
			t.Errorf("%s: got %v (%s), want %q", tt.in, err, fault.Hint(err), tt.text)
		}
	}
}

// FuzzReference: a reference is refused with ErrReference, or its host is in a domain of Azure or on loopback, its names need
// no escape in a URL, and its attributes are within their limits.
func FuzzReference(f *testing.F) {
	testkit.Seeds(f, "FuzzReference", 10)
	f.Fuzz(func(t *testing.T, in string) {
		ref, err := signer.ParseRef(in)
		if err != nil || ref.Scheme != "azurekms" {
			return
		}
		r, err := parseReference(ref, kms.Policy{})
		if err != nil {
			if !errors.Is(err, signer.ErrReference) {
				t.Fatalf("%v has no family", err)
			}
			return
		}
		path := strings.TrimRight(r.host+"/keys/"+r.name+"/"+r.version, "/")
		if !strings.EqualFold("//"+path, ref.Path) || strings.ContainsAny(path, "%?#@ \\") {
			t.Errorf("%q", path)
		}
		azure := strings.HasSuffix(r.host, ".azure.net") || strings.HasSuffix(r.host, ".azure.cn") || strings.HasSuffix(r.host, ".usgovcloudapi.net")
		if loopback := strings.HasPrefix(r.host, "127.") || strings.HasPrefix(r.host, "["); azure == r.double || r.double && !loopback || r.ca != "" && !r.double {
			t.Errorf("host %q, double %v", r.host, r.double)
		}
		if p := r.policy; p.Timeout < 0 || p.Timeout > 10*time.Minute || p.MaxConcurrent < 0 || p.MaxConcurrent > maxConcurrent || p.MaxRPS < 0 || p.MaxRPS > 100_000 {
			t.Errorf("policy %+v", p)
		}
	})
}
