//go:build cgo

package pkcs11

import (
	"context"
	"crypto/rsa"
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"hsmsign/signer"
	softhsmtest "hsmsign/softhsm-test"
)

// pkcs11Tool runs pkcs11-tool, another program's view of the token.
func pkcs11Tool(tb testing.TB, tok *softhsmtest.Token, args ...string) string {
	tb.Helper()
	args = append([]string{"--module", tok.Module, "--token-label", tok.Label, "--login", "--pin", tok.PIN}, args...)
	out, err := exec.Command("pkcs11-tool", args...).CombinedOutput() // #nosec G204 -- a test's own arguments
	if err != nil {
		tb.Fatalf("pkcs11-tool (Debian: apt-get install opensc): %v: %s", err, out)
	}
	return string(out)
}

// liar is a module that says of every object what it is told to say.
type liar struct {
	cryptoki
	says map[uint][]byte
}

func (l liar) GetAttributeValue(sh pkcs11.SessionHandle, o pkcs11.ObjectHandle, a []*pkcs11.Attribute) ([]*pkcs11.Attribute, error) {
	got, err := l.cryptoki.GetAttributeValue(sh, o, a)
	for _, attr := range got {
		if value, ok := l.says[attr.Type]; ok {
			attr.Value = value
		}
	}
	return got, err
}

func generateKey(tb testing.TB, ref string, bits int) (signer.Signer, error) {
	tb.Helper()
	key, err := Backend(Options{}).Generate(context.Background(), parse(tb, ref), signer.KeySpec{Bits: bits})
	if err == nil {
		tb.Cleanup(func() { _ = key.Close() })
	}
	return key, err
}

func TestGenerate(t *testing.T) {
	tok := softhsmtest.New(t)
	s := script(t, tok.Module)
	for label, bits := range map[string]int{"first": 2048, "second": 3072} {
		key, err := generateKey(t, tok.Ref(label), bits)
		if err != nil {
			t.Fatal(err)
		}
		if n := key.Public().(*rsa.PublicKey).N.BitLen(); n != bits {
			t.Errorf("%d bits; want %d", n, bits)
		}
		infos, err := Backend(Options{}).List(t.Context(), parse(t, tok.Ref(label)))
		if err != nil || len(infos) != 1 {
			t.Fatalf("%v, %v", infos, err)
		}
		if len(infos[0].ID) != 2*idSize {
			t.Errorf("id %q; want %d random bytes", infos[0].ID, idSize)
		}
		if again := mustOpen(t, infos[0].Ref); !again.Public().(*rsa.PublicKey).Equal(key.Public()) {
			t.Error("the reference that is given names another key")
		}
		if err := key.Close(); err != nil {
			t.Error(err)
		}
		out := pkcs11Tool(t, tok, "-O", "--type", "privkey", "--label", label)
		for _, want := range []string{infos[0].ID, "Usage:      sign\n", "Access:     sensitive, always sensitive, never extractable, local\n"} {
			if !strings.Contains(out, want) {
				t.Errorf("pkcs11-tool does not say %q:\n%s", want, out)
			}
		}
		if out := pkcs11Tool(t, tok, "-O", "--type", "pubkey", "--label", label); !strings.Contains(out, "Usage:      verify\n") {
			t.Errorf("pkcs11-tool sees another use of the public key:\n%s", out)
		}
	}
	if n := s.counts()["C_Login"]; n > 2 {
		t.Errorf("%d logins for two keys that stay open", n)
	}
}

func TestGenerateRefuses(t *testing.T) {
	tok := newToken(t) // "vendor", id 01
	pkcs11Tool(t, tok, "--keypairgen", "--key-type", "EC:prime256v1", "--label", "curve", "--id", "02")
	text, _ := vendorKey(t)
	tok.Import(t, text, "public", []byte{3})
	pkcs11Tool(t, tok, "--delete-object", "--type", "privkey", "--id", "03")
	before := pkcs11Tool(t, tok, "-O")

	with := func(path string) string { return strings.Replace(tok.Ref(""), "?", path+"?", 1) }
	tests := []struct {
		name, ref string
		bits      int
		family    error
		says      string
	}{
		{"label", tok.Ref("vendor"), 2048, signer.ErrKeyExists, `object="vendor"`},
		{"id", with(";object=new;id=%01"), 2048, signer.ErrKeyExists, `object="vendor" id=%01`},
		{"label of another kind", tok.Ref("curve"), 2048, signer.ErrKeyExists, "(not RSA)"},
		{"label of a public key", tok.Ref("public"), 2048, signer.ErrKeyExists, `a public key without its private one: object="public"`},
		{"no label", tok.Ref(""), 2048, signer.ErrReference, "has no name"},
		{"empty label", with(";object="), 2048, signer.ErrReference, "has no name"},
		{"empty id", with(";object=new;id="), 2048, signer.ErrReference, "id= is empty"},
		{"small", tok.Ref("new"), 1024, signer.ErrUnsupported, "1024 bits"},
		{"no such token", strings.Replace(tok.Ref("new"), tok.Label, "nope", 1), 2048, signer.ErrKeyNotFound, tok.Label},
		{"no such module", "pkcs11:object=new?module-path=/none.so", 2048, signer.ErrKeyNotFound, "/none.so"},
	}
	for _, tt := range tests {
		_, err := generateKey(t, tt.ref, tt.bits)
		refused(t, err, tt.family, tt.says)
	}
	if after := pkcs11Tool(t, tok, "-O"); after != before {
		t.Errorf("the token holds other objects than before:\n%s", after)
	}
}

// A token that makes another key than it was asked for is told on, and the key is left for a person to look at.
func TestGenerateDisobeyed(t *testing.T) {
	tok := softhsmtest.New(t)
	s := script(t, tok.Module)
	honest := s.cryptoki
	tests := []struct {
		label string
		says  map[uint][]byte
		want  string
	}{
		{"a", map[uint][]byte{pkcs11.CKA_EXTRACTABLE: {1}}, "CKA_EXTRACTABLE is yes"},
		{"b", map[uint][]byte{pkcs11.CKA_SENSITIVE: {0}}, "CKA_SENSITIVE is no"},
		{"c", map[uint][]byte{pkcs11.CKA_NEVER_EXTRACTABLE: {0}, pkcs11.CKA_LOCAL: {}}, "CKA_LOCAL is unknown; CKA_NEVER_EXTRACTABLE is no"},
		{"d", map[uint][]byte{pkcs11.CKA_DECRYPT: {1}}, "CKA_DECRYPT is yes"},
		{"e", map[uint][]byte{pkcs11.CKA_PUBLIC_EXPONENT: {3}}, "RSA of 2048 bits with exponent 3"},
	}
	for _, tt := range tests {
		s.cryptoki = liar{honest, tt.says}
		_, err := generateKey(t, tok.Ref(tt.label), 2048)
		refused(t, err, signer.ErrBadKey, tt.want)
		s.cryptoki = honest
		mustOpen(t, tok.Ref(tt.label))
	}
}

// Who waits no longer is set free while the token still works, and the key that comes later is closed.
func TestGenerateAbandoned(t *testing.T) {
	tok := softhsmtest.New(t)
	s := script(t, tok.Module)
	held := make(chan struct{})
	s.open = func() error { <-held; return nil }
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := Backend(Options{}).Generate(ctx, parse(t, tok.Ref("vendor")), signer.KeySpec{Bits: 2048})
	refused(t, err, signer.ErrUnavailable)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v does not wrap the context's end", err)
	}
	close(held)
	awaitTrue(t, func() bool { c := s.counts(); return c["C_Initialize"] == c["C_Finalize"] })
}
