//go:build cgo && linux

package pkcs11

import (
	"crypto"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"testing"

	"hsmsign/internal/testkit"
	"hsmsign/signer"
	softhsmtest "hsmsign/softhsm-test"
)

func TestFindToken(t *testing.T) {
	tok := newToken(t, softhsmtest.WithLabel("one two"))
	softhsmtest.New(t, softhsmtest.WithDir(tok), softhsmtest.WithLabel("other"))
	query := tok.Ref("")[strings.IndexByte(tok.Ref(""), '?'):]

	// What the module says about the token is what a reference may ask for.
	k := mustOpen(t, tok.Ref("vendor"))
	lib := k.module.lib
	slot := k.token.now.Load().slot
	slotInfo, err := lib.GetSlotInfo(slot)
	if err != nil {
		t.Fatal(err)
	}
	info, err := lib.GetInfo()
	if err != nil {
		t.Fatal(err)
	}
	id, escape := k.token.id, url.PathEscape
	serial := "serial=" + id.serial
	for _, path := range []string{
		"token=one%20two", serial,
		serial + ";model=" + escape(id.model) + ";manufacturer=" + escape(id.manufacturer),
		fmt.Sprintf("slot-id=%d;object=vendor", slot),
		"slot-description=" + escape(slotInfo.SlotDescription) + ";slot-manufacturer=" + escape(slotInfo.ManufacturerID),
		fmt.Sprintf("%s;library-manufacturer=%s;library-description=%s;library-version=%d.%d", serial,
			escape(info.ManufacturerID), escape(info.LibraryDescription), info.LibraryVersion.Major, info.LibraryVersion.Minor),
	} {
		mustOpen(t, "pkcs11:"+path+query)
	}

	both := []string{`token="one two" serial="` + id.serial + `"`, `token="other"`}
	for _, tt := range []struct {
		path   string
		family error
		says   []string
	}{
		{"object=vendor", signer.ErrAmbiguousKey, append(both, "2 tokens match")},
		{"model=" + escape(id.model), signer.ErrAmbiguousKey, both},
		{"token=mdm", signer.ErrKeyNotFound, append(both, "no token matches")},
		{serial + ";model=x", signer.ErrKeyNotFound, both},
		{serial + ";manufacturer=x", signer.ErrKeyNotFound, both},
		{serial + "0", signer.ErrKeyNotFound, both},
		{"slot-id=1234567890123", signer.ErrKeyNotFound, both},
		{"slot-description=x", signer.ErrKeyNotFound, both},
		{"slot-manufacturer=x", signer.ErrKeyNotFound, both},
		{serial + ";library-manufacturer=x", signer.ErrKeyNotFound, []string{info.LibraryDescription}},
		{serial + ";library-description=x", signer.ErrKeyNotFound, []string{info.ManufacturerID}},
		{serial + ";library-version=99.1", signer.ErrKeyNotFound, []string{"version"}},
	} {
		// Not by Open, which repeats the search (see softhsm.go).
		r, err := Options{}.reference("open", parse(t, "pkcs11:"+tt.path+query))
		if err != nil {
			t.Fatal(err)
		}
		k.module.mu.Lock()
		_, err = k.module.findToken(r)
		k.module.mu.Unlock()
		refused(t, err, tt.family, tt.says...)
	}
}

func TestFindKey(t *testing.T) {
	tok := newToken(t)
	text := testkit.File(t, "golden/vendor.key")
	tok.Import(t, text, "R&D a+b", []byte{0xff, 0x00})
	tok.Import(t, keyPEM(t, newECKey(t)), "curve", []byte{9})
	for _, path := range []string{"object=vendor", "id=%01", "object=vendor;id=%01;type=private", "object=R&D%20a+b", "id=%ff%00"} {
		mustOpen(t, with(tok, path))
	}
	mustOpen(t, tok.Ref("R&D a+b"))

	all := []string{`object="vendor" id=%01`, `object="R&D a+b" id=%FF%00`, `object="curve" id=%09 (not RSA)`}
	for _, tt := range []struct {
		path   string
		family error
		says   []string
	}{
		{"object=vendor;id=%02", signer.ErrKeyNotFound, all},
		{"object=vendo", signer.ErrKeyNotFound, all},
		{"id=", signer.ErrKeyNotFound, all},
		{"object=curve", signer.ErrKeyNotFound, all},
		{"type=private", signer.ErrAmbiguousKey, all[:2]},
	} {
		openFails(t, with(tok, tt.path), tt.family, tt.says...)
	}
	for n := range byte(12) {
		tok.Import(t, text, "many", []byte{0x40, n})
	}
	_, err := open(t, Options{}, tok.Ref("many"))
	refused(t, err, signer.ErrAmbiguousKey, "; and more")
	if n := strings.Count(err.Error(), `object="many" id=`); n != maxListed {
		t.Errorf("%d keys listed; want %d", n, maxListed)
	}
}

// The certificate's key selects if the reference names no object, whether or not the token shows the modulus of private
// keys.
func TestFindKeyByPublicKey(t *testing.T) {
	tok, f := faulty(t)
	golden := testkit.GoldenKey(t)
	other := keyPEM(t, testkit.KeyOf(1024, "other"))
	for n := range byte(12) { // more than an error lists
		tok.Import(t, other, "other", []byte{0x40, n})
	}
	open := func(pub crypto.PublicKey, ref string) (signer.Signer, error) {
		return Backend(Options{}).Open(t.Context(), parse(t, ref), signer.OpenOptions{PublicKey: pub})
	}
	for _, script := range []string{"", "C_FindObjects 2 length 0"} { // the second search is that for the modulus
		f.Script(t, script)
		key, err := open(&golden.PublicKey, tok.Ref(""))
		if err != nil {
			t.Fatalf("%q: %v", script, err)
		}
		if !golden.PublicKey.Equal(key.Public()) {
			t.Errorf("%q: another key", script)
		}
		closeKey(t, key)
	}
	f.Script(t)
	for _, tt := range []struct {
		pub    crypto.PublicKey
		ref    string
		family error
	}{
		{nil, tok.Ref(""), signer.ErrAmbiguousKey},
		{newECKey(t).Public(), tok.Ref(""), signer.ErrAmbiguousKey},
		{&testkit.Key("unknown").PublicKey, tok.Ref(""), signer.ErrKeyNotFound},
		{&golden.PublicKey, tok.Ref("other"), signer.ErrAmbiguousKey}, // the reference has priority
	} {
		_, err := open(tt.pub, tt.ref)
		refused(t, err, tt.family)
	}
}

// Some tokens show the modulus of the public key only.
func TestPublicKeyObject(t *testing.T) {
	tok, f := faulty(t)
	tok.Import(t, testkit.File(t, "golden/vendor.key"), "other", []byte{9})
	const sensitive, deviceError = "C_GetAttributeValue 1 return 0x11", "C_GetAttributeValue 1 return 0x30"
	f.Script(t, sensitive)
	key, err := open(t, Options{}, tok.Ref("vendor"))
	if err != nil {
		t.Fatal(err)
	}
	mustSign(t, key)
	closeKey(t, key)
	tok.Import(t, testkit.File(t, "golden/vendor.key"), "twin", []byte{1})
	f.Script(t, sensitive)
	openFails(t, tok.Ref("vendor"), signer.ErrBadKey, "found 2 public keys with its id, want 1")
	f.Script(t, deviceError) // no reason to look elsewhere
	openFails(t, tok.Ref("vendor"), signer.ErrUnavailable, "C_GetAttributeValue", "CKR_DEVICE_ERROR")
}

func TestParsePublicKey(t *testing.T) {
	n := testkit.GoldenKey(t).N.Bytes()
	odd := func(bits int) []byte { return new(big.Int).SetBit(big.NewInt(1), bits-1, 1).Bytes() }
	for _, tt := range []struct {
		name string
		n, e []byte
		says string
	}{
		{"the golden key", n, []byte{1, 0, 1}, ""},
		{"leading zeros", append([]byte{0, 0}, n...), []byte{0, 3}, ""},
		{"1024 bits", odd(1024), []byte{3}, ""},
		{"1023 bits", odd(1023), []byte{3}, "1023 bits"},
		{"16385 bits", odd(16385), []byte{3}, "16385 bits"},
		{"empty", nil, []byte{3}, "0 bits"},
		{"even modulus", append(n[:len(n):len(n)], 0), []byte{3}, "modulus is even"},
		{"no exponent", n, nil, "exponent"},
		{"exponent 1", n, []byte{1}, "exponent"},
		{"even exponent", n, []byte{4}, "exponent"},
		{"large exponent", n, []byte{0x80, 0, 0, 1}, "exponent"},
		{"huge exponent", n, n, "exponent"},
	} {
		pub, err := parsePublicKey(tt.n, tt.e)
		switch {
		case tt.says == "" && (err != nil || pub.N.Cmp(new(big.Int).SetBytes(tt.n)) != 0):
			t.Errorf("%s: %v, %v", tt.name, pub, err)
		case tt.says != "" && (!errors.Is(err, signer.ErrBadKey) || !strings.Contains(err.Error(), tt.says)):
			t.Errorf("%s: error %v; want %q", tt.name, err, tt.says)
		}
	}
}
