package keystore_test

import (
	"context"
	"crypto"
	"fmt"

	"hsmsign/keystore"
	"hsmsign/signer"
)

// A program signs with any key in a few lines. Another reference, such as
// "pkcs11:token=mdm;object=vendor?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/run/secrets/pin", selects
// another store.
func ExampleOpen() {
	ctx := context.Background()
	key, err := keystore.Open(ctx, "file:../testdata/golden/vendor.key?insecure-mode=allow", keystore.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = key.Close() }()
	signature, err := signer.Sign(ctx, key, []byte("message"), crypto.SHA256)
	fmt.Println(len(signature), err)
	// Output: 256 <nil>
}

// A reference is parsed once; its String has no secrets.
func ExampleStore_Parse() {
	store := keystore.New(keystore.Options{})
	key, err := store.Parse("pkcs11:token=mdm;object=vendor?module-path=/usr/lib/libhsm.so&pin-value=1234")
	fmt.Println(key, err)
	// Output: pkcs11:token=mdm;object=vendor?module-path=/usr/lib/libhsm.so&pin-value=REDACTED <nil>
}
