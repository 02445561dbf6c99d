//go:build cgo && linux

package pkcs11

import (
	"crypto/rsa"
	"fmt"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"hsmsign/fault"
	"hsmsign/internal/signerkit"
	"hsmsign/internal/testkit"
	"hsmsign/signer"
	softhsmtest "hsmsign/softhsm-test"
)

// A generated key signs and does nothing else, as another program sees it.
func TestGenerate(t *testing.T) {
	tok := softhsmtest.New(t)
	f := softhsmtest.BuildFaultModule(t)
	f.Use(tok)
	var opened []signer.Signer
	for label, bits := range map[string]int{"first": 2048, "second": 3072} {
		key := testkit.Value(generate(t, tok.Ref(label), bits))(t)
		if n := key.Public().(*rsa.PublicKey).N.BitLen(); n != bits {
			t.Errorf("%d bits; want %d", n, bits)
		}
		infos, err := Backend(Options{}).List(t.Context(), signerkit.Ref(t, tok.Ref(label)))
		if err != nil || len(infos) != 1 {
			t.Fatalf("%v, %v", infos, err)
		}
		if len(infos[0].ID) != 2*idSize {
			t.Errorf("id %q; want %d random bytes", infos[0].ID, idSize)
		}
		again := mustOpen(t, infos[0].Ref)
		opened = append(opened, again)
		if !again.pub.Equal(key.Public()) {
			t.Error("the listed reference names another key")
		}
		closeKey(t, key)
		out := tool(t, tok, "-O", "--type", "privkey", "--label", label)
		for _, want := range []string{infos[0].ID, "Usage:      sign\n", "Access:     sensitive, always sensitive, never extractable, local\n"} {
			if !strings.Contains(out, want) {
				t.Errorf("pkcs11-tool does not print %q:\n%s", want, out)
			}
		}
		if out := tool(t, tok, "-O", "--type", "pubkey", "--label", label); !strings.Contains(out, "Usage:      verify\n") {
			t.Errorf("pkcs11-tool sees another use of the public key:\n%s", out)
		}
	}
	for _, key := range opened {
		mustSign(t, key)
	}
	calls(t, f, map[string]int{"C_Login": 3}) // the keys stay open; SoftHSM2 is initialized again after each
}

func generate(t *testing.T, ref string, bits int) (signer.Signer, error) {
	t.Helper()
	return Backend(Options{}).Generate(t.Context(), signerkit.Ref(t, ref), signer.KeySpec{Bits: bits})
}

func TestGenerateRefuses(t *testing.T) {
	tok := newToken(t) // "vendor", id 01
	tool(t, tok, "--keypairgen", "--key-type", "EC:prime256v1", "--label", "curve", "--id", "02")
	tok.Import(t, testkit.File(t, "golden/vendor.key"), "public", []byte{3})
	tool(t, tok, "--delete-object", "--type", "privkey", "--id", "03")
	before := tool(t, tok, "-O")
	for _, tt := range []struct {
		ref    string
		bits   int
		family error
		says   string
	}{
		{tok.Ref("vendor"), 2048, signer.ErrKeyExists, `object="vendor"`},
		{with(tok, "object=new;id=%01"), 2048, signer.ErrKeyExists, `object="vendor" id=%01`},
		{tok.Ref("curve"), 2048, signer.ErrKeyExists, "(not RSA)"},
		{tok.Ref("public"), 2048, signer.ErrKeyExists, `a public key without its private key: object="public"`},
		{tok.Ref(""), 2048, signer.ErrReference, "has no name"},
		{with(tok, "object="), 2048, signer.ErrReference, "has no name"},
		{with(tok, "object=new;id="), 2048, signer.ErrReference, "id= is empty"},
		{tok.Ref("new"), 1024, signer.ErrUnsupported, "1024 bits"},
		{strings.Replace(tok.Ref("new"), tok.Label, "nope", 1), 2048, signer.ErrKeyNotFound, tok.Label},
		{"pkcs11:object=new?module-path=/none.so", 2048, signer.ErrKeyNotFound, "/none.so"},
	} {
		_, err := generate(t, tt.ref, tt.bits)
		signerkit.Refused(t, err, tt.family, tt.says)
	}
	if after := tool(t, tok, "-O"); after != before {
		t.Errorf("the token has other objects than before:\n%s", after)
	}
}

// What a token says to the template of the key is named as its refusal.
func TestGenerateFails(t *testing.T) {
	tok, f := faulty(t)
	for code, want := range map[string]struct {
		family     error
		says, hint string
	}{
		"0x5":  {signer.ErrUnavailable, "the token refused to make the key: backend unavailable: C_GenerateKeyPair returns CKR_GENERAL_ERROR", "tpm2_ptool"},
		"0xD1": {signer.ErrBadKey, "the token refused to make the key", "tpm2_ptool"},
		"0x70": {signer.ErrUnsupported, "CKR_MECHANISM_INVALID", "--list-mechanisms"},
		"0x30": {signer.ErrUnavailable, "CKR_DEVICE_ERROR", "the HSM answers"},
	} {
		f.Script(t, "C_GenerateKeyPair * return "+code)
		_, err := generate(t, tok.Ref("new"), 2048)
		signerkit.Refused(t, err, want.family, want.says)
		if !strings.Contains(fault.Hint(err), want.hint) {
			t.Errorf("%s: hint %q; want %q", code, fault.Hint(err), want.hint)
		}
	}
	// What fails afterwards does not hide that there is a key.
	f.Script(t, "C_Login 2 return 0xA0")
	_, err := generate(t, tok.Ref("made"), 2048)
	hinted(t, err, signer.ErrAuth, ";object=made;id=%", " was made, but: authentication failed: C_Login returns CKR_PIN_INCORRECT")
	if out := tool(t, tok, "-O", "--type", "privkey", "--label", "made"); !strings.Contains(out, "made") {
		t.Errorf("no key was made:\n%s", out)
	}
}

// lie returns a line of a script: the token returns this value of an attribute.
func lie(attribute uint, value string) string {
	return fmt.Sprintf("C_GetAttributeValue * attribute %#x %s", attribute, value)
}

// A key with other attributes than requested is an error, and stays for a person to look at.
func TestGenerateDisobeyed(t *testing.T) {
	tok := softhsmtest.New(t)
	f := softhsmtest.BuildFaultModule(t)
	f.Use(tok)
	for label, tt := range map[string]struct {
		script []string
		want   string
	}{
		"a": {[]string{lie(pkcs11.CKA_EXTRACTABLE, "01"), lie(pkcs11.CKA_SENSITIVE, "00"), lie(pkcs11.CKA_DECRYPT, "01")},
			"CKA_SENSITIVE is no; CKA_EXTRACTABLE is yes; CKA_DECRYPT is yes"},
		"c": {[]string{lie(pkcs11.CKA_NEVER_EXTRACTABLE, "00"), lie(pkcs11.CKA_LOCAL, "")}, "CKA_LOCAL is unknown; CKA_NEVER_EXTRACTABLE is no"},
		"e": {[]string{lie(pkcs11.CKA_PUBLIC_EXPONENT, "03")}, "RSA of 2048 bits with exponent 3"},
	} {
		f.Script(t, tt.script...)
		_, err := generate(t, tok.Ref(label), 2048)
		hinted(t, err, signer.ErrBadKey, tt.want)
		f.Script(t)
		mustOpen(t, tok.Ref(label))
	}
}
