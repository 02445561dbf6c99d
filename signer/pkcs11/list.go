//go:build cgo

package pkcs11

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"slices"

	"github.com/miekg/pkcs11"

	"hsmsign/signer"
)

// maxKeys is how many keys of one token are listed.
const maxKeys = 1000

const opList = "list"

// list returns every key that the reference matches; see signer.Backend.
func (o Options) list(ctx context.Context, ref signer.Ref) ([]signer.KeyInfo, error) {
	return operate(ctx, o, opList, ref, func(r reference) ([]signer.KeyInfo, error) { return listKeys(ctx, r, o) }, nil)
}

// listKeys returns every private key that r matches, and the public keys and certificates that belong to none of them. It
// logs in if one token matches and there is a PIN: nobody is asked for one, and one PIN is never tried on several tokens.
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
		if len(tokens) == 1 && (opts.hasPIN(r, tokens[0]) || m.pin(tokens[0].id).inUse()) {
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

// keys returns the private keys of one token that the reference matches, then the public keys without their private key,
// then the certificates without either.
func (f finder) keys(t foundToken, opts Options) (infos []signer.KeyInfo, err error) {
	for _, list := range []struct {
		class uint
		kind  string
	}{{pkcs11.CKO_PRIVATE_KEY, ""}, {pkcs11.CKO_PUBLIC_KEY, signer.TypePublic}, {pkcs11.CKO_CERTIFICATE, signer.TypeCertificate}} {
		if _, private := f.ref.path.Get("type"); private && list.kind != "" {
			break
		}
		objects, err := f.objectsUpTo(maxKeys+1, f.template(list.class))
		if err != nil {
			return nil, err
		}
		if len(objects) > maxKeys {
			opts.warn(fmt.Sprintf("%s has more than %d matching keys; the rest is not listed", t.id, maxKeys))
			objects = objects[:maxKeys]
		}
		before := infos
		for _, o := range objects {
			info, err := f.info(t, o, list.kind)
			if err != nil {
				return nil, err
			}
			if !slices.ContainsFunc(before, func(listed signer.KeyInfo) bool { return samePair(listed, info) }) {
				infos = append(infos, info)
			}
		}
	}
	return infos, nil
}

// samePair reports whether two objects belong to one key pair. Objects whose public key is not known are compared by id.
func samePair(a, b signer.KeyInfo) bool {
	if pub, ok := a.Public.(interface{ Equal(crypto.PublicKey) bool }); ok && b.Public != nil {
		return pub.Equal(b.Public)
	}
	return a.ID == b.ID && a.ID != ""
}

// info returns the description of one object; kind is signer.KeyInfo's Type.
func (f finder) info(t foundToken, o pkcs11.ObjectHandle, kind string) (signer.KeyInfo, error) {
	attrs, err := f.attributes(o, pkcs11.CKA_LABEL, pkcs11.CKA_ID)
	if err != nil {
		return signer.KeyInfo{}, err
	}
	label := string(attrs[0])
	info := signer.KeyInfo{
		Ref: f.ref.exact(exactPath(t.id, label, string(attrs[1]))), Type: kind, Store: t.id.String(), Label: label, ID: hex.EncodeToString(attrs[1]),
	}
	switch kind {
	case signer.TypeCertificate:
		// A certificate that cannot be read is listed too.
		if info.Cert, err = f.certificate(o); err == nil {
			info.Public, info.Algorithm = info.Cert.PublicKey, info.Cert.PublicKeyAlgorithm.String()
		}
	case "":
		info.Properties = f.protection(o)
		fallthrough
	default:
		kind, err := f.attributes(o, pkcs11.CKA_KEY_TYPE)
		if err != nil {
			return signer.KeyInfo{}, err
		}
		if info.Algorithm = keyType(kind[0]); info.Algorithm != "RSA" {
			return info, nil
		}
		if pub, err := f.publicKey(o); err == nil { // a key that cannot be used is listed too
			info.Public, info.Cert = pub, f.newest(pub, attrs[1])
		}
	}
	if pub, ok := info.Public.(*rsa.PublicKey); ok {
		info.Bits = pub.N.BitLen()
	}
	return info, nil
}

// newest returns the certificate of a key that expires last, or nil. A certificate that cannot be read must not hide the
// key.
func (f finder) newest(pub *rsa.PublicKey, id []byte) (newest *x509.Certificate) {
	certs, _ := f.certificates(pkcs11.NewAttribute(pkcs11.CKA_ID, id))
	for _, c := range certs {
		if pub.Equal(c.PublicKey) && (newest == nil || c.NotAfter.After(newest.NotAfter)) {
			newest = c
		}
	}
	return newest
}

// tokens returns every slot of the module that the reference names; see signer.Backend.
func (o Options) tokens(ctx context.Context, ref signer.Ref) ([]signer.TokenInfo, error) {
	return operate(ctx, o, "list the tokens of", ref, func(r reference) ([]signer.TokenInfo, error) {
		return withModule(ctx, r, func(m *module) ([]signer.TokenInfo, error) { return m.slots(r) })
	}, nil)
}

// slots returns every slot of a retained module. The caller holds m.mu.
func (m *module) slots(r reference) ([]signer.TokenInfo, error) {
	slots, err := m.lib.GetSlotList(false)
	if err != nil {
		return nil, call("C_GetSlotList", err)
	}
	infos := make([]signer.TokenInfo, len(slots))
	for i, slot := range slots {
		t := &infos[i]
		t.Slot, t.Flags = slot, []string{}
		info, err := m.tokenInfo(slot)
		switch {
		case is(err, pkcs11.CKR_TOKEN_NOT_PRESENT):
			t.Flags = []string{"no token"}
			continue
		case err != nil: // one broken reader must not hide the others
			t.Error = err.Error()
			continue
		}
		t.Label, t.Serial, t.Manufacturer, t.Model = info.Label, info.SerialNumber, info.ManufacturerID, info.Model
		for _, f := range []struct {
			flag uint
			text string
		}{
			{pkcs11.CKF_TOKEN_INITIALIZED, "initialized"}, {pkcs11.CKF_LOGIN_REQUIRED, "login required"},
			{pkcs11.CKF_USER_PIN_INITIALIZED, "PIN set"}, {pkcs11.CKF_USER_PIN_COUNT_LOW, "wrong PIN sent"},
			{pkcs11.CKF_USER_PIN_FINAL_TRY, "last PIN try"}, {pkcs11.CKF_USER_PIN_LOCKED, "PIN locked"},
			{pkcs11.CKF_PROTECTED_AUTHENTICATION_PATH, "PIN pad"}, {pkcs11.CKF_WRITE_PROTECTED, "write-protected"},
		} {
			if info.Flags&f.flag != 0 {
				t.Flags = append(t.Flags, f.text)
			}
		}
		if info.Flags&pkcs11.CKF_TOKEN_INITIALIZED == 0 {
			t.Flags = append(t.Flags, "not initialized")
		} else {
			t.Ref = r.exact(exactPath(tokenID{label: t.Label, serial: t.Serial}, "", ""))
		}
	}
	return infos, nil
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
