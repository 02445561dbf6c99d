package azurekms

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/internal/signerkit"
	"hsmsign/internal/testkit"
	"hsmsign/signer"
	"hsmsign/signer/azurekms/azurekmstest"
	"hsmsign/signer/kms"
	"hsmsign/signer/signertest"
)

func quick() Options { return Options{Policy: signerkit.Policy()} }

// environment removes everything that the SDK would find on this machine, and sets variables.
func environment(tb testing.TB, variables ...string) {
	tb.Helper()
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		for _, prefix := range []string{"AZURE_", "IDENTITY_", "MSI_", "IMDS_"} {
			if strings.HasPrefix(name, prefix) {
				tb.Setenv(name, "") // restores it at the end of the test
				testkit.OK(tb, os.Unsetenv(name))
			}
		}
	}
	for _, v := range variables {
		name, value, _ := strings.Cut(v, "=")
		tb.Setenv(name, value)
	}
}

// start starts a double with the golden key as "Vendor", sets its credentials, and returns a reference to the key.
func start(tb testing.TB, config azurekmstest.Config) (*azurekmstest.Server, string) {
	tb.Helper()
	server := testkit.Value(azurekmstest.NewServer(config))(tb)
	tb.Cleanup(func() { _ = server.Close() })
	environment(tb, server.Environment()...)
	path := testkit.Value(server.Add(azurekmstest.Key{Name: "Vendor", Private: testkit.GoldenKey(tb), HSM: true}))(tb)
	return server, at(tb, server, path)
}

// at returns a reference to a path on the double.
func at(tb testing.TB, server *azurekmstest.Server, path string) string {
	tb.Helper()
	ca := filepath.Join(tb.TempDir(), "ca.pem")
	testkit.OK(tb, os.WriteFile(ca, server.CA(), 0o600))
	return "azurekms://" + server.Address() + "/" + path + "?ca=" + ca
}

// absent is a version that no key has.
const absent = "0123456789abcdef0123456789abcdef"

// TestConformance runs the suite of every backend on the double, and on Azure itself if HSMSIGN_TEST_AZUREKMS is a reference
// to a key.
func TestConformance(t *testing.T) {
	missing := func(reference string) string {
		path, query, _ := strings.Cut(reference, "?")
		return path[:strings.LastIndex(path, "/")+1] + absent + "?" + query
	}
	if reference := os.Getenv("HSMSIGN_TEST_AZUREKMS"); reference != "" {
		t.Run("service", func(t *testing.T) {
			signertest.Run(t, signertest.Fixture{
				Backend: Backend(Options{}), Ref: reference, Public: signerkit.MustOpen(t, Backend(Options{}), reference, nil).Public().(*rsa.PublicKey),
				Missing: strings.TrimSuffix(missing(reference), "?"), Hashes: []crypto.Hash{crypto.SHA256},
			})
		})
	}
	t.Run("double", func(t *testing.T) {
		server, reference := start(t, azurekmstest.Config{Delay: time.Millisecond})
		other := testkit.Value(server.AddKey("Vendor", testkit.Key("other")))(t)
		signertest.Run(t, signertest.Fixture{
			Backend: Backend(quick()), Ref: reference, Public: &testkit.GoldenKey(t).PublicKey, Missing: missing(reference),
			Ambiguous: at(t, server, "keys/Vendor"), Matches: []string{strings.TrimPrefix(other, "keys/Vendor/"), strings.Split(strings.Split(reference, "?")[0], "/")[5]},
			Hashes: []crypto.Hash{crypto.SHA256}, Secrets: []string{azurekmstest.ClientSecret},
		})
	})
}

func TestWiring(t *testing.T) {
	server, reference := start(t, azurekmstest.Config{})
	faults := signerkit.Faults[azurekmstest.Fault]{OK: azurekmstest.OK, Throttle: azurekmstest.Throttle, Internal: azurekmstest.Internal, Hang: azurekmstest.Hang}
	signerkit.Wiring(t, server, faults, func(p kms.Policy) signer.Backend { return Backend(Options{Policy: p}) }, reference, "Sign")
}

// TestOneChallenge: of many signatures at the same moment one gets the challenge and the token; the others wait for it.
func TestOneChallenge(t *testing.T) {
	server, reference := start(t, azurekmstest.Config{Delay: time.Millisecond})
	key := signerkit.MustOpen(t, Backend(quick()), reference, &testkit.GoldenKey(t).PublicKey)
	var group sync.WaitGroup
	for range 32 {
		group.Go(func() {
			if err := signerkit.Sign(t, key); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if c, tokens, calls := server.Challenges(), server.Tokens(), server.Calls("*"); c != 1 || tokens != 1 || calls != 32 {
		t.Errorf("%d challenges, %d tokens, %d requests", c, tokens, calls)
	}
	// The SDK keeps a token until it expires: one that is revoked before is an error, and is not tried twice.
	server.RevokeTokens()
	signerkit.WantError(t, signerkit.Sign(t, key), signer.ErrAuth, "AKV10000", "check the credentials")
}

// TestUnusableKeys: keys that exist and cannot make the signatures, when they are opened, at the first signature if Open
// sends no request, and after Open.
func TestUnusableKeys(t *testing.T) {
	server, reference := start(t, azurekmstest.Config{})
	private := testkit.GoldenKey(t)
	ec := testkit.Value(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	day := 24 * time.Hour
	for i, tt := range []struct {
		name, text, fix string
		key             azurekmstest.Key
	}{
		{"operations", "do not include sign", "for signing", azurekmstest.Key{Private: private, Ops: []string{"encrypt"}}},
		{"elliptic curve", `type is "EC"`, "RSA", azurekmstest.Key{Private: ec}},
		{"symmetric", `type is "oct-HSM"`, "RSA", azurekmstest.Key{}},
		{"disabled", "is disabled", "enable", azurekmstest.Key{Private: private, Disabled: true}},
		{"expired", "it expired on 20", "dates", azurekmstest.Key{Private: private, Expires: time.Now().Add(-day)}},
		{"not yet valid", "not valid before 20", "dates", azurekmstest.Key{Private: private, NotBefore: time.Now().Add(day)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.key.Name = fmt.Sprintf("k%d", i)
			ref := at(t, server, testkit.Value(server.Add(tt.key))(t))
			_, err := signerkit.Open(t, Backend(quick()), ref, nil)
			signerkit.WantError(t, err, signer.ErrBadKey, tt.text, tt.fix)
			signerkit.WantError(t, signerkit.Sign(t, signerkit.MustOpen(t, Backend(quick()), ref, &private.PublicKey)), signer.ErrBadKey, "", "")
		})
	}
	key := signerkit.MustOpen(t, Backend(quick()), reference, nil)
	path := strings.Split(strings.SplitN(reference, "/", 4)[3], "?")[0]
	testkit.OK(t, server.Change(path, func(k *azurekmstest.Key) { k.Disabled = true }))
	signerkit.WantError(t, signerkit.Sign(t, key), signer.ErrBadKey, "KeyDisabled", "enable the version")
	testkit.OK(t, server.Change(path, func(k *azurekmstest.Key) { k.Disabled, k.HSM = false, false }))
	for _, public := range []crypto.PublicKey{nil, &private.PublicKey} {
		_, err := signerkit.Open(t, Backend(quick()), reference+"&require-hsm=yes", public)
		signerkit.WantError(t, err, signer.ErrBadKey, "not in an HSM", "RSA-HSM")
	}
}

// TestVersions: a new version does not change the key of a reference, and a reference without a version is refused.
func TestVersions(t *testing.T) {
	server, reference := start(t, azurekmstest.Config{PageSize: 2})
	key := signerkit.MustOpen(t, Backend(quick()), reference, nil)
	for range maxMentions {
		testkit.Value(server.AddKey("Vendor", testkit.Key("other")))(t)
	}
	signerkit.MustSign(t, key)
	signerkit.MustSign(t, signerkit.MustOpen(t, Backend(quick()), strings.Replace(reference, "Vendor", "VENDOR", 1), nil)) // names ignore case
	_, err := signerkit.Open(t, Backend(quick()), at(t, server, "keys/Vendor"), &testkit.GoldenKey(t).PublicKey)
	signerkit.WantError(t, err, signer.ErrAmbiguousKey, ", ...", "add /VERSION")
	_, err = signerkit.Open(t, Backend(quick()), at(t, server, "keys/none"), nil)
	signerkit.WantError(t, err, signer.ErrKeyNotFound, `"none" has no version`, "key list")
	_, err = signerkit.Open(t, Backend(quick()), at(t, server, "keys"), nil)
	signerkit.WantError(t, err, signer.ErrReference, "names no key", "key list")
	_, err = signerkit.Open(t, Backend(quick()), at(t, server, "keys/Vendor/"+absent), nil)
	signerkit.WantError(t, err, signer.ErrKeyNotFound, "KeyNotFound", "key list")
}

// TestTLS: the certificate of a double must chain to its CA.
func TestTLS(t *testing.T) {
	server, reference := start(t, azurekmstest.Config{})
	opts := quick()
	opts.Policy.Timeout, opts.Policy.RetryDelay = 3*time.Second, 10*time.Second // one attempt
	path, _, _ := strings.Cut(reference, "?")
	_, err := signerkit.Open(t, Backend(opts), path, nil)
	signerkit.WantError(t, err, signer.ErrUnavailable, "certificate", "name of the vault")
	text := filepath.Join(t.TempDir(), "text.pem")
	testkit.OK(t, os.WriteFile(text, []byte("no certificate"), 0o600))
	for _, ca := range []string{text, "/no/such/file"} {
		_, err = signerkit.Open(t, Backend(opts), path+"?ca="+ca, nil)
		signerkit.Refused(t, err, err, "CA certificate")
		if fault.KindOf(err) != fault.Usage || server.Calls("*")+server.Challenges() != 0 {
			t.Errorf("%v of kind %v", err, fault.KindOf(err))
		}
	}
}

func BenchmarkInFlight(b *testing.B) {
	const delay = 10 * time.Millisecond
	_, reference := start(b, azurekmstest.Config{Delay: delay})
	signertest.BenchmarkInFlight(b, signerkit.MustOpen(b, Backend(Options{}), reference, nil), testkit.GoldenKey(b), delay)
}

func BenchmarkSign(b *testing.B) {
	server, reference := start(b, azurekmstest.Config{})
	signerkit.BenchmarkSign(b, server, signerkit.MustOpen(b, Backend(Options{}), reference, nil))
}
