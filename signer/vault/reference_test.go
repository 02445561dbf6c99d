package vault

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

func TestParseReference(t *testing.T) {
	byToken := login{method: withToken}
	for in, want := range map[string]reference{
		"vault://vault.example.com/transit/keys/mdm-vendor?version=1": {host: "vault.example.com:8200", mount: "transit", name: "mdm-vendor", version: 1, login: byToken},
		"vault://Vault.Example.com:443/a/b/keys/x.y_z?version=12":     {host: "vault.example.com:443", mount: "a/b", name: "x.y_z", version: 12, login: byToken},
		"vault://[::1]:8200/transit/keys/x?tls=off":                   {host: "[::1]:8200", mount: "transit", name: "x", plain: true, login: byToken},
		"vault://[::1]/transit/keys/x?tls=off":                        {host: "[::1]:8200", mount: "transit", name: "x", plain: true, login: byToken},
		"vault://10.0.0.1/transit/keys":                               {host: "10.0.0.1:8200", mount: "transit", login: byToken},
		"vault://localhost/a/keys/b/keys/x?tls=off":                   {host: "localhost:8200", mount: "a/keys/b", name: "x", plain: true, login: byToken},
		"vault://h/transit/keys/x?namespace=team/mdm/&ca=/etc/ca.pem": {host: "h:8200", mount: "transit", name: "x", namespace: "team/mdm", ca: "/etc/ca.pem", login: byToken},
		"vault://h/transit/keys/x?token-source=file:/run/token":       {host: "h:8200", mount: "transit", name: "x", login: login{method: withToken, source: "file:/run/token"}},
		"vault://h/transit/keys/x?role-id=r&secret-id-source=credential:s": {host: "h:8200", mount: "transit", name: "x",
			login: login{withAppRole, "credential:s", "r", "approle"}},
		"vault://h/transit/keys/x?kubernetes-role=r": {host: "h:8200", mount: "transit", name: "x", login: login{withKubernetes, defaultJWT, "r", "kubernetes"}},
		"vault://h/transit/keys/x?kubernetes-role=r&jwt-file=/jwt&auth-mount=k8s/eu": {host: "h:8200", mount: "transit", name: "x",
			login: login{withKubernetes, "/jwt", "r", "k8s/eu"}},
		"vault://h/transit/keys/x?max-rps=12.5&max-concurrent=8&timeout=1m": {host: "h:8200", mount: "transit", name: "x", login: byToken,
			policy: kms.Policy{MaxRPS: 12.5, MaxConcurrent: 8, Timeout: time.Minute}},
	} {
		got, err := parseReference(signerkit.Ref(t, in), kms.Policy{})
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(reference{}, login{})); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got)\n%s", in, err, diff)
		}
	}
}

func TestParseReferenceRefuses(t *testing.T) {
	const key = "vault://h/transit/keys/x"
	for _, tt := range []struct{ in, text string }{
		{"vault:transit/keys/x", "write vault://HOST/MOUNT/keys/NAME"},
		{"vault://h", "write vault://HOST/MOUNT/keys/NAME"},
		{"vault:///transit/keys/x", "form HOST"},
		{"vault://h:0/transit/keys/x", "form HOST"},
		{"vault://h:65536/transit/keys/x", "form HOST"},
		{"vault://h:/transit/keys/x", "form HOST"},
		{"vault://::1/transit/keys/x", "form HOST"},
		{"vault://[h]/transit/keys/x", "form HOST"},
		{"vault://[::1/transit/keys/x", "form HOST"},
		{"vault://h%2f/transit/keys/x", "form HOST"},
		{"vault://-h/transit/keys/x", "form HOST"},
		{"vault://h/transit/x", "does not contain /keys/"},
		{"vault://h/keys/x", "does not contain /keys/"},
		{"vault://h/transit/keys/", "not the name of a key"},
		{"vault://h/transit/keys/a/b", "not the name of a key"},
		{"vault://h/transit/keys/..", "not the name of a key"},
		{"vault://h/transit/keys/a%2Fb", "not the name of a key"},
		{"vault://h/transit/keys/a b", "not the name of a key"},
		{"vault://h/transit/keys/" + strings.Repeat("a", 253), "not the name of a key"},
		{"vault://h/../keys/x", "not the path of a mount"},
		{"vault://h/a//b/keys/x", "not the path of a mount"},
		{"vault://h/" + strings.Repeat("a", 513) + "/keys/x", "not the path of a mount"},
		{key + "?version=0", "from 1"},
		{key + "?version=-1", "from 1"},
		{key + "?version=01", "from 1"},
		{key + "?version=latest", "from 1"},
		{key + "?version=2147483648", "from 1"},
		{"vault://h/transit/keys?version=1", "from 1"},
		{key + "?namespace=", "not a namespace"},
		{key + "?namespace=/a", "not a namespace"},
		{key + "?namespace=a%0Ab", "not a namespace"},
		{key + "?tls=off", "loopback only"},
		{"vault://127.0.0.1.example.com/transit/keys/x?tls=off", "loopback only"},
		{"vault://127.0.0.1/transit/keys/x?tls=on", "only value is off"},
		{"vault://127.0.0.1/transit/keys/x?tls=", "only value is off"},
		{"vault://127.0.0.1/transit/keys/x?tls=off&ca=/x", "for https"},
		{key + "?ca=", "for https"},
		{key + "?token-source=", "token-source is empty"},
		{key + "?token-source=file:a&role-id=r&secret-id-source=file:b", "exclude each other"},
		{key + "?kubernetes-role=a&role-id=r&secret-id-source=file:b", "exclude each other"},
		{key + "?role-id=r", "needs role-id and secret-id-source"},
		{key + "?secret-id-source=file:b", "needs role-id and secret-id-source"},
		{key + "?jwt-file=/jwt", "kubernetes-role"},
		{key + "?auth-mount=approle", "for a login"},
		{key + "?kubernetes-role=r&auth-mount=a//b", "path of a login method"},
		{key + "?kubernetes-role=a b", "not a role"},
		{key + "?max-concurrent=1025", "max-concurrent"},
		{key + "?token=x", "unknown query attribute"},
		{key + "?versoin=1", `did you mean "version"`},
	} {
		_, err := parseReference(signerkit.Ref(t, tt.in), kms.Policy{})
		if !errors.Is(err, signer.ErrReference) || !strings.Contains(err.Error()+"; "+fault.Hint(err), tt.text) {
			t.Errorf("%s: got %v (%s), want %q", tt.in, err, fault.Hint(err), tt.text)
		}
	}
}

// FuzzReference: a reference is refused with ErrReference, or it names a server and a path that need no escape in a URL,
// its attributes are within their limits, and plain HTTP is for loopback only.
func FuzzReference(f *testing.F) {
	testkit.Seeds(f, "FuzzReference", 10)
	f.Fuzz(func(t *testing.T, in string) {
		ref, err := signer.ParseRef(in)
		if err != nil || ref.Scheme != "vault" {
			return
		}
		r, err := parseReference(ref, kms.Policy{})
		if err != nil {
			if !errors.Is(err, signer.ErrReference) {
				t.Fatalf("%v has no family", err)
			}
			return
		}
		if r.name != "" && !strings.HasSuffix(ref.Path, "/"+r.mount+"/keys/"+r.name) || r.name == "" && !strings.HasSuffix(ref.Path, "/"+r.mount+"/keys") {
			t.Errorf("mount %q, key %q", r.mount, r.name)
		}
		for _, part := range strings.Split(r.mount+"/"+r.name+"/"+r.namespace, "/") {
			if part == ".." || part == "." || strings.ContainsAny(part, "%?#@: \r\n\\") {
				t.Errorf("%q", part)
			}
		}
		if strings.ContainsAny(r.host, "/@?#% ") || !strings.Contains(r.host, ":") {
			t.Errorf("host %q", r.host)
		}
		if r.plain && !strings.HasPrefix(r.host, "127.") && !strings.HasPrefix(r.host, "localhost:") && !strings.HasPrefix(r.host, "[") {
			t.Errorf("plain HTTP to %q", r.host)
		}
		if p := r.policy; p.Timeout < 0 || p.Timeout > 10*time.Minute || p.MaxConcurrent < 0 || p.MaxConcurrent > maxConcurrent || p.MaxRPS < 0 || p.MaxRPS > 100_000 {
			t.Errorf("policy %+v", p)
		}
	})
}
