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

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

// A test starts a double, adds a key, lets the first signature be throttled, and signs.
func Example() {
	server := must(awskmstest.NewServer(awskmstest.Config{}))
	defer func() { _ = server.Close() }()
	private := must(rsa.GenerateKey(rand.Reader, 2048))
	must(server.AddKey("alias/mdm-vendor", private))
	if err := server.Script("Sign", awskmstest.Throttle, awskmstest.OK); err != nil {
		log.Fatal(err)
	}

	// In a test: t.Setenv.
	_ = os.Setenv("AWS_ACCESS_KEY_ID", awskmstest.AccessKeyID)
	_ = os.Setenv("AWS_SECRET_ACCESS_KEY", awskmstest.SecretAccessKey)
	ref := must(signer.ParseRef("awskms:///alias/mdm-vendor?region=" + server.Region() + "&endpoint=" + server.Endpoint()))
	ctx := context.Background()
	key := must(awskms.Backend(awskms.Options{}).Open(ctx, ref, signer.OpenOptions{}))
	defer func() { _ = key.Close() }()
	_, err := signer.Sign(ctx, key, []byte("message"), crypto.SHA256)
	fmt.Println(err, server.Calls("Sign"))
	// Output: <nil> 2
}
