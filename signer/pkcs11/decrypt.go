//go:build cgo

package pkcs11

import (
	"bytes"
	"context"
	"crypto/rsa"
	"fmt"

	"github.com/miekg/pkcs11"

	"hsmsign/fault"
	"hsmsign/signer"
)

var _ signer.Decrypter = (*key)(nil)

// DecryptContext implements signer.Decrypter with CKM_RSA_PKCS. The key needs CKA_DECRYPT. Time limits and recovery are those of a
// signature.
func (k *key) DecryptContext(ctx context.Context, ciphertext []byte) ([]byte, error) {
	if len(ciphertext) != k.pub.Size() {
		return nil, k.ref.wrap(opDecrypt, fmt.Errorf("%w: a block of %d bytes; the modulus has %d", rsa.ErrDecryption, len(ciphertext), k.pub.Size()))
	}
	if err := k.sessions.acquire(ctx); err != nil {
		return nil, k.ref.wrap(opDecrypt, advise(err))
	}
	p := payload{ciphertext: bytes.Clone(ciphertext)}
	work := func() ([]byte, error) { return k.sign(ctx, p) }
	plain, err := awaitThen(ctx, "C_Decrypt has not returned", work, k.sessions.release, func(late []byte) { clear(late) })
	return plain, k.ref.wrap(opDecrypt, advise(err))
}

const opDecrypt = "decrypt with"

// decryptOnce calls C_DecryptInit and C_Decrypt, with the login in between that CKA_ALWAYS_AUTHENTICATE requires.
func (k *key) decryptOnce(s session, b *binding, ciphertext []byte) ([]byte, error) {
	lib := k.module.lib
	if err := lib.DecryptInit(s.handle, k.mechanisms[raw], b.object); err != nil {
		if is(err, pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED) || is(err, pkcs11.CKR_KEY_TYPE_INCONSISTENT) || is(err, pkcs11.CKR_MECHANISM_INVALID) {
			return nil, fault.Errorf("%w: the key is not for decryption (CKA_DECRYPT): %w", signer.ErrBadKey, call("C_DecryptInit", err)).
				Fix("name the key that hsmsign abm keypair made")
		}
		return nil, call("C_DecryptInit", err)
	}
	if b.always {
		if err := k.token.pin.send(lib, s.handle, pkcs11.CKU_CONTEXT_SPECIFIC); err != nil {
			return nil, err
		}
	}
	plain, err := lib.Decrypt(s.handle, ciphertext)
	// SoftHSM answers CKR_GENERAL_ERROR to a block with a wrong padding.
	for _, code := range []pkcs11.Error{
		pkcs11.CKR_ENCRYPTED_DATA_INVALID, pkcs11.CKR_ENCRYPTED_DATA_LEN_RANGE, pkcs11.CKR_DATA_INVALID, pkcs11.CKR_DATA_LEN_RANGE, pkcs11.CKR_GENERAL_ERROR,
	} {
		if is(err, code) {
			return nil, rsa.ErrDecryption
		}
	}
	if err != nil {
		return nil, call("C_Decrypt", err)
	}
	return plain, nil
}
