package vendorcert

import (
	"context"
	"crypto"
	"crypto/rsa"
	"fmt"

	"hsmsign/fault"
	"hsmsign/lifecycle/certreq"
	"hsmsign/signer"
)

// KeyBits is the only size of RSA key that Apple's developer portal takes a vendor's CSR for.
const KeyBits = 2048

// CreateCSR makes the vendor's CSR (RFC 2986, DER) as certreq.Create does, of a key that the portal takes (CheckKey).
func CreateCSR(ctx context.Context, key signer.Signer, subject certreq.Subject) ([]byte, error) {
	if err := CheckKey(key.Public()); err != nil {
		return nil, err
	}
	return certreq.Create(ctx, key, subject)
}

// CheckKey refuses a key that Apple's developer portal takes no CSR for: one that is not RSA of 2048 bits. The error is
// one that wraps signer.ErrBadKey.
func CheckKey(pub crypto.PublicKey) error {
	what := fmt.Sprintf("%T", pub)
	if key, ok := pub.(*rsa.PublicKey); ok {
		if key.N.BitLen() == KeyBits {
			return nil
		}
		what = fmt.Sprintf("RSA of %d bits", key.N.BitLen())
	}
	return fault.Errorf("%w: it is %s; Apple's developer portal takes the vendor's CSR for RSA of %d bits only", signer.ErrBadKey, what, KeyBits).
		Fix(fmt.Sprintf("make a key with hsmsign key generate --bits %d", KeyBits))
}
