//go:build cgo

package pkcs11

import (
	"bytes"
	"crypto/rsa"
	"errors"
	"fmt"
	"math/big"

	"github.com/miekg/pkcs11"

	"hsmsign/signer"
)

// The RSA keys that are taken. crypto/rsa verifies nothing below 1024 bits; PKCS#11 knows no upper bound.
const (
	minModulusBits = 1024
	maxModulusBits = 16384
)

// finder looks for objects in one session.
type finder struct {
	lib cryptoki
	sh  pkcs11.SessionHandle
	ref reference
}

// privateKey finds the one RSA private key that the reference names, and its public half.
func (f finder) privateKey() (pkcs11.ObjectHandle, *rsa.PublicKey, error) {
	const op = "find"
	template := []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_RSA),
	}
	if label, ok := f.ref.path.get("object"); ok {
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_LABEL, label))
	}
	if id, ok := f.ref.path.get("id"); ok {
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_ID, id))
	}
	matches, err := f.objects(template)
	if pub, ok := f.ref.public.(*rsa.PublicKey); ok && len(matches) > 1 && len(template) == 2 {
		matches, err = f.keysOf(pub)
	}
	if err != nil {
		return 0, nil, f.ref.fail(op, err, "")
	}
	switch len(matches) {
	case 0:
		there, err := f.objects(template[:1])
		if err != nil {
			return 0, nil, f.ref.fail(op, err, "")
		}
		return 0, nil, f.ref.fail(op, fmt.Errorf("%w: no RSA private key matches; private keys there: %s", signer.ErrKeyNotFound, list(f.describe(there))),
			"correct object= and id= of the reference")
	case 1:
	default:
		return 0, nil, f.ref.fail(op, fmt.Errorf("%w: several private keys match: %s", signer.ErrAmbiguousKey, list(f.describe(matches))),
			"name one of them with object= and id=")
	}
	pub, err := f.publicKey(matches[0])
	if err != nil {
		return 0, nil, f.ref.fail(op, err, "")
	}
	return matches[0], pub, nil
}

// keysOf finds the private keys that belong to a public key, by their modulus; where the token does not show that of
// private keys, by the id of the public key.
func (f finder) keysOf(pub *rsa.PublicKey) ([]pkcs11.ObjectHandle, error) {
	template := func(class uint, t uint, value any) []*pkcs11.Attribute {
		return []*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_CLASS, class), pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_RSA), pkcs11.NewAttribute(t, value),
		}
	}
	found, err := f.objects(template(pkcs11.CKO_PRIVATE_KEY, pkcs11.CKA_MODULUS, pub.N.Bytes()))
	if err != nil || len(found) > 0 {
		return found, err
	}
	public, err := f.objects(template(pkcs11.CKO_PUBLIC_KEY, pkcs11.CKA_MODULUS, pub.N.Bytes()))
	if err != nil || len(public) == 0 {
		return nil, err
	}
	id, err := f.attributes(public[0], pkcs11.CKA_ID)
	if err != nil {
		return nil, err
	}
	return f.objects(template(pkcs11.CKO_PRIVATE_KEY, pkcs11.CKA_ID, id[0]))
}

// objects finds up to maxListed+1 objects.
func (f finder) objects(template []*pkcs11.Attribute) ([]pkcs11.ObjectHandle, error) {
	return f.objectsUpTo(maxListed+1, template)
}

// objectsUpTo finds up to limit objects.
func (f finder) objectsUpTo(limit int, template []*pkcs11.Attribute) (found []pkcs11.ObjectHandle, err error) {
	if err := f.lib.FindObjectsInit(f.sh, template); err != nil {
		return nil, call("C_FindObjectsInit", err)
	}
	defer func() {
		// A search that is left open makes the next one fail.
		err = errors.Join(err, call("C_FindObjectsFinal", f.lib.FindObjectsFinal(f.sh)))
	}()
	for len(found) < limit {
		// A module may give fewer than it is asked for; only none means that there are no more (PKCS#11 3.0 section 5.7.8).
		some, _, err := f.lib.FindObjects(f.sh, limit-len(found))
		if err != nil {
			return nil, call("C_FindObjects", err)
		}
		if len(some) == 0 {
			break
		}
		found = append(found, some...)
	}
	return found, nil
}

// describe names keys for an error. A key whose attributes cannot be read is named by its handle.
func (f finder) describe(objects []pkcs11.ObjectHandle) []string {
	var names []string
	for _, o := range objects {
		attrs, err := f.attributes(o, pkcs11.CKA_LABEL, pkcs11.CKA_ID, pkcs11.CKA_KEY_TYPE)
		if err != nil {
			names = append(names, fmt.Sprintf("object %d, where %v", o, err))
			continue
		}
		id := uri{{"id", string(attrs[1])}}
		name := fmt.Sprintf("object=%q %v", attrs[0], id)
		if !bytes.Equal(attrs[2], pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_RSA).Value) {
			name += " (not RSA)"
		}
		names = append(names, name)
	}
	return names
}

// publicKey reads the public half from the private key, or from the public key of the same id where the
// private one does not show it.
func (f finder) publicKey(private pkcs11.ObjectHandle) (*rsa.PublicKey, error) {
	attrs, err := f.attributes(private, pkcs11.CKA_MODULUS, pkcs11.CKA_PUBLIC_EXPONENT)
	if err == nil && len(attrs[0]) > 0 && len(attrs[1]) > 0 {
		return parsePublicKey(attrs[0], attrs[1])
	}
	if err != nil && classOf(err) != classRequest {
		return nil, err
	}
	id, err := f.attributes(private, pkcs11.CKA_ID)
	if err != nil {
		return nil, err
	}
	objects, err := f.objects([]*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_RSA),
		pkcs11.NewAttribute(pkcs11.CKA_ID, id[0]),
	})
	if err != nil {
		return nil, err
	}
	if len(objects) != 1 {
		return nil, fmt.Errorf("%w: the private key does not show its modulus, and %d public keys have its id where one is due", signer.ErrBadKey, len(objects))
	}
	if attrs, err = f.attributes(objects[0], pkcs11.CKA_MODULUS, pkcs11.CKA_PUBLIC_EXPONENT); err != nil {
		return nil, err
	}
	return parsePublicKey(attrs[0], attrs[1])
}

// alwaysAuthenticate is CKA_ALWAYS_AUTHENTICATE, which many tokens do not have.
func (f finder) alwaysAuthenticate(private pkcs11.ObjectHandle) (bool, error) {
	attrs, err := f.attributes(private, pkcs11.CKA_ALWAYS_AUTHENTICATE)
	if err != nil {
		if classOf(err) == classRequest {
			return false, nil
		}
		return false, err
	}
	return len(attrs[0]) > 0 && attrs[0][0] != 0, nil
}

// attributes reads at least one attribute of an object; one that it does not have comes back empty.
func (f finder) attributes(o pkcs11.ObjectHandle, types ...uint) ([][]byte, error) {
	template := make([]*pkcs11.Attribute, len(types))
	for i, t := range types {
		template[i] = &pkcs11.Attribute{Type: t}
	}
	attrs, err := f.lib.GetAttributeValue(f.sh, o, template)
	if err != nil {
		return nil, call("C_GetAttributeValue", err)
	}
	values := make([][]byte, len(attrs))
	for i, a := range attrs {
		values[i] = a.Value
	}
	return values, nil
}

// parsePublicKey makes a public key of two big-endian numbers.
func parsePublicKey(modulus, exponent []byte) (*rsa.PublicKey, error) {
	n, e := new(big.Int).SetBytes(modulus), new(big.Int).SetBytes(exponent)
	if bits := n.BitLen(); bits < minModulusBits || bits > maxModulusBits {
		return nil, fmt.Errorf("%w: an RSA modulus of %d bits; %d to %d are taken", signer.ErrBadKey, bits, minModulusBits, maxModulusBits)
	}
	if n.Bit(0) == 0 {
		return nil, fmt.Errorf("%w: the RSA modulus is even", signer.ErrBadKey)
	}
	// crypto/rsa takes exponents that are odd, at least 3 and less than 2^31.
	if e.BitLen() > 31 || e.Int64() < 3 || e.Bit(0) == 0 {
		return nil, fmt.Errorf("%w: an RSA public exponent that is even, below 3 or above 2^31", signer.ErrBadKey)
	}
	return &rsa.PublicKey{N: n, E: int(e.Int64())}, nil
}
