package gcpkms

import (
	"crypto"
	"errors"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/kms/apiv1/kmspb"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
	"hsmsign/signer"
	"hsmsign/signer/gcpkms/gcpkmstest"
	"hsmsign/signer/kms"
)

const (
	ring        = "projects/mdm-prod/locations/europe-west1/keyRings/mdm"
	vendor      = ring + "/cryptoKeys/vendor"
	vendorOne   = vendor + "/cryptoKeyVersions/1"
	vendorTwo   = vendor + "/cryptoKeyVersions/2"
	vendorThree = vendor + "/cryptoKeyVersions/3"

	rsaSign = kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_2048_SHA256
)

// quick is a policy with short delays. A slow machine must not look like a service that is down, so its breaker stays
// closed.
func quick() Options {
	return Options{Policy: kms.Policy{AttemptTimeout: 2 * time.Second, Timeout: 8 * time.Second, RetryDelay: 5 * time.Millisecond, BreakerThreshold: 1000}}
}

// empty starts a double without keys.
func empty(tb testing.TB, config gcpkmstest.Config) *gcpkmstest.Server {
	tb.Helper()
	server, err := gcpkmstest.NewServer(config)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = server.Close() })
	return server
}

// start starts a double with the golden key as version 1, and returns a reference to the version.
func start(tb testing.TB, config gcpkmstest.Config) (*gcpkmstest.Server, string) {
	tb.Helper()
	server := empty(tb, config)
	add(tb, server, gcpkmstest.Key{Name: vendorOne, Private: testkit.GoldenKey(tb), Algorithm: rsaSign})
	return server, at(server, vendorOne)
}

// at returns a reference to a resource on the double.
func at(server *gcpkmstest.Server, name string) string {
	return "gcpkms://" + name + "?endpoint=" + server.Endpoint()
}

func add(tb testing.TB, server *gcpkmstest.Server, key gcpkmstest.Key) (name string) {
	tb.Helper()
	name, err := server.Add(key)
	if err != nil {
		tb.Fatal(err)
	}
	return name
}

func script(tb testing.TB, server *gcpkmstest.Server, operation string, faults ...gcpkmstest.Fault) {
	tb.Helper()
	if err := server.Script(operation, faults...); err != nil {
		tb.Fatal(err)
	}
}

func stand(tb testing.TB, server *gcpkmstest.Server, operation string, fault gcpkmstest.Fault) {
	tb.Helper()
	if err := server.Stand(operation, fault); err != nil {
		tb.Fatal(err)
	}
}

func parse(tb testing.TB, reference string) signer.Ref {
	tb.Helper()
	ref, err := signer.ParseRef(reference)
	if err != nil {
		tb.Fatal(err)
	}
	return ref
}

// open opens a key, with the public key of a certificate unless that is nil.
func open(tb testing.TB, opts Options, reference string, public crypto.PublicKey) (signer.Signer, error) {
	tb.Helper()
	key, err := Backend(opts).Open(tb.Context(), parse(tb, reference), signer.OpenOptions{PublicKey: public})
	if err == nil {
		tb.Cleanup(func() { _ = key.Close() })
	}
	return key, err
}

func mustOpen(tb testing.TB, opts Options, reference string, public crypto.PublicKey) signer.Signer {
	tb.Helper()
	key, err := open(tb, opts, reference, public)
	if err != nil {
		tb.Fatalf("open %s: %v (%s)", reference, err, fault.Hint(err))
	}
	return key
}

func sign(tb testing.TB, key signer.Signer) error {
	tb.Helper()
	_, err := signer.Sign(tb.Context(), key, []byte("message"), crypto.SHA256)
	return err
}

func mustSign(tb testing.TB, key signer.Signer) {
	tb.Helper()
	if err := sign(tb, key); err != nil {
		tb.Fatalf("sign: %v (%s)", err, fault.Hint(err))
	}
}

// wantError checks the family, the text and the hint of an error, and that it is a *signer.Error on one line.
func wantError(tb testing.TB, err, family error, text, fix string) {
	tb.Helper()
	_, ok := errors.AsType[*signer.Error](err)
	switch {
	case !errors.Is(err, family) || !ok:
		tb.Errorf("%v (%T); want a *signer.Error of %q", err, err, family)
	case !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), "\n"):
		tb.Errorf("%q does not contain %q, or more than one line", err, text)
	case !strings.Contains(fault.Hint(err), fix):
		tb.Errorf("hint %q does not contain %q", fault.Hint(err), fix)
	}
}
