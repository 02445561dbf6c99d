package vault

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/internal/signerkit"
	"hsmsign/internal/testkit"
	"hsmsign/secret"
	"hsmsign/signer"
	"hsmsign/signer/kms"
	"hsmsign/signer/signertest"
	"hsmsign/signer/vault/vaulttest"
)

// environ is an environment with the double's token.
func environ(name string) string {
	return map[string]string{tokenVariable: vaulttest.Token}[name]
}

func quick() Options {
	return Options{Policy: signerkit.Policy(), Secrets: secret.Reader{Getenv: environ}}
}

// start starts a double with the golden key as "vendor", and returns a reference to its first version.
func start(tb testing.TB, config vaulttest.Config) (*vaulttest.Server, string) {
	tb.Helper()
	server := testkit.Value(vaulttest.NewServer(config))(tb)
	tb.Cleanup(func() { _ = server.Close() })
	path := testkit.Value(server.AddKey("vendor", testkit.GoldenKey(tb)))(tb)
	return server, at(server, path)
}

// at returns a reference to a path on the double, which may have a query.
func at(server *vaulttest.Server, path string) string {
	separator := "?"
	if strings.Contains(path, "?") {
		separator = "&"
	}
	return "vault://" + server.Address() + "/" + path + separator + "tls=off"
}

// hashes are those that Vault signs.
func hashes() []crypto.Hash { return []crypto.Hash{crypto.SHA256, crypto.SHA1} }

// TestConformance runs the suite of every backend on the double, over plain HTTP and TLS, and on a server of Vault or OpenBao
// if HSMSIGN_TEST_VAULT is a reference to a key and VAULT_TOKEN is set.
func TestConformance(t *testing.T) {
	if reference := os.Getenv("HSMSIGN_TEST_VAULT"); reference != "" {
		t.Run("server", func(t *testing.T) {
			backend := Backend(Options{Secrets: secret.Reader{Getenv: os.Getenv}})
			name, query, _ := strings.Cut(reference, "?")
			signertest.Run(t, signertest.Fixture{
				Backend: backend, Ref: reference, Public: signerkit.MustOpen(t, backend, reference, nil).Public().(*rsa.PublicKey),
				Missing: name + "-no-such-key?" + query, Hashes: hashes(),
			})
		})
	}
	t.Run("double", func(t *testing.T) {
		server, reference := start(t, vaulttest.Config{Delay: time.Millisecond})
		testkit.Value(server.AddKey("vendor", testkit.Key("other")))(t)
		signertest.Run(t, signertest.Fixture{
			Backend: Backend(quick()), Ref: reference, Public: &testkit.GoldenKey(t).PublicKey,
			Missing:   at(server, "transit/keys/vendor?version=3"),
			Ambiguous: at(server, "transit/keys/vendor"), Matches: []string{"version=1", "version=2"},
			Hashes: hashes(), Secrets: []string{vaulttest.Token},
		})
	})
	t.Run("TLS", func(t *testing.T) {
		server, _ := start(t, vaulttest.Config{TLS: true})
		ca := filepath.Join(t.TempDir(), "ca.pem")
		testkit.OK(t, os.WriteFile(ca, server.CA(), 0o600))
		reference := "vault://" + server.Address() + "/transit/keys/vendor?version=1&ca=" + ca
		signertest.Run(t, signertest.Fixture{
			Backend: Backend(quick()), Ref: reference, Public: &testkit.GoldenKey(t).PublicKey, Hashes: hashes(), Secrets: []string{vaulttest.Token},
			Missing: strings.Replace(reference, "vendor", "nothing", 1),
		})
	})
}

func TestWiring(t *testing.T) {
	server, reference := start(t, vaulttest.Config{})
	faults := signerkit.Faults[vaulttest.Fault]{OK: vaulttest.OK, Throttle: vaulttest.Throttle, Internal: vaulttest.Internal, Hang: vaulttest.Hang}
	signerkit.Wiring(t, server, faults, func(p kms.Policy) signer.Backend {
		opts := quick()
		opts.Policy = p
		return Backend(opts)
	}, reference, "Sign")
}

// TestReferenceForms: mounts with slashes, namespaces, and a key that is only in one of them.
func TestReferenceForms(t *testing.T) {
	server, _ := start(t, vaulttest.Config{})
	private := testkit.GoldenKey(t)
	testkit.Value(server.Add(vaulttest.Key{Name: "vendor", Mount: "team/keys/transit", Private: private}))(t)
	testkit.Value(server.Add(vaulttest.Key{Name: "tenant", Namespace: "mdm/eu", Private: private}))(t)
	token := "token-of-mdm-eu"
	server.AddToken(token, "mdm/eu", vaulttest.Lease{})
	signerkit.MustSign(t, signerkit.MustOpen(t, Backend(quick()), at(server, "team/keys/transit/keys/vendor?version=1"), nil))
	tenant := quick()
	tenant.Secrets.Getenv = func(string) string { return token }
	for _, namespace := range []string{"mdm/eu", "mdm/eu/"} {
		signerkit.MustSign(t, signerkit.MustOpen(t, Backend(tenant), at(server, "transit/keys/tenant?version=1&namespace="+namespace), nil))
	}
	_, err := signerkit.Open(t, Backend(quick()), at(server, "transit/keys/tenant?version=1"), nil)
	signerkit.WantError(t, err, signer.ErrKeyNotFound, "nothing is there: read transit/keys/tenant: status 404", "namespace")
	_, err = signerkit.Open(t, Backend(tenant), at(server, "transit/keys/vendor?version=1"), nil)
	signerkit.WantError(t, err, signer.ErrAuth, "read transit/keys/vendor", "")
	_, err = signerkit.Open(t, Backend(quick()), at(server, "other/keys/vendor?version=1"), nil)
	signerkit.WantError(t, err, signer.ErrKeyNotFound, "no handler for route", `mounted at "other"`)
	_, err = signerkit.Open(t, Backend(quick()), at(server, "transit/keys"), nil)
	signerkit.WantError(t, err, signer.ErrReference, "no key", "key list")
	_, err = signerkit.Open(t, Backend(quick()), at(server, "transit/keys/vendor"), &private.PublicKey)
	signerkit.WantError(t, err, signer.ErrAmbiguousKey, "key \"vendor\" has version=1", "add version=N")
}

// TestTLS: the server's certificate must chain to the CA, and the requests of a batch share connections.
func TestTLS(t *testing.T) {
	server, _ := start(t, vaulttest.Config{TLS: true})
	path := "vault://" + server.Address() + "/transit/keys/vendor?version=1"
	file := func(name string, text []byte) string {
		name = filepath.Join(t.TempDir(), name)
		testkit.OK(t, os.WriteFile(name, text, 0o600))
		return name
	}
	opts := quick()
	opts.Policy.Timeout, opts.Policy.RetryDelay = 3*time.Second, 10*time.Second // one attempt
	_, err := signerkit.Open(t, Backend(opts), path, nil)
	signerkit.WantError(t, err, signer.ErrUnavailable, "certificate", "ca=FILE")
	other := testkit.NewCA(t, "other")
	certPEM, _ := testkit.PEM(t, other.Issue(t, "127.0.0.1", nil))
	_, err = signerkit.Open(t, Backend(opts), path+"&ca="+file("other.pem", certPEM), nil)
	signerkit.WantError(t, err, signer.ErrUnavailable, "certificate", "ca=FILE")
	for _, ca := range []string{file("text.pem", []byte("no certificate")), "/no/such/file"} {
		_, err = signerkit.Open(t, Backend(opts), path+"&ca="+ca, nil)
		signerkit.Refused(t, err, err, "CA certificates")
		if fault.KindOf(err) != fault.Usage || server.Calls("*") != 0 {
			t.Errorf("%v of kind %v after %d requests", err, fault.KindOf(err), server.Calls("*"))
		}
	}
	plain, _ := start(t, vaulttest.Config{})
	_, err = signerkit.Open(t, Backend(opts), "vault://"+plain.Address()+"/transit/keys/vendor?version=1", nil)
	signerkit.WantError(t, err, signer.ErrUnavailable, "HTTP response to HTTPS", "tls=off")
}

// TestUnusableKeys: keys that exist and cannot make the signatures, when they are opened, at the first signature if Open
// sends no request, and after Open.
func TestUnusableKeys(t *testing.T) {
	server, reference := start(t, vaulttest.Config{})
	private := testkit.GoldenKey(t)
	ec := testkit.Value(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	for _, tt := range []struct {
		name, text, fix string
		key             vaulttest.Key
	}{
		{"elliptic curve", "ecdsa-p256", "RSA", vaulttest.Key{Private: ec}},
		{"symmetric", "aes256-gcm96", "RSA", vaulttest.Key{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.key.Name = strings.ReplaceAll(tt.name, " ", "-")
			path := testkit.Value(server.Add(tt.key))(t)
			_, err := signerkit.Open(t, Backend(quick()), at(server, path), nil)
			signerkit.WantError(t, err, signer.ErrBadKey, tt.text, tt.fix)
			signerkit.WantError(t, signerkit.Sign(t, signerkit.MustOpen(t, Backend(quick()), at(server, path), &private.PublicKey)), signer.ErrBadKey, "does not support signing", tt.fix)
		})
	}
	key := signerkit.MustOpen(t, Backend(quick()), reference, nil)
	testkit.Value(server.AddKey("vendor", testkit.Key("other")))(t)
	signerkit.MustSign(t, key) // a rotation does not change the key
	testkit.OK(t, server.SetMinimum("vendor", 2))
	signerkit.WantError(t, signerkit.Sign(t, key), signer.ErrBadKey, "minimum encryption key version", "version that may sign")
	_, err := signerkit.Open(t, Backend(quick()), reference, nil)
	signerkit.WantError(t, err, signer.ErrBadKey, "version 1 is below min_encryption_version 2", "version that may sign")
	_, err = signerkit.Open(t, Backend(quick()), at(server, "transit/keys/vendor?version=9"), nil)
	signerkit.WantError(t, err, signer.ErrKeyNotFound, "no version 9: the key has version=1, version=2", "version=")
	signerkit.WantError(t, signerkit.Sign(t, signerkit.MustOpen(t, Backend(quick()), at(server, "transit/keys/vendor?version=9"), &private.PublicKey)),
		signer.ErrKeyNotFound, "higher than the latest key version", "version=")
}

func TestVersions(t *testing.T) {
	var k keyData
	if got := k.list(); got != "no versions" {
		t.Error(got)
	}
	k.Keys = map[string]json.RawMessage{"x": nil, "0": nil}
	for i := range maxMentions + 5 {
		k.Keys[string(rune('1'+i%9))+strings.Repeat("0", i/9)] = nil
	}
	if got := k.list(); !strings.HasPrefix(got, "..., version=6") || strings.Count(got, "version=") != maxMentions {
		t.Error(got)
	}
	if _, err := k.public(1); !errors.Is(err, errDamaged) {
		t.Errorf("no entry: %v", err)
	}
}

func BenchmarkInFlight(b *testing.B) {
	const delay = 10 * time.Millisecond
	_, reference := start(b, vaulttest.Config{Delay: delay})
	signertest.BenchmarkInFlight(b, signerkit.MustOpen(b, Backend(quick()), reference, nil), testkit.GoldenKey(b), delay)
}

func BenchmarkSign(b *testing.B) {
	server, reference := start(b, vaulttest.Config{})
	signerkit.BenchmarkSign(b, server, signerkit.MustOpen(b, Backend(quick()), reference, nil))
}
