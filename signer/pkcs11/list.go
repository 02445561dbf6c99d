//go:build cgo

package pkcs11

import (
	"context"
	"encoding/hex"
	"fmt"

	"github.com/miekg/pkcs11"

	"hsmsign/signer"
)

// maxKeys is how many keys of one token are listed.
const maxKeys = 1000

const opList = "list"

// list returns every private key that the reference matches; see signer.Backend.
func (o Options) list(ctx context.Context, ref signer.Ref) ([]signer.KeyInfo, error) {
	return operate(ctx, o, opList, ref, func(r reference) ([]signer.KeyInfo, error) { return listKeys(ctx, r, o) }, nil)
}

// listKeys returns every private key that r matches. It logs in if one token matches and there is a PIN: one PIN is never
// tried on several tokens.
func listKeys(ctx context.Context, r reference, opts Options) ([]signer.KeyInfo, error) {
	return withModule(ctx, r, func(m *module) (infos []signer.KeyInfo, err error) {
		tokens, _, err := m.findTokens(r)
		if err == nil && len(tokens) == 0 {
			var one foundToken
			one, err = m.findSettledToken(ctx, r) // its error lists the tokens
			tokens = []foundToken{one}
		}
		if err != nil {
			return nil, err
		}
		as := public
		if len(tokens) == 1 && opts.hasPIN(r) {
			as = loggedIn
		}
		for _, t := range tokens {
			if as == public && t.info.Flags&pkcs11.CKF_LOGIN_REQUIRED != 0 {
				opts.warn(fmt.Sprintf("not logged in to %s, which therefore shows no private keys; name this token and a pin-source", t.id))
			}
			keys, err := withSession(ctx, m, r, t, opts, as, func(f finder) ([]signer.KeyInfo, error) { return f.keys(t, opts) })
			if err != nil {
				return nil, err
			}
			infos = append(infos, keys...)
		}
		return infos, nil
	})
}

// keys returns the private keys of one token that the reference matches.
func (f finder) keys(t foundToken, opts Options) ([]signer.KeyInfo, error) {
	objects, err := f.objectsUpTo(maxKeys+1, f.template(pkcs11.CKO_PRIVATE_KEY))
	if err != nil {
		return nil, err
	}
	if len(objects) > maxKeys {
		opts.warn(fmt.Sprintf("%s has more than %d matching keys; the rest is not listed", t.id, maxKeys))
		objects = objects[:maxKeys]
	}
	infos := make([]signer.KeyInfo, len(objects))
	for i, o := range objects {
		if infos[i], err = f.info(t, o); err != nil {
			return nil, err
		}
	}
	return infos, nil
}

// info returns the description of one private key.
func (f finder) info(t foundToken, o pkcs11.ObjectHandle) (signer.KeyInfo, error) {
	attrs, err := f.attributes(o, pkcs11.CKA_LABEL, pkcs11.CKA_ID, pkcs11.CKA_KEY_TYPE)
	if err != nil {
		return signer.KeyInfo{}, err
	}
	label := string(attrs[0])
	exact, err := f.ref.exact(exactPath(t.id, label, string(attrs[1])))
	if err != nil {
		return signer.KeyInfo{}, err
	}
	info := signer.KeyInfo{
		Ref: exact, Store: t.id.String(), Label: label, ID: hex.EncodeToString(attrs[1]),
		Algorithm: keyType(attrs[2]), Properties: f.protection(o),
	}
	if info.Algorithm != "RSA" {
		return info, nil
	}
	pub, err := f.publicKey(o)
	if err != nil {
		return info, nil // a key that cannot be used is listed too
	}
	info.Public, info.Bits = pub, pub.N.BitLen()
	// A certificate that cannot be read must not hide the key.
	certs, _ := f.certificates(pkcs11.NewAttribute(pkcs11.CKA_ID, attrs[1]))
	for _, c := range certs {
		if pub.Equal(c.PublicKey) && (info.Cert == nil || c.NotAfter.After(info.Cert.NotAfter)) {
			info.Cert = c
		}
	}
	return info, nil
}

// protection returns what the token says about the protection of a private key.
func (f finder) protection(o pkcs11.ObjectHandle) []signer.Property {
	var properties []signer.Property
	for _, p := range protections() {
		properties = append(properties, signer.Property{Name: p.name, Value: f.boolean(o, p.attribute), Want: p.generated})
	}
	return properties
}

// keyType returns the name of a CKA_KEY_TYPE.
func keyType(value []byte) string {
	for name, kind := range map[string]uint{"RSA": pkcs11.CKK_RSA, "EC": pkcs11.CKK_EC, "DSA": pkcs11.CKK_DSA} {
		if string(value) == string(pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, kind).Value) {
			return name
		}
	}
	return "other"
}
