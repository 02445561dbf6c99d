package gcpkms

import (
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/signer"
	"hsmsign/signer/gcpkms/gcpkmstest"
	remote "hsmsign/signer/kms"
)

const (
	ring        = "projects/mdm-prod/locations/europe-west1/keyRings/mdm"
	vendor      = ring + "/cryptoKeys/vendor"
	vendorOne   = vendor + "/cryptoKeyVersions/1"
	vendorTwo   = vendor + "/cryptoKeyVersions/2"
	vendorThree = vendor + "/cryptoKeyVersions/3"
)

// brisk is a Policy for tests of one call at a time: the steps of the default in a fraction of the time. Under load the
// default is the right one: a slow machine must not be taken for a service that is down.
func brisk() remote.Policy {
	return remote.Policy{Attempt: 400 * time.Millisecond, Total: 3 * time.Second, Wait: 5 * time.Millisecond, Recover: 200 * time.Millisecond}
}

// vendorKey is the fixed key of testdata, that of the golden request.
func vendorKey(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	text, err := os.ReadFile("../../testdata/golden/vendor.key")
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

// double starts a double that holds the vendor key as version 1.
func double(t testing.TB, config gcpkmstest.Config) *gcpkmstest.Server {
	t.Helper()
	server, err := gcpkmstest.NewServer(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	if err := server.AddKey(vendorOne, vendorKey(t)); err != nil {
		t.Fatal(err)
	}
	return server
}

// at is a reference to a name in the double.
func at(server *gcpkmstest.Server, name string) string {
	return "gcpkms://" + name + "?endpoint=" + server.Addr()
}

func reference(t testing.TB, text string) signer.Ref {
	t.Helper()
	ref, err := signer.ParseRef(text)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// open opens a key that must open, and closes it with the test.
func open(t testing.TB, opts Options, text string) signer.Signer {
	t.Helper()
	key, err := Backend(opts).Open(t.Context(), reference(t, text), signer.OpenOptions{PublicKey: opts.PublicKey})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = key.Close() })
	return key
}

// wants checks an error: its family, that it is a *signer.Error, and that it says what to do where hint is true.
func wants(t testing.TB, err, family error, hint bool) {
	t.Helper()
	var carrier *signer.Error
	if !errors.Is(err, family) || !errors.As(err, &carrier) {
		t.Fatalf("got %v (%T), want a *signer.Error of %q", err, err, family)
	}
	if (fault.Hint(carrier) != "") != hint {
		t.Errorf("%v: fix is %q", err, fault.Hint(carrier))
	}
}
