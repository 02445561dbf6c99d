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

// A test starts a double, adds a key, lets the first signature be throttled, and signs.
func Example() {
	server, err := gcpkmstest.NewServer(gcpkmstest.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = server.Close() }()
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		log.Fatal(err)
	}
	name, err := server.AddKey("projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1", private)
	if err != nil {
		log.Fatal(err)
	}
	if err := server.Script("AsymmetricSign", gcpkmstest.Throttle, gcpkmstest.OK); err != nil {
		log.Fatal(err)
	}

	ref, err := signer.ParseRef("gcpkms://" + name + "?endpoint=" + server.Endpoint())
	if err != nil {
		log.Fatal(err)
	}
	ctx := context.Background()
	key, err := gcpkms.Backend(gcpkms.Options{}).Open(ctx, ref, signer.OpenOptions{})
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = key.Close() }()
	_, err = signer.Sign(ctx, key, []byte("message"), crypto.SHA256)
	fmt.Println(err, server.Calls("AsymmetricSign"))
	// Output: <nil> 2
}
