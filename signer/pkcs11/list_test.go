//go:build cgo

package pkcs11

import (
	"crypto/rsa"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hsmsign/signer"
	softhsmtest "hsmsign/softhsm-test"
)

func awaitTrue(t *testing.T, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it did not come about within 5 s")
		}
	}
}

func TestList(t *testing.T) {
	tok := newToken(t)
	text, private := vendorKey(t)
	tok.Import(t, text, "twin", []byte{2})
	tok.Import(t, text, "twin", []byte{3})
	pkcs11Tool(t, tok, "--keypairgen", "--key-type", "EC:prime256v1", "--label", "curve", "--id", "04")
	tests := []struct {
		ref  string
		want []string
	}{
		{tok.Ref(""), []string{"vendor 01 RSA 2048", "twin 02 RSA 2048", "twin 03 RSA 2048", "curve 04 EC 0"}},
		{tok.Ref("twin"), []string{"twin 02 RSA 2048", "twin 03 RSA 2048"}},
		{strings.Replace(tok.Ref("twin"), "?", ";id=%03?", 1), []string{"twin 03 RSA 2048"}},
		{tok.Ref("none"), nil},
	}
	for _, tt := range tests {
		infos, err := Backend(Options{Warn: func(text string) { t.Errorf("warned: %s", text) }}).List(t.Context(), parse(t, tt.ref))
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]bool{}
		for _, k := range infos {
			got[fmt.Sprintf("%s %s %s %d", k.Label, k.ID, k.Algorithm, k.Bits)] = true
			if k.Algorithm == "RSA" {
				if key := mustOpen(t, k.Ref); !private.PublicKey.Equal(key.Public()) || !private.PublicKey.Equal(k.Public) {
					t.Errorf("%s: another key", k.Ref)
				}
			}
			if !strings.Contains(k.Store, tok.Label) || len(k.Properties) != len(protections()) {
				t.Errorf("%+v", k)
			}
		}
		want := map[string]bool{}
		for _, w := range tt.want {
			want[w] = true
		}
		if diff := cmp.Diff(want, got); diff != "" || len(infos) != len(tt.want) {
			t.Errorf("%s: -want +got\n%s", tt.ref, diff)
		}
	}
}

// An imported key was outside the token, and says so.
func TestListProperties(t *testing.T) {
	tok := newToken(t)
	infos, err := Backend(Options{}).List(t.Context(), parse(t, tok.Ref("vendor")))
	if err != nil || len(infos) != 1 {
		t.Fatalf("%v, %v", infos, err)
	}
	got := map[string]string{}
	for _, p := range infos[0].Properties {
		got[p.Name] = p.Value
	}
	for name, want := range map[string]string{"CKA_LOCAL": no, "CKA_ALWAYS_SENSITIVE": no, "CKA_NEVER_EXTRACTABLE": no, "CKA_SENSITIVE": yes, "CKA_SIGN": yes} {
		if got[name] != want {
			t.Errorf("%s is %q; want %q", name, got[name], want)
		}
	}
}

// One PIN is never tried on several tokens, and none is asked for where there is no way to one.
func TestListWithoutLogin(t *testing.T) {
	tok := newToken(t)
	softhsmtest.New(t, softhsmtest.WithDir(tok), softhsmtest.WithLabel("other"))
	s := script(t, tok.Module)
	_, query, _ := strings.Cut(tok.Ref(""), "?")
	module, _, _ := strings.Cut(query, "&")
	for ref, warnings := range map[string]int{
		"pkcs11:?" + query:                         2, // with a PIN
		"pkcs11:?" + module:                        2,
		"pkcs11:token=" + tok.Label + "?" + module: 1,
	} {
		warned := 0
		opts := Options{Warn: func(text string) {
			warned++
			if !strings.Contains(text, "not logged in to token=") {
				t.Errorf("warned: %s", text)
			}
		}}
		infos, err := Backend(opts).List(t.Context(), parse(t, ref))
		if err != nil || len(infos) != 0 || warned != warnings {
			t.Errorf("%s: %v, %v, %d warnings; want %d", ref, infos, err, warned, warnings)
		}
	}
	if n := s.counts()["C_Login"]; n != 0 {
		t.Errorf("%d logins", n)
	}
	_, err := Backend(Options{}).List(t.Context(), parse(t, "pkcs11:token=nope?"+module))
	refused(t, err, signer.ErrKeyNotFound, tok.Label, "other")
}

// A PIN in the reference is used, and is not in what is printed.
func TestListTellsNoPIN(t *testing.T) {
	tok := newToken(t)
	bare, _, _ := strings.Cut(tok.Ref("vendor"), "&pin-source")
	infos, err := Backend(Options{}).List(t.Context(), parse(t, bare+"&pin-value="+tok.PIN+"&max-sessions=2"))
	if err != nil || len(infos) != 1 {
		t.Fatalf("%v, %v", infos, err)
	}
	if ref := infos[0].Ref; strings.Contains(ref, "pin-value") || !strings.HasSuffix(ref, "&max-sessions=2") {
		t.Errorf("reference %q", ref)
	}
	if _, ok := infos[0].Public.(*rsa.PublicKey); !ok {
		t.Errorf("%+v", infos[0])
	}
}
