//go:build cgo && linux

package pkcs11

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/pkcs11"

	"hsmsign/internal/signerkit"
	"hsmsign/internal/testkit"
	"hsmsign/secret"
	"hsmsign/signer"
	softhsmtest "hsmsign/softhsm-test"
)

func TestList(t *testing.T) {
	tok := newToken(t)
	text, private := testkit.File(t, "golden/vendor.key"), testkit.GoldenKey(t)
	tok.Import(t, text, "twin", []byte{2})
	tok.Import(t, text, "twin", []byte{3})
	tool(t, tok, "--keypairgen", "--key-type", "EC:prime256v1", "--label", "curve", "--id", "04")
	for _, tt := range []struct {
		ref  string
		want []string
	}{
		{tok.Ref(""), []string{"vendor 01 RSA 2048", "twin 02 RSA 2048", "twin 03 RSA 2048", "curve 04 EC 0"}}, // no row for their public keys
		{tok.Ref("twin"), []string{"twin 02 RSA 2048", "twin 03 RSA 2048"}},
		{with(tok, "object=twin;id=%03"), []string{"twin 03 RSA 2048"}},
		{tok.Ref("none"), nil},
	} {
		infos := testkit.Value(Backend(Options{Warn: func(text string) { t.Errorf("warned: %s", text) }}).List(t.Context(), signerkit.Ref(t, tt.ref)))(t)
		got, want := map[string]bool{}, map[string]bool{}
		for _, k := range infos {
			got[fmt.Sprintf("%s %s %s %d", k.Label, k.ID, k.Algorithm, k.Bits)] = true
			if k.Algorithm == "RSA" && (!private.PublicKey.Equal(mustOpen(t, k.Ref).pub) || !private.PublicKey.Equal(k.Public)) {
				t.Errorf("%s: another key", k.Ref)
			}
			if !strings.Contains(k.Store, tok.Label) || len(k.Properties) != len(protections()) {
				t.Errorf("%+v", k)
			}
		}
		for _, w := range tt.want {
			want[w] = true
		}
		if diff := cmp.Diff(want, got); diff != "" || len(infos) != len(tt.want) {
			t.Errorf("%s: -want +got\n%s", tt.ref, diff)
		}
	}
}

// The token says that an imported key was outside it, and a reference that is listed has no PIN.
func TestListProperties(t *testing.T) {
	tok := newToken(t)
	infos, err := Backend(Options{}).List(t.Context(), signerkit.Ref(t, bare(tok.Ref("vendor"))+"&pin-value="+tok.PIN+"&max-sessions=2"))
	if err != nil || len(infos) != 1 {
		t.Fatalf("%v, %v", infos, err)
	}
	if ref := infos[0].Ref; strings.Contains(ref, "pin-value") || !strings.HasSuffix(ref, "&max-sessions=2") {
		t.Errorf("reference %q", ref)
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

// One PIN is never tried on several tokens, and no PIN is asked for: the token shows its public keys and certificates.
func TestListWithoutLogin(t *testing.T) {
	tok, f := faulty(t)
	softhsmtest.New(t, softhsmtest.WithDir(tok), softhsmtest.WithLabel("other"))
	vendor, alone := goldenCert(t, "chain.pem"), filepath.Join(t.TempDir(), "root.der")
	testkit.OK(t, Backend(Options{}).Certificates.Import(t.Context(), signerkit.Ref(t, tok.Ref("vendor")), vendor))
	testkit.OK(t, os.WriteFile(alone, goldenCert(t, "root.pem").Raw, 0o600))
	tool(t, tok, "--write-object", alone, "--type", "cert", "--label", "alone", "--id", "04")
	tool(t, tok, "--keypairgen", "--key-type", "EC:prime256v1", "--label", "curve", "--id", "05")
	logins := f.Calls(t)["C_Login"]
	_, query, _ := strings.Cut(tok.Ref(""), "?")
	module := bare(query)
	for ref, warnings := range map[string]int{
		"pkcs11:?" + query:                         2, // with a PIN
		"pkcs11:?" + module:                        2,
		"pkcs11:token=" + tok.Label + "?" + module: 1,
	} {
		warned := 0
		opts := Options{Secrets: secret.Reader{Prompt: func(context.Context, string) ([]byte, error) {
			t.Errorf("%s: asked for the PIN", ref)
			return nil, io.EOF
		}}, Warn: func(text string) {
			warned++
			if !strings.Contains(text, "not logged in to token=") {
				t.Errorf("warned: %s", text)
			}
		}}
		infos, err := Backend(opts).List(t.Context(), signerkit.Ref(t, ref))
		var got []string
		for _, k := range infos {
			got = append(got, fmt.Sprintf("%s %s %s %s %d %v", k.Type, k.Label, k.ID, k.Algorithm, k.Bits, vendor.Equal(k.Cert)))
			if len(k.Properties) > 0 {
				t.Errorf("%+v", k)
			}
		}
		slices.Sort(got)
		if diff := cmp.Diff([]string{"cert alone 04 RSA 2048 false", "public curve 05 EC 0 false", "public vendor 01 RSA 2048 true"}, got); diff != "" || err != nil || warned != warnings {
			t.Errorf("%s: %v, %d warnings; want %d, -want +got\n%s", ref, err, warned, warnings, diff)
		}
	}
	calls(t, f, map[string]int{"C_Login": logins})
	for _, opts := range []Options{{}, workerOptions()} { // the PIN of an open key is known
		open := testkit.Value(open(t, opts, tok.Ref("vendor")))(t)
		if infos, err := Backend(opts).List(t.Context(), signerkit.Ref(t, bare(tok.Ref("vendor")))); err != nil || len(infos) != 1 || infos[0].Type != "" {
			t.Errorf("with an open key: %v, %v", infos, err)
		}
		closeKey(t, open)
	}
	_, err := Backend(Options{}).List(t.Context(), signerkit.Ref(t, "pkcs11:token=nope?"+module))
	signerkit.Refused(t, err, signer.ErrKeyNotFound, tok.Label, "other")
}

// goldenCert returns the first certificate of a golden file.
func goldenCert(t *testing.T, name string) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(testkit.File(t, "golden/"+name))
	cert := testkit.Value(x509.ParseCertificate(block.Bytes))(t)
	return cert
}

func TestCertificates(t *testing.T) {
	tok, f := faulty(t)
	vendor := goldenCert(t, "chain.pem")
	store := Backend(Options{}).Certificates
	ref := signerkit.Ref(t, tok.Ref("vendor"))
	_, err := store.Load(t.Context(), ref)
	signerkit.Refused(t, err, signer.ErrKeyNotFound, "no certificate", tok.Label)

	signerkit.Refused(t, store.Import(t.Context(), ref, goldenCert(t, "root.pem")), signer.ErrBadKey, "belongs to another key")
	signerkit.Refused(t, store.Import(t.Context(), signerkit.Ref(t, tok.Ref("none")), vendor), signer.ErrKeyNotFound, `"vendor"`)
	if out := tool(t, tok, "-O", "--type", "cert"); strings.Contains(out, "Certificate Object") {
		t.Fatalf("a refused certificate was stored:\n%s", out)
	}
	for range 2 {
		testkit.OK(t, store.Import(t.Context(), ref, vendor))
	}
	out := tool(t, tok, "-O", "--type", "cert")
	if strings.Count(out, "Certificate Object") != 1 || !strings.Contains(out, "label:      vendor") || !strings.Contains(out, "ID:         01") ||
		!strings.Contains(out, vendor.Subject.CommonName) {
		t.Errorf("pkcs11-tool sees:\n%s", out)
	}
	file := filepath.Join(t.TempDir(), "out.der")
	tool(t, tok, "--read-object", "--type", "cert", "--id", "01", "--output-file", file)
	if der, err := os.ReadFile(file); err != nil || !bytes.Equal(der, vendor.Raw) {
		t.Errorf("pkcs11-tool reads another certificate: %v", err)
	}
	open, logins := bare(tok.Ref("vendor")), f.Calls(t)["C_Login"]
	for _, named := range []string{
		open, // no PIN is needed
		strings.Replace(open, "?", ";type=cert?", 1), strings.Replace(open, "object=vendor", "id=%01", 1), strings.Replace(open, ";object=vendor", "", 1),
	} {
		certs, err := store.Load(t.Context(), signerkit.Ref(t, named))
		if err != nil || len(certs) != 1 || !certs[0].Equal(vendor) {
			t.Errorf("%s: %v, %v", named, certs, err)
		}
	}
	calls(t, f, map[string]int{"C_Login": logins})
	infos, err := Backend(Options{}).List(t.Context(), ref)
	if err != nil || len(infos) != 1 || !vendor.Equal(infos[0].Cert) {
		t.Errorf("%v, %v; want the certificate with the key", infos, err)
	}
	// A damaged certificate object is an error, and does not hide the key.
	for value, says := range map[string]string{"0102": "cannot be read", fmt.Sprintf("*%d", maxCertificate+1): "65537 bytes"} {
		f.Script(t, lie(pkcs11.CKA_VALUE, value))
		_, err := store.Load(t.Context(), ref)
		signerkit.Refused(t, err, signer.ErrBadKey, says)
		infos, err := Backend(Options{}).List(t.Context(), ref)
		if err != nil || len(infos) != 1 || infos[0].Cert != nil {
			t.Errorf("%v, %v; want the key", infos, err)
		}
	}
}

// Every slot is listed without a login, with the state of its token; a broken one does not hide the others.
func TestTokens(t *testing.T) {
	tok, f := faulty(t)
	for script, want := range map[string]string{
		"":                               "initialized, login required, PIN set",
		"C_GetTokenInfo * flags 0x70102": "initialized, login required, PIN set, wrong PIN sent, last PIN try, PIN locked, PIN pad, write-protected",
		"C_GetTokenInfo * info 78 0000":  "initialized, login required, PIN set", // the padding of tpm2-pkcs11
		"C_GetTokenInfo 1 return 0xE0":   "no token",
		"C_GetTokenInfo 1 return 0xE1":   "backend unavailable: C_GetTokenInfo returns CKR_TOKEN_NOT_RECOGNIZED",
		"C_GetSlotList * return 0x30":    "",
	} {
		f.Script(t, script)
		tokens, err := Backend(Options{}).Tokens(t.Context(), signerkit.Ref(t, strings.Replace(bare(tok.Ref("")), tok.Label, "nope", 1)))
		if want == "" {
			signerkit.Refused(t, err, signer.ErrUnavailable, "CKR_DEVICE_ERROR")
			continue
		}
		if err != nil || len(tokens) != 2 { // SoftHSM2 has always one more, which is not initialized
			t.Fatalf("%s: %+v, %v", script, tokens, err)
		}
		got := tokens[0]
		if state := strings.Join(got.Flags, ", ") + got.Error; state != want || (got.Ref == "") != (got.Label != tok.Label) {
			t.Errorf("%s: %q, %+v; want %q", script, state, got, want)
		}
		if got.Error == "" && want != "no token" && got.Model != "SoftHSM v2" {
			t.Errorf("%s: model %q", script, got.Model)
		}
		if second := tokens[1]; second.Ref != "" || !slices.Contains(second.Flags, "not initialized") {
			t.Errorf("%s: %+v; want a token that is not initialized", script, second)
		}
	}
	calls(t, f, map[string]int{"C_Login": 0})
}
