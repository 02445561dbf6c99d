package awskmstest_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"log"
	"os"

	"hsmsign/signer"
	"hsmsign/signer/awskms"
	"hsmsign/signer/awskms/awskmstest"
)

// A test starts a double, adds a key, lets the first signature be throttled, and signs.
func Example() {
	server, err := awskmstest.NewServer(awskmstest.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = server.Close() }()
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		log.Fatal(err)
	}
	if _, err := server.AddKey("alias/mdm-vendor", private); err != nil {
		log.Fatal(err)
	}
	if err := server.Script("Sign", awskmstest.Throttle, awskmstest.OK); err != nil {
		log.Fatal(err)
	}

	// In a test: t.Setenv.
	_ = os.Setenv("AWS_ACCESS_KEY_ID", awskmstest.AccessKeyID)
	_ = os.Setenv("AWS_SECRET_ACCESS_KEY", awskmstest.SecretAccessKey)
	ref, err := signer.ParseRef("awskms:///alias/mdm-vendor?region=" + server.Region() + "&endpoint=" + server.Endpoint())
	if err != nil {
		log.Fatal(err)
	}
	ctx := context.Background()
	key, err := awskms.Backend(awskms.Options{}).Open(ctx, ref, signer.OpenOptions{})
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = key.Close() }()
	_, err = signer.Sign(ctx, key, []byte("message"), crypto.SHA256)
	fmt.Println(err, server.Calls("Sign"))
	// Output: <nil> 2
}
