//go:build cgo

package pkcs11

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"slices"

	"github.com/miekg/pkcs11"

	"hsmsign/fault"
	"hsmsign/signer"
	"hsmsign/signer/pkcs11/internal/uri"
)

// idSize is the length in bytes of a random CKA_ID; two of them never collide.
const idSize = 16

const opGenerate = "generate"

// generate generates the RSA key that the reference names; see signer.Backend. The reference must have object=; without
// id= the key gets a random id. If ctx ends first, the token may still finish the key.
func (o Options) generate(ctx context.Context, ref signer.Ref, spec signer.KeySpec) (signer.Signer, error) {
	work := func(r reference) (signer.Signer, error) { return o.generateIn(ctx, r, spec) }
	return operate(ctx, o, opGenerate, ref, work, closeLate)
}

// generateIn generates an RSA key pair in the token that r names, and opens it.
func (o Options) generateIn(ctx context.Context, r reference, spec signer.KeySpec) (made signer.Signer, err error) {
	label, _ := r.path.Get("object")
	if label == "" {
		return nil, fault.Errorf("%w: the new key has no name", signer.ErrReference).Fix("add object=NAME to the reference")
	}
	if !slices.Contains([]int{2048, 3072, 4096}, spec.Bits) {
		return nil, fmt.Errorf("%w: RSA of %d bits, want 2048, 3072 or 4096", signer.ErrUnsupported, spec.Bits)
	}
	id, ok := r.path.Get("id")
	if !ok {
		random := make([]byte, idSize)
		_, _ = rand.Read(random) // never fails (Go 1.24)
		id = string(random)
	}
	if id == "" {
		return nil, fault.Errorf("%w: id= is empty", signer.ErrReference).Fix("set id= to a value, or omit it for a random one")
	}
	made, err = withModule(ctx, r, func(m *module) (signer.Signer, error) { return m.generate(ctx, r, o, label, id, spec) })
	if err != nil {
		return nil, err
	}
	if pub := made.Public().(*rsa.PublicKey); pub.N.BitLen() != spec.Bits || pub.E != 65537 {
		_ = made.Close() // the first error is reported
		return nil, fault.Errorf("%w: the token made RSA of %d bits with exponent %d", signer.ErrBadKey, pub.N.BitLen(), pub.E).Fix(hintDelete)
	}
	return made, nil
}

// generate makes a key pair in the one token that r names, and opens it. The caller holds m.mu.
func (m *module) generate(ctx context.Context, r reference, opts Options, label, id string, spec signer.KeySpec) (signer.Signer, error) {
	found, err := m.findSettledToken(ctx, r)
	if err != nil {
		return nil, err
	}
	t, err := m.retainToken(ctx, r, &found, opts) // until the key is open, so that no PIN is asked for again
	if err != nil {
		return nil, err
	}
	defer func() { _ = m.releaseToken(t) }() // the first error is reported
	_, err = withSession(ctx, m, r, found, opts, writer, func(f finder) (none struct{}, err error) {
		if err = cmp.Or(ctx.Err(), f.refuseExisting(label, id)); err == nil { // a caller that has left wants no key
			err = f.generate(label, id, spec)
		}
		return none, err
	})
	if err != nil {
		return nil, err
	}
	if err = m.refresh(ctx, r, t, &found); err == nil {
		err = finder{lib: m.lib, sh: t.anchor, ref: r}.refuseTwin(label, id)
	}
	exact := r
	exact.path = exactPath(found.id, label, id)
	var made signer.Signer
	if err == nil {
		m.keys++                                                      // the login is in use: the module must not be initialized again
		made, err = m.openKey(ctx, exact, opts, signer.OpenOptions{}) // the reference is exact, so it needs no public key
		m.keys--
	}
	if err != nil {
		return nil, fmt.Errorf("the key %v was made, but: %w", exact.path, inner(err))
	}
	return made, nil
}

// hintTPM: tpm2-pkcs11 answers CKR_GENERAL_ERROR to a key that cannot decrypt.
const hintTPM = "make a TPM's key with tpm2_ptool addkey --algorithm=rsa2048"

const hintRefused = "look for the reason in the module's log; some tokens make keys only with their own tool; " + hintTPM

const hintDelete = "the key is still on the token: look at it with hsmsign key show, and delete it with the vendor's own tool"

// exactPath returns the path of the one key with this label and id in this token.
func exactPath(t tokenID, label, id string) uri.Path {
	path := uri.Path{{Name: "token", Value: t.label}, {Name: "serial", Value: t.serial}}
	if label != "" {
		path = append(path, uri.Attr{Name: "object", Value: label})
	}
	if id != "" {
		path = append(path, uri.Attr{Name: "id", Value: id})
	}
	return path
}

// refuseExisting returns signer.ErrKeyExists if a key has the label or the id already: of two keys with one name, either
// may be found.
func (f finder) refuseExisting(label, id string) error {
	private, err := f.named(pkcs11.CKO_PRIVATE_KEY, label, id)
	switch {
	case err != nil:
		return err
	case len(private) > 0:
		return fault.Errorf("%w: %s", signer.ErrKeyExists, list(f.describe(private))).Fix("choose another object= and id=; nothing is replaced")
	}
	public, err := f.named(pkcs11.CKO_PUBLIC_KEY, label, id)
	if err != nil || len(public) == 0 {
		return err
	}
	return fault.Errorf("%w: a public key without its private key: %s", signer.ErrKeyExists, list(f.describe(public))).
		Fix("if a generation was interrupted, delete it with the vendor's own tool (pkcs11-tool --delete-object --type pubkey); or choose another object= and id=")
}

// refuseTwin returns signer.ErrKeyExists if another program has made a key of this name since refuseExisting: PKCS#11 has
// no way to make a key only if there is none. Of several programs at most the first one finds only its own key.
func (f finder) refuseTwin(label, id string) error {
	made, err := f.named(pkcs11.CKO_PRIVATE_KEY, label, id)
	if err != nil || len(made) < 2 {
		return err
	}
	return fault.Errorf("%w: another program made one of this name at the same time; there are now: %s", signer.ErrKeyExists, list(f.describe(made))).
		Fix("nothing was deleted: keep one of the keys, and delete the others by their id with the vendor's own tool (pkcs11-tool --delete-object --type privkey --id)")
}

// named returns the objects of a class that have the label or the id.
func (f finder) named(class uint, label, id string) (found []pkcs11.ObjectHandle, err error) {
	for _, name := range []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_LABEL, label), pkcs11.NewAttribute(pkcs11.CKA_ID, id)} {
		some, err := f.objects([]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, class), name})
		if err != nil {
			return nil, err
		}
		found = append(found, some...)
	}
	slices.Sort(found)
	return slices.Compact(found), nil
}

// generate makes the key pair and checks that the token obeyed.
func (f finder) generate(label, id string, spec signer.KeySpec) error {
	attr := pkcs11.NewAttribute
	public := []*pkcs11.Attribute{
		attr(pkcs11.CKA_TOKEN, true), attr(pkcs11.CKA_LABEL, label), attr(pkcs11.CKA_ID, id),
		attr(pkcs11.CKA_MODULUS_BITS, spec.Bits), attr(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}),
		attr(pkcs11.CKA_VERIFY, true), attr(pkcs11.CKA_ENCRYPT, spec.Decrypt), attr(pkcs11.CKA_WRAP, false), attr(pkcs11.CKA_VERIFY_RECOVER, false),
	}
	private := []*pkcs11.Attribute{
		attr(pkcs11.CKA_TOKEN, true), attr(pkcs11.CKA_LABEL, label), attr(pkcs11.CKA_ID, id),
		attr(pkcs11.CKA_PRIVATE, true), attr(pkcs11.CKA_SENSITIVE, true), attr(pkcs11.CKA_EXTRACTABLE, false),
		attr(pkcs11.CKA_SIGN, true), attr(pkcs11.CKA_DECRYPT, spec.Decrypt), attr(pkcs11.CKA_UNWRAP, false), attr(pkcs11.CKA_SIGN_RECOVER, false),
	}
	mechanism := []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, nil)}
	_, object, err := f.lib.GenerateKeyPair(f.sh, mechanism, public, private)
	err = call("C_GenerateKeyPair", err)
	if errors.Is(err, signer.ErrBadKey) || is(err, pkcs11.CKR_GENERAL_ERROR) {
		return fault.Errorf("the token refused to make the key: %w", err).Fix(hintRefused)
	}
	if err != nil {
		return advise(err)
	}
	if wrong := (signer.KeyInfo{Properties: wanted(f.protection(object), spec)}).Unprotected(); len(wrong) > 0 {
		return fault.Errorf("%w: the token made a key with other attributes than requested: %s", signer.ErrBadKey, list(wrong)).Fix(hintDelete)
	}
	return nil
}

// wanted returns the properties with what they must be for a key of this kind.
func wanted(properties []signer.Property, spec signer.KeySpec) []signer.Property {
	for i := range properties {
		if properties[i].Name == "CKA_DECRYPT" && spec.Decrypt {
			properties[i].Want = yes
		}
	}
	return properties
}

// protection is an attribute that says how a private key is protected.
type protection struct {
	name      string
	attribute uint
	generated string // what it must be for a key that was generated here; empty: it is only shown
}

// protections returns the attributes in the order in which they are shown.
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

// The values of a CK_BBOOL as they are shown.
const (
	yes     = "yes"
	no      = "no"
	unknown = "unknown" // the token does not say
)

// boolean returns the value of a CK_BBOOL as it is shown.
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
