//go:build cgo

package pkcs11

import (
	"bytes"
	"cmp"
	"crypto/rsa"
	"errors"
	"fmt"
	"math/big"

	"github.com/miekg/pkcs11"

	"hsmsign/fault"
	"hsmsign/signer"
	"hsmsign/signer/pkcs11/internal/uri"
)

// The sizes of RSA keys. crypto/rsa verifies nothing below 1024 bits; PKCS#11 has no upper limit.
const (
	minModulusBits = 1024
	maxModulusBits = 16384
)

const opFind = "find"

// privateKey returns the handle of the one RSA private key that the reference names, and its public key. Errors are
// *signer.Error.
func (f finder) privateKey() (object pkcs11.ObjectHandle, pub *rsa.PublicKey, err error) {
	defer func() { err = f.ref.wrap(opFind, err) }()
	named := f.template(pkcs11.CKO_PRIVATE_KEY)
	matches, err := f.objects(append(named, pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_RSA)))
	if pub, ok := f.wanted.(*rsa.PublicKey); ok && len(matches) > 1 && len(named) == 1 {
		matches, err = f.keysOf(pub)
	}
	if err != nil {
		return 0, nil, err
	}
	switch len(matches) {
	case 0:
		all, err := f.objects(named[:1])
		if err != nil {
			return 0, nil, err
		}
		return 0, nil, fault.Errorf("%w: no RSA private key matches; private keys there: %s", signer.ErrKeyNotFound, list(f.describe(all))).
			Fix(cmp.Or(f.ref.path.HexHint(), "correct object= and id= of the reference"))
	case 1:
	default:
		return 0, nil, fault.Errorf("%w: several private keys match: %s", signer.ErrAmbiguousKey, list(f.describe(matches))).
			Fix("name one of them with object= and id=")
	}
	pub, err = f.publicKey(matches[0])
	return matches[0], pub, err
}

// template returns the attributes of the objects of a class that the reference names.
func (f finder) template(class uint) []*pkcs11.Attribute {
	template := []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, class)}
	if label, ok := f.ref.path.Get("object"); ok {
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_LABEL, label))
	}
	if id, ok := f.ref.path.Get("id"); ok {
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_ID, id))
	}
	return template
}

// keysOf returns the private keys that belong to a public key, by their modulus; if the token does not show the modulus
// of private keys, by the id of the public key.
func (f finder) keysOf(pub *rsa.PublicKey) ([]pkcs11.ObjectHandle, error) {
	found, err := f.rsaKeys(pkcs11.CKO_PRIVATE_KEY, pkcs11.CKA_MODULUS, pub.N.Bytes())
	if err != nil || len(found) > 0 {
		return found, err
	}
	public, err := f.rsaKeys(pkcs11.CKO_PUBLIC_KEY, pkcs11.CKA_MODULUS, pub.N.Bytes())
	if err != nil || len(public) == 0 {
		return nil, err
	}
	id, err := f.attributes(public[0], pkcs11.CKA_ID)
	if err != nil {
		return nil, err
	}
	return f.rsaKeys(pkcs11.CKO_PRIVATE_KEY, pkcs11.CKA_ID, id[0])
}

// rsaKeys returns the RSA keys of a class that have this value of an attribute.
func (f finder) rsaKeys(class, attribute uint, value []byte) ([]pkcs11.ObjectHandle, error) {
	return f.objects([]*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, class), pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_RSA), pkcs11.NewAttribute(attribute, value),
	})
}

// objects returns up to maxListed+1 objects.
func (f finder) objects(template []*pkcs11.Attribute) ([]pkcs11.ObjectHandle, error) {
	return f.objectsUpTo(maxListed+1, template)
}

// objectsUpTo returns up to limit objects.
func (f finder) objectsUpTo(limit int, template []*pkcs11.Attribute) (found []pkcs11.ObjectHandle, err error) {
	if err := f.lib.FindObjectsInit(f.sh, template); err != nil {
		return nil, call("C_FindObjectsInit", err)
	}
	defer func() {
		// An open search makes the next one fail.
		err = errors.Join(err, call("C_FindObjectsFinal", f.lib.FindObjectsFinal(f.sh)))
	}()
	for len(found) < limit {
		// A module may return fewer objects than asked for; only zero means that there are no more (PKCS#11 3.0 section
		// 5.7.8).
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

// describe returns the names of keys for an error. A key whose attributes cannot be read is named by its handle.
func (f finder) describe(objects []pkcs11.ObjectHandle) []string {
	var names []string
	for _, o := range objects {
		attrs, err := f.attributes(o, pkcs11.CKA_LABEL, pkcs11.CKA_ID, pkcs11.CKA_KEY_TYPE)
		if err != nil {
			names = append(names, fmt.Sprintf("object %d: %v", o, err))
			continue
		}
		id := uri.Path{{Name: "id", Value: string(attrs[1])}}
		name := fmt.Sprintf("object=%q %v", attrs[0], id)
		if !bytes.Equal(attrs[2], pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_RSA).Value) {
			name += " (not RSA)"
		}
		names = append(names, name)
	}
	return names
}

// publicKey returns the public key of a private key, or of the public key with the same id if the private key does not
// show it.
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
	objects, err := f.rsaKeys(pkcs11.CKO_PUBLIC_KEY, pkcs11.CKA_ID, id[0])
	if err != nil {
		return nil, err
	}
	if len(objects) != 1 {
		return nil, fmt.Errorf("%w: the private key does not show its modulus; found %d public keys with its id, want 1", signer.ErrBadKey, len(objects))
	}
	if attrs, err = f.attributes(objects[0], pkcs11.CKA_MODULUS, pkcs11.CKA_PUBLIC_EXPONENT); err != nil {
		return nil, err
	}
	return parsePublicKey(attrs[0], attrs[1])
}

// alwaysAuthenticate returns CKA_ALWAYS_AUTHENTICATE, and false if the token does not have it.
func (f finder) alwaysAuthenticate(private pkcs11.ObjectHandle) (bool, error) {
	attrs, err := f.attributes(private, pkcs11.CKA_ALWAYS_AUTHENTICATE)
	switch {
	case err == nil:
		return len(attrs[0]) > 0 && attrs[0][0] != 0, nil
	case classOf(err) == classRequest:
		return false, nil
	}
	return false, err
}

// attributes returns the values of at least one attribute. The value of an attribute that the object does not have is
// empty.
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

// parsePublicKey returns a public key from two big-endian numbers.
func parsePublicKey(modulus, exponent []byte) (*rsa.PublicKey, error) {
	n, e := new(big.Int).SetBytes(modulus), new(big.Int).SetBytes(exponent)
	if bits := n.BitLen(); bits < minModulusBits || bits > maxModulusBits {
		return nil, fmt.Errorf("%w: an RSA modulus of %d bits, want %d to %d", signer.ErrBadKey, bits, minModulusBits, maxModulusBits)
	}
	if n.Bit(0) == 0 {
		return nil, fmt.Errorf("%w: the RSA modulus is even", signer.ErrBadKey)
	}
	// crypto/rsa accepts exponents that are odd, at least 3 and less than 2^31.
	if e.BitLen() > 31 || e.Int64() < 3 || e.Bit(0) == 0 {
		return nil, fmt.Errorf("%w: an RSA public exponent that is even, below 3 or above 2^31", signer.ErrBadKey)
	}
	return &rsa.PublicKey{N: n, E: int(e.Int64())}, nil
}
