//go:build cgo

package pkcs11

import (
	"crypto"
	"fmt"

	"github.com/miekg/pkcs11"

	"hsmsign/signer"
)

// The DigestInfo of RFC 8017 section 9.2, note 1, up to the digest.
const (
	sha1Info   = "\x30\x21\x30\x09\x06\x05\x2b\x0e\x03\x02\x1a\x05\x00\x04\x14"
	sha256Info = "\x30\x31\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00\x04\x20"
)

// payload is what one signature signs. It is a copy: the caller may change its data after its context has ended.
type payload struct {
	hash    crypto.Hash
	info    []byte // DigestInfo
	message []byte // nil: not known

	ciphertext []byte // to decrypt instead; nil: sign
}

// newPayload returns a payload with a copy of the digest.
func newPayload(h crypto.Hash, digest []byte) payload {
	info := sha256Info
	if h == crypto.SHA1 {
		info = sha1Info
	}
	return payload{hash: h, info: append([]byte(info), digest...)}
}

// raw selects CKM_RSA_PKCS, which receives a DigestInfo.
const raw crypto.Hash = 0

// newMechanisms returns the mechanisms of one key: those that receive a message by its hash, and raw. They are allocated
// once.
func newMechanisms() map[crypto.Hash][]*pkcs11.Mechanism {
	of := func(m uint) []*pkcs11.Mechanism { return []*pkcs11.Mechanism{pkcs11.NewMechanism(m, nil)} }
	return map[crypto.Hash][]*pkcs11.Mechanism{
		raw: of(pkcs11.CKM_RSA_PKCS), crypto.SHA1: of(pkcs11.CKM_SHA1_RSA_PKCS), crypto.SHA256: of(pkcs11.CKM_SHA256_RSA_PKCS),
	}
}

// chooseMechanism decides whether the token receives messages: because the reference says so, or because the token does
// not offer CKM_RSA_PKCS. If the token does not answer, signWith finds out.
func (k *key) chooseMechanism(slot uint) {
	switch k.ref.mechanism {
	case mechanismRaw:
	case mechanismSHA256:
		k.messages.Store(true)
	default:
		info, err := k.module.lib.GetMechanismInfo(slot, k.mechanisms[raw])
		k.messages.Store(err == nil && info.Flags&pkcs11.CKF_SIGN == 0 || is(err, pkcs11.CKR_MECHANISM_INVALID))
	}
}

// signWith makes one signature in a session. If the token refuses a DigestInfo, it sends the message, now and later.
func (k *key) signWith(s session, b *binding, p payload) ([]byte, error) {
	if p.ciphertext != nil {
		return k.decryptOnce(s, b, p.ciphertext)
	}
	if k.messages.Load() {
		if p.message == nil {
			return nil, fmt.Errorf("%w: this token signs whole messages only (CKM_SHA256_RSA_PKCS), not a digest", signer.ErrUnsupported)
		}
		return k.signOnce(s, b, k.mechanisms[p.hash], p.message)
	}
	sig, err := k.signOnce(s, b, k.mechanisms[raw], p.info)
	refused := is(err, pkcs11.CKR_MECHANISM_INVALID) || is(err, pkcs11.CKR_FUNCTION_NOT_SUPPORTED) || is(err, pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED)
	if !refused || p.message == nil || k.ref.mechanism == mechanismRaw {
		return sig, err
	}
	// Modules in FIPS mode refuse to sign what they did not hash.
	sig, second := k.signOnce(s, b, k.mechanisms[p.hash], p.message)
	if second == nil {
		k.messages.Store(true)
		return sig, nil
	}
	if classOf(second) == classRequest {
		return nil, err // the token refuses both, so the mechanism was not the reason
	}
	return nil, second
}

// signOnce calls C_SignInit and C_Sign, with the login in between that CKA_ALWAYS_AUTHENTICATE requires (PKCS#11 3.0
// section 4.9).
func (k *key) signOnce(s session, b *binding, m []*pkcs11.Mechanism, data []byte) ([]byte, error) {
	lib := k.module.lib
	if err := lib.SignInit(s.handle, m, b.object); err != nil {
		return nil, call("C_SignInit", err)
	}
	if b.always {
		if err := k.token.pin.send(lib, s.handle, pkcs11.CKU_CONTEXT_SPECIFIC); err != nil {
			return nil, err
		}
	}
	sig, err := lib.Sign(s.handle, data)
	if err != nil {
		return nil, call("C_Sign", err)
	}
	if len(sig) != k.pub.Size() {
		return nil, fmt.Errorf("%w: C_Sign returns %d bytes; the modulus has %d", signer.ErrBadSignature, len(sig), k.pub.Size())
	}
	return sig, nil
}
