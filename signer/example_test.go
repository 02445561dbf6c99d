package signer_test

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"hsmsign/fault"
	"hsmsign/signer"
	"hsmsign/signer/file"
)

// Generate creates a key, Open opens it, and Sign signs a message with it. A file is the simplest key store; the others
// differ in the reference only.
func Example() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	ref, err := signer.ParseRef("file:" + filepath.Join(dir, "vendor.key") + "?unencrypted=allow")
	if err != nil {
		log.Fatal(err)
	}
	backend := file.Backend(file.Options{})
	ctx := context.Background()
	if _, err := backend.Generate(ctx, ref, signer.KeySpec{Bits: 2048}); err != nil {
		log.Fatal(err)
	}
	key, err := backend.Open(ctx, ref, signer.OpenOptions{})
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = key.Close() }()
	signature, err := signer.Sign(ctx, key, []byte("message"), crypto.SHA256)
	fmt.Println(len(signature), err)
	// Output: 256 <nil>
}

// An error wraps one of the families and may have a hint.
func ExampleError() {
	ref, err := signer.ParseRef("file:/no/such/folder/vendor.key")
	if err != nil {
		log.Fatal(err)
	}
	_, err = file.Backend(file.Options{}).Generate(context.Background(), ref, signer.KeySpec{Bits: 2048})
	fmt.Println(err)
	fmt.Println(errors.Is(err, signer.ErrReference), fault.Hint(err))
	// Output:
	// generate file:/no/such/folder/vendor.key: malformed key reference: there is no folder "/no/such/folder"
	// true create the folder
}

// A printed reference contains no secret.
func ExampleParseRef() {
	ref, err := signer.ParseRef("pkcs11:token=mdm;object=vendor?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-value=1234")
	if err != nil {
		log.Fatal(err)
	}
	module, _ := ref.Query("module-path")
	fmt.Println(ref.Scheme, module)
	fmt.Println(ref)
	// Output:
	// pkcs11 /usr/lib/softhsm/libsofthsm2.so
	// pkcs11:token=mdm;object=vendor?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-value=REDACTED
}
