package gcpkmstest_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"log"

	"hsmsign/signer"
	"hsmsign/signer/gcpkms"
	"hsmsign/signer/gcpkms/gcpkmstest"
)

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

// A test starts a double, adds a key, lets the first signature be throttled, and signs.
func Example() {
	server := must(gcpkmstest.NewServer(gcpkmstest.Config{}))
	defer func() { _ = server.Close() }()
	private := must(rsa.GenerateKey(rand.Reader, 2048))
	name := must(server.AddKey("projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1", private))
	if err := server.Script("AsymmetricSign", gcpkmstest.Throttle, gcpkmstest.OK); err != nil {
		log.Fatal(err)
	}

	ref := must(signer.ParseRef("gcpkms://" + name + "?endpoint=" + server.Endpoint()))
	ctx := context.Background()
	key := must(gcpkms.Backend(gcpkms.Options{}).Open(ctx, ref, signer.OpenOptions{}))
	defer func() { _ = key.Close() }()
	_, err := signer.Sign(ctx, key, []byte("message"), crypto.SHA256)
	fmt.Println(err, server.Calls("AsymmetricSign"))
	// Output: <nil> 2
}
