//go:build cgo

package pkcs11

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"

	"github.com/miekg/pkcs11"

	"hsmsign/signer"
)

// idSize is the length in bytes of a random CKA_ID: nobody has the same by chance.
const idSize = 16

// opGenerate is the name of the operation in errors.
const opGenerate = "generate"

// generate makes the RSA key that the reference names; see signer.Backend. The reference must have object=; without
// id= the key gets a random one. When ctx ends first the token may still finish the key.
func (o Options) generate(ctx context.Context, ref signer.Ref, spec signer.KeySpec) (signer.Signer, error) {
	r, err := o.reference(opGenerate, ref)
	if err != nil {
		return nil, err
	}
	return await(ctx, r, opGenerate, func() (signer.Signer, error) { return generate(ctx, r, o, spec) },
		func(k signer.Signer) { _ = k.Close() })
}

// generate makes an RSA key pair in the token that r names, and opens it.
func generate(ctx context.Context, r reference, opts Options, spec signer.KeySpec) (signer.Signer, error) {
	label, ok := r.path.get("object")
	if !ok || label == "" {
		return nil, r.fail(opGenerate, fmt.Errorf("%w: the new key has no name", signer.ErrReference), "add object=NAME to the reference")
	}
	if !slices.Contains([]int{2048, 3072, 4096}, spec.Bits) {
		return nil, r.fail(opGenerate, fmt.Errorf("%w: RSA of %d bits; 2048, 3072 or 4096 are generated", signer.ErrUnsupported, spec.Bits), "")
	}
	id, ok := r.path.get("id")
	if !ok {
		random := make([]byte, idSize)
		_, _ = rand.Read(random) // never fails (Go 1.24)
		id = string(random)
	}
	if id == "" {
		return nil, r.fail(opGenerate, fmt.Errorf("%w: id= is empty", signer.ErrReference), "give it a value, or leave it out for a random one")
	}
	var made *key
	err := visitToken(ctx, r, opGenerate, opts, writer, func(m *module, f finder, t foundToken) error {
		if err := f.refuseExisting(label, id); err != nil {
			return err
		}
		if err := f.generate(label, id, spec.Bits); err != nil {
			return err
		}
		exact := r
		exact.path = exactPath(t.id, label, id)
		// The visit is still logged in, so that opening the key asks for no PIN again.
		k, err := m.openRetained(ctx, exact, opts)
		made = k
		return err
	})
	if err != nil {
		return nil, err
	}
	if made.pub.N.BitLen() != spec.Bits || made.pub.E != 65537 {
		_ = made.Close() // the first error is the one to tell
		return nil, r.fail(opGenerate, fmt.Errorf("%w: the token made RSA of %d bits with exponent %d", signer.ErrBadKey, made.pub.N.BitLen(), made.pub.E), fixDelete)
	}
	return made, nil
}

// openRetained is openKey for a module that is retained already. The caller holds m.mu.
func (m *module) openRetained(ctx context.Context, r reference, opts Options) (*key, error) {
	if err := m.retain(r); err != nil {
		return nil, err
	}
	opts.PublicKey = nil // the reference is exact
	k, err := m.openKey(ctx, r, opts)
	if err != nil {
		_ = m.release() // the first error is the one to tell
	}
	return k, err
}

const fixDelete = "the key was left on the token: look at it with hsmsign key show, and delete it with the vendor's own tool"

// exactPath is the path of the one key with this label and id in this token.
func exactPath(t tokenID, label, id string) uri {
	path := uri{{"token", t.label}, {"serial", t.serial}}
	if label != "" {
		path = append(path, pathAttr{"object", label})
	}
	if id != "" {
		path = append(path, pathAttr{"id", id})
	}
	return path
}

// refuseExisting looks for keys that have the label or the id already: two keys of one name are found by chance.
func (f finder) refuseExisting(label, id string) error {
	for _, class := range []uint{pkcs11.CKO_PRIVATE_KEY, pkcs11.CKO_PUBLIC_KEY} {
		for _, name := range []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_LABEL, label), pkcs11.NewAttribute(pkcs11.CKA_ID, id)} {
			there, err := f.objects([]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, class), name})
			if err != nil {
				return f.ref.fail(opGenerate, err, "")
			}
			switch {
			case len(there) == 0:
			case class == pkcs11.CKO_PUBLIC_KEY:
				return f.ref.fail(opGenerate, fmt.Errorf("%w: a public key without its private one: %s", signer.ErrKeyExists, list(f.describe(there))),
					"if a generation was cut off there, delete it with the vendor's own tool (pkcs11-tool --delete-object --type pubkey); or choose another object= and id=")
			default:
				return f.ref.fail(opGenerate, fmt.Errorf("%w: %s", signer.ErrKeyExists, list(f.describe(there))),
					"choose another object= and id=; nothing is replaced")
			}
		}
	}
	return nil
}

// generate makes the key pair and holds the token to what it was asked for.
func (f finder) generate(label, id string, bits int) error {
	attr := pkcs11.NewAttribute
	public := []*pkcs11.Attribute{
		attr(pkcs11.CKA_TOKEN, true), attr(pkcs11.CKA_LABEL, label), attr(pkcs11.CKA_ID, id),
		attr(pkcs11.CKA_MODULUS_BITS, bits), attr(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}),
		attr(pkcs11.CKA_VERIFY, true), attr(pkcs11.CKA_ENCRYPT, false), attr(pkcs11.CKA_WRAP, false), attr(pkcs11.CKA_VERIFY_RECOVER, false),
	}
	private := []*pkcs11.Attribute{
		attr(pkcs11.CKA_TOKEN, true), attr(pkcs11.CKA_LABEL, label), attr(pkcs11.CKA_ID, id),
		attr(pkcs11.CKA_PRIVATE, true), attr(pkcs11.CKA_SENSITIVE, true), attr(pkcs11.CKA_EXTRACTABLE, false),
		attr(pkcs11.CKA_SIGN, true), attr(pkcs11.CKA_DECRYPT, false), attr(pkcs11.CKA_UNWRAP, false), attr(pkcs11.CKA_SIGN_RECOVER, false),
	}
	mechanism := []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, nil)}
	_, object, err := f.lib.GenerateKeyPair(f.sh, mechanism, public, private)
	if err != nil {
		return f.ref.fail(opGenerate, call("C_GenerateKeyPair", err), "")
	}
	var wrong []string
	for _, p := range protections() {
		if p.generated == "" {
			continue
		}
		if got := f.boolean(object, p.attribute); got != p.generated {
			wrong = append(wrong, fmt.Sprintf("%s is %s", p.name, got))
		}
	}
	if len(wrong) > 0 {
		return f.ref.fail(opGenerate, fmt.Errorf("%w: the token did not do as it was asked: %s", signer.ErrBadKey, list(wrong)), fixDelete)
	}
	return nil
}

// protection is an attribute that says how a private key is protected.
type protection struct {
	name      string
	attribute uint
	generated string // what a key that was generated here must say; empty: shown only
}

// protections is in the order in which it is shown.
func protections() []protection {
	return []protection{
		{"CKA_LOCAL", pkcs11.CKA_LOCAL, yes},
		{"CKA_SENSITIVE", pkcs11.CKA_SENSITIVE, yes},
		{"CKA_ALWAYS_SENSITIVE", pkcs11.CKA_ALWAYS_SENSITIVE, yes},
		{"CKA_EXTRACTABLE", pkcs11.CKA_EXTRACTABLE, no},
		{"CKA_NEVER_EXTRACTABLE", pkcs11.CKA_NEVER_EXTRACTABLE, yes},
		{"CKA_SIGN", pkcs11.CKA_SIGN, yes},
		{"CKA_SIGN_RECOVER", pkcs11.CKA_SIGN_RECOVER, ""},
		{"CKA_DECRYPT", pkcs11.CKA_DECRYPT, no},
		{"CKA_UNWRAP", pkcs11.CKA_UNWRAP, no},
		{"CKA_PRIVATE", pkcs11.CKA_PRIVATE, yes},
		{"CKA_ALWAYS_AUTHENTICATE", pkcs11.CKA_ALWAYS_AUTHENTICATE, ""},
	}
}

// The values of a CK_BBOOL, as they are shown.
const (
	yes     = "yes"
	no      = "no"
	unknown = "unknown" // the token does not say
)

// boolean reads a CK_BBOOL.
func (f finder) boolean(o pkcs11.ObjectHandle, attribute uint) string {
	values, err := f.attributes(o, attribute)
	switch {
	case err != nil || len(values[0]) != 1:
		return unknown
	case values[0][0] == 0:
		return no
	}
	return yes
}
