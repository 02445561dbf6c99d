//go:build cgo

package pkcs11

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/pkcs11"

	"hsmsign/secret"
	"hsmsign/signer"
	"hsmsign/signer/signertest"
	softhsmtest "hsmsign/softhsm-test"
)

// vendorKey is the test key of the project: PKCS#8 PEM, and parsed.
func vendorKey(tb testing.TB) ([]byte, *rsa.PrivateKey) {
	tb.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "testdata", "golden", "vendor.key"))
	if err != nil {
		tb.Fatal(err)
	}
	block, _ := pem.Decode(text)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		tb.Fatal(err)
	}
	return text, key.(*rsa.PrivateKey)
}

// newToken is a token that holds the test key as "vendor", id 01.
func newToken(tb testing.TB, opts ...softhsmtest.Option) *softhsmtest.Token {
	tb.Helper()
	tok := softhsmtest.New(tb, opts...)
	text, _ := vendorKey(tb)
	tok.Import(tb, text, "vendor", []byte{1})
	return tok
}

// mustOpen opens a reference that must open, until the test ends.
func mustOpen(tb testing.TB, ref string) signer.Signer {
	tb.Helper()
	key, err := Backend(Options{}).Open(context.Background(), parse(tb, ref), signer.OpenOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := key.Close(); err != nil {
			tb.Error(err)
		}
	})
	return key
}

// refused holds an error to its family, its form and its words.
func refused(t *testing.T, err, family error, says ...string) {
	t.Helper()
	if !errors.Is(err, family) {
		t.Errorf("error %v; it must wrap %q", err, family)
		return
	}
	if _, ok := err.(*signer.Error); !ok { //nolint:errorlint // the outermost error is what is checked
		t.Errorf("error %v is a %T; want a *signer.Error", err, err)
	}
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("error %q does not say %q", err, s)
		}
	}
}

func TestConformance(t *testing.T) {
	tok := newToken(t)
	text, key := vendorKey(t)
	tok.Import(t, text, "twin", []byte{2})
	tok.Import(t, text, "twin", []byte{3})
	signertest.Run(t, signertest.Fixture{
		Backend:   Backend(Options{}),
		Ref:       tok.Ref("vendor"),
		Public:    &key.PublicKey,
		Missing:   tok.Ref("no-such-key"),
		Ambiguous: tok.Ref("twin"),
		Matches:   []string{`object="twin" id=%02`, `object="twin" id=%03`},
		Secrets:   []string{tok.PIN},
	})
}

// PKCS#1 v1.5 is deterministic, so the token must give the bytes that crypto/rsa gives.
func TestSignsAsCryptoRSA(t *testing.T) {
	tok := newToken(t)
	_, private := vendorKey(t)
	key := mustOpen(t, tok.Ref("vendor"))
	for _, h := range []crypto.Hash{crypto.SHA256, crypto.SHA1} {
		hash := h.New()
		hash.Write([]byte("certificate request"))
		digest := hash.Sum(nil)
		want, err := rsa.SignPKCS1v15(nil, private, h, digest)
		if err != nil {
			t.Fatal(err)
		}
		got, err := key.Sign(nil, digest, h)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%v: %x, %v; want %x", h, got, err, want)
		}
	}
}

func TestFindToken(t *testing.T) {
	tok := newToken(t, softhsmtest.WithLabel("one two"))
	softhsmtest.New(t, softhsmtest.WithDir(tok), softhsmtest.WithLabel("other"))
	query := tok.Ref("")[strings.IndexByte(tok.Ref(""), '?'):]

	// What the module says about the token is what a reference may ask for.
	lib := load(t, tok.Module)
	if err := lib.Initialize(); err != nil {
		t.Fatal(err)
	}
	m := &module{lib: lib}
	there, err := m.findToken(reference{path: uri{{"token", "one two"}}})
	if err != nil {
		t.Fatal(err)
	}
	slot, err := lib.GetSlotInfo(there.slot)
	if err != nil {
		t.Fatal(err)
	}
	info, err := lib.GetInfo()
	if err != nil {
		t.Fatal(err)
	}
	if err := lib.Finalize(); err != nil {
		t.Fatal(err)
	}
	serial := "serial=" + there.id.serial
	escape := url.PathEscape

	for _, path := range []string{
		"token=one%20two", serial,
		serial + ";model=" + escape(there.id.model) + ";manufacturer=" + escape(there.id.manufacturer),
		fmt.Sprintf("slot-id=%d;object=vendor", there.slot),
		"slot-description=" + escape(slot.SlotDescription) + ";slot-manufacturer=" + escape(slot.ManufacturerID),
		fmt.Sprintf("%s;library-manufacturer=%s;library-description=%s;library-version=%d.%d", serial,
			escape(info.ManufacturerID), escape(info.LibraryDescription), info.LibraryVersion.Major, info.LibraryVersion.Minor),
	} {
		mustOpen(t, "pkcs11:"+path+query)
	}

	both := []string{`token="one two" serial="` + there.id.serial + `"`, `token="other"`}
	bad := []struct {
		path   string
		family error
		says   []string
	}{
		{"object=vendor", signer.ErrAmbiguousKey, append(both, "2 tokens match")},
		{"model=" + escape(there.id.model), signer.ErrAmbiguousKey, both},
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
	}
	for _, tt := range bad {
		_, err := Backend(Options{}).Open(t.Context(), parse(t, "pkcs11:"+tt.path+query), signer.OpenOptions{})
		refused(t, err, tt.family, tt.says...)
	}
}

func TestPINSources(t *testing.T) {
	tok := newToken(t)
	bare, _, _ := strings.Cut(tok.Ref("vendor"), "&pin-source")
	env := func(values map[string]string) secret.Reader {
		return secret.Reader{Getenv: func(name string) string { return values[name] }}
	}
	prompt := secret.Reader{Prompt: func(_ context.Context, label string) ([]byte, error) {
		if label != `PIN of token "`+tok.Label+`"` {
			return nil, fmt.Errorf("asked for %q", label)
		}
		return []byte(tok.PIN), nil
	}}
	open := filepath.Join(t.TempDir(), "pin")
	if err := os.WriteFile(open, []byte(tok.PIN+"\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o644); err != nil { // #nosec G302 -- the mode is what is tested
		t.Fatal(err)
	}

	tests := []struct {
		name, ref string
		secrets   secret.Reader
		refused   string // empty: it opens
		warns     string // empty: it does not
	}{
		{"file", tok.Ref("vendor"), secret.Reader{}, "", ""},
		{"variable by default", bare, env(map[string]string{"HSMSIGN_PIN": tok.PIN}), "", ""},
		{"variable by name", bare + "&pin-source=env:MY_PIN", env(map[string]string{"MY_PIN": tok.PIN}), "", ""},
		{"prompt by default", bare, prompt, "", ""},
		{"prompt by name", bare + "&pin-source=prompt", prompt, "", ""},
		{"value", bare + "&pin-value=" + tok.PIN, secret.Reader{}, "", "pin-value"},
		{"nothing", bare, secret.Reader{}, "HSMSIGN_PIN", ""},
		{"no such file", bare + "&pin-source=file:" + open + "2", secret.Reader{}, "no such file", ""},
		{"file open to others", bare + "&pin-source=file:" + open, secret.Reader{}, "group or others can read it", ""},
		{"and allowed", bare + "&insecure-mode=allow&pin-source=file:" + open, secret.Reader{}, "", "insecure-mode"},
		{"allowed without need", tok.Ref("vendor") + "&insecure-mode=allow", secret.Reader{}, "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var warned []string
			opts := Options{Secrets: tt.secrets, Warn: func(text string) { warned = append(warned, text) }}
			key, err := Backend(opts).Open(t.Context(), parse(t, tt.ref), signer.OpenOptions{})
			if tt.refused != "" {
				refused(t, err, signer.ErrAuth, tt.refused)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := key.Close(); err != nil {
				t.Error(err)
			}
			switch text := strings.Join(warned, "\n"); {
			case len(warned) > 1, (tt.warns == "") != (len(warned) == 0), !strings.Contains(text, tt.warns):
				t.Errorf("warnings %q; want one about %q", warned, tt.warns)
			case strings.Contains(text, tok.PIN):
				t.Errorf("a warning tells the PIN")
			}
		})
	}
}

// SoftHSM2 never locks, so the flags are set on the way.
func TestTokenAboutToLock(t *testing.T) {
	tok := newToken(t)
	s := script(t, tok.Module)
	for flag, says := range map[uint]string{
		pkcs11.CKF_USER_PIN_FINAL_TRY: "CKF_USER_PIN_FINAL_TRY",
		pkcs11.CKF_USER_PIN_LOCKED:    "CKF_USER_PIN_LOCKED",
	} {
		s.flags = flag
		_, err := Backend(Options{}).Open(t.Context(), parse(t, tok.Ref("vendor")), signer.OpenOptions{})
		refused(t, err, signer.ErrAuth, says, tok.Label)
		if calls := s.counts(); calls["C_Login"] != 0 {
			t.Errorf("%s: calls %v; want no C_Login", says, calls)
		}
	}
	s.flags = 0
	mustOpen(t, tok.Ref("vendor")) // no PIN was refused, so none is latched
}

func TestWrongPIN(t *testing.T) {
	tok := newToken(t)
	second := softhsmtest.New(t, softhsmtest.WithDir(tok), softhsmtest.WithLabel("second"))
	text, _ := vendorKey(t)
	second.Import(t, text, "vendor", []byte{1})
	s := script(t, tok.Module)
	const wrong = "9173551"
	bare, _, _ := strings.Cut(tok.Ref("vendor"), "&pin-source")
	_, err := Backend(Options{}).Open(t.Context(), parse(t, bare+"&pin-value="+wrong), signer.OpenOptions{})
	refused(t, err, signer.ErrAuth, "CKR_PIN_INCORRECT")
	if strings.Contains(err.Error(), wrong) {
		t.Errorf("the error tells the PIN: %v", err)
	}
	for _, ref := range []string{bare + "&pin-value=" + wrong, tok.Ref("vendor")} {
		_, err := Backend(Options{}).Open(t.Context(), parse(t, ref), signer.OpenOptions{})
		refused(t, err, signer.ErrAuth, "CKR_PIN_INCORRECT", "no PIN was sent again")
	}
	want := map[string]int{"C_Login": 1, "C_Initialize": 3, "C_Finalize": 3, "C_OpenSession": 1, "C_CloseSession": 1}
	if diff := cmp.Diff(want, s.counts()); diff != "" {
		t.Errorf("calls: (-want +got)\n%s", diff)
	}
	mustOpen(t, second.Ref("vendor"))
}
