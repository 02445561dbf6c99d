package signer_test

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"

	"hsmsign/fault"
	"hsmsign/signer"
	"hsmsign/signer/file"
)

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

// Generate creates a key, Open opens it, and Sign signs a message with it. A file is the simplest key store; the others
// differ in the reference only.
func Example() {
	dir := must(os.MkdirTemp("", "example"))
	defer func() { _ = os.RemoveAll(dir) }()
	ref := must(signer.ParseRef("file:" + filepath.Join(dir, "vendor.key") + "?unencrypted=allow"))
	backend := file.Backend(file.Options{})
	ctx := context.Background()
	must(backend.Generate(ctx, ref, signer.KeySpec{Bits: 2048}))
	key := must(backend.Open(ctx, ref, signer.OpenOptions{}))
	defer func() { _ = key.Close() }()
	signature, err := signer.Sign(ctx, key, []byte("message"), crypto.SHA256)
	fmt.Println(len(signature), err)
	// Output: 256 <nil>
}

// An error wraps one of the families and may have a hint.
func ExampleError() {
	ref := must(signer.ParseRef("file:/no/such/folder/vendor.key"))
	_, err := file.Backend(file.Options{}).Generate(context.Background(), ref, signer.KeySpec{Bits: 2048})
	fmt.Println(err)
	fmt.Println(errors.Is(err, signer.ErrReference), fault.Hint(err))
	// Output:
	// generate file:/no/such/folder/vendor.key: malformed key reference: there is no folder "/no/such/folder"
	// true create the folder
}

// A printed reference contains no secret.
func ExampleParseRef() {
	ref := must(signer.ParseRef("pkcs11:token=mdm;object=vendor?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-value=1234"))
	module, _ := ref.Query("module-path")
	fmt.Println(ref.Scheme, module)
	fmt.Println(ref)
	// Output:
	// pkcs11 /usr/lib/softhsm/libsofthsm2.so
	// pkcs11:token=mdm;object=vendor?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-value=REDACTED
}

// An Operation reports what a cloud's log says about a signature.
func ExampleWithOperation() {
	operation := &signer.Operation{Reason: "6f1cb50c9df3a1b2c3d4e5f60718293a"} // which Google's audit log records
	ctx := signer.WithOperation(context.Background(), operation)
	signer.OperationOf(ctx).Attempted("8d0b35e0-46cf-48b9-be99-bf2ebc9ab9fb", time.Now(), nil) // as the backend of AWS KMS does
	for _, attempt := range operation.Attempts() {
		fmt.Println(attempt.ID, attempt.Err)
	}
	// Output: 8d0b35e0-46cf-48b9-be99-bf2ebc9ab9fb <nil>
}
