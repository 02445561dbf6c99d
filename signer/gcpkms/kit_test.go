package gcpkms

import (
	"testing"

	"cloud.google.com/go/kms/apiv1/kmspb"

	"hsmsign/internal/signerkit"
	"hsmsign/internal/testkit"
	"hsmsign/signer/gcpkms/gcpkmstest"
)

const (
	ring        = "projects/mdm-prod/locations/europe-west1/keyRings/mdm"
	vendor      = ring + "/cryptoKeys/vendor"
	vendorOne   = vendor + "/cryptoKeyVersions/1"
	vendorTwo   = vendor + "/cryptoKeyVersions/2"
	vendorThree = vendor + "/cryptoKeyVersions/3"

	rsaSign = kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_2048_SHA256
)

func quick() Options { return Options{Policy: signerkit.Policy()} }

// empty starts a double without keys.
func empty(tb testing.TB, config gcpkmstest.Config) *gcpkmstest.Server {
	tb.Helper()
	server := testkit.Value(gcpkmstest.NewServer(config))(tb)
	tb.Cleanup(func() { _ = server.Close() })
	return server
}

// start starts a double with the golden key as version 1, and returns a reference to the version.
func start(tb testing.TB, config gcpkmstest.Config) (*gcpkmstest.Server, string) {
	tb.Helper()
	server := empty(tb, config)
	testkit.Value(server.Add(gcpkmstest.Key{Name: vendorOne, Private: testkit.GoldenKey(tb), Algorithm: rsaSign}))(tb)
	return server, at(server, vendorOne)
}

// at returns a reference to a resource on the double.
func at(server *gcpkmstest.Server, name string) string {
	return "gcpkms://" + name + "?endpoint=" + server.Endpoint()
}
