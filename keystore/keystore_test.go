package keystore

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
	"hsmsign/signer"
)

func TestParse(t *testing.T) {
	store := New(Options{})
	for _, scheme := range Schemes() {
		key, err := store.Parse(strings.ToUpper(scheme) + ":x?y=z")
		if err != nil || key.Ref.Scheme != scheme {
			t.Errorf("%s: %v, %v", scheme, key, err)
		}
	}
	for reference, want := range map[string]string{
		"other:x": `unknown scheme "other"`, "vendor.key": "no scheme", "": "no scheme", "file:": `nothing follows "file:"`,
	} {
		if _, err := store.Parse(reference); !errors.Is(err, signer.ErrReference) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", reference, err, want)
		}
	}
}

// A build that leaves a scheme out says so.
func TestSchemesOfThisBuild(t *testing.T) {
	for _, scheme := range cloudSchemes {
		_, err := New(Options{}).Parse(scheme + ":///alias/x?region=eu-west-1")
		if built := slices.Contains(Schemes(), scheme); built != (err == nil) || !built && !errors.Is(err, signer.ErrUnsupported) {
			t.Errorf("%s: built %v, %v", scheme, built, err)
		}
	}
}

func TestIsReference(t *testing.T) {
	store := New(Options{})
	for text, want := range map[string]bool{
		"push.key": false, "./a:b": false, "C:/push.key": false, "file:push.key": true, "PKCS11:token=a": true, "pkcs11:?x": true, "vault:x": true,
	} {
		if got := store.IsReference(text); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}

func TestLoadCertificates(t *testing.T) {
	file := filepath.Join(t.TempDir(), "chain.pem")
	if err := os.WriteFile(file, testkit.File(t, "golden/chain.pem"), 0o600); err != nil {
		t.Fatal(err)
	}
	store := New(Options{})
	certs, err := store.LoadCertificates(t.Context(), file, file)
	if err != nil || len(certs) != 6 || !certs[0].Equal(certs[3]) {
		t.Errorf("%d certificates, %v", len(certs), err)
	}
	_, err = store.LoadCertificates(t.Context(), file, file+".missing")
	if fault.KindOf(err) != fault.Vendor || !errors.Is(err, os.ErrNotExist) || fault.Hint(err) == "" {
		t.Errorf("a missing file: %v", err)
	}
	if _, err = store.LoadCertificates(t.Context(), os.Args[0]); testkit.FindingID(err) == "" || !strings.Contains(err.Error(), os.Args[0]) {
		t.Errorf("another file: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := store.LoadCertificates(ended, "pkcs11:object=a?module-path=/x.so"); err == nil {
		t.Error("a reference of a certificate in a token is no file")
	}
}

func TestRedact(t *testing.T) {
	for name, want := range map[string]string{"vendor.pem": "vendor.pem", "pkcs11:object=a?pin-value=1234": "pkcs11:object=a?pin-value=REDACTED",
		"PKCS11:a?x=y;pin-value=1234": "PKCS11:(unreadable)", "a:b.pem": "a:b.pem", "awskms:///k?x": "awskms:(unreadable)"} {
		if got := Redact(name); got != want {
			t.Errorf("%q: %q", name, got)
		}
	}
}

func TestDescribe(t *testing.T) {
	file := filepath.Join(t.TempDir(), "vendor.key")
	if err := os.WriteFile(file, testkit.File(t, "golden/vendor.key"), 0o600); err != nil {
		t.Fatal(err)
	}
	key, err := New(Options{}).Parse("file:" + file)
	if err != nil {
		t.Fatal(err)
	}
	opened, err := key.Open(t.Context(), signer.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if info, err := key.Describe(t.Context(), opened); err != nil || info.Bits != 2048 || info.Ref != key.String() {
		t.Errorf("%+v, %v", info, err)
	}
	if _, err := key.Describe(t.Context(), testkit.NewSigner(testkit.Key("other"))); !errors.Is(err, signer.ErrKeyNotFound) {
		t.Errorf("another key: %v", err)
	}
	key.backend.List = func(context.Context, signer.Ref) ([]signer.KeyInfo, error) {
		return []signer.KeyInfo{{Type: signer.TypePublic, Public: opened.Public()}}, nil
	}
	if info, err := key.Describe(t.Context(), opened); !errors.Is(err, signer.ErrKeyNotFound) {
		t.Errorf("a public key is no private key: %+v, %v", info, err)
	}
	if _, err := key.Tokens(t.Context()); fault.KindOf(err) != fault.Usage {
		t.Errorf("tokens of a file: %v", err)
	}
	if err := key.ImportCertificate(t.Context(), nil); fault.KindOf(err) != fault.Usage {
		t.Errorf("a certificate in a file: %v", err)
	}
	if key.InFlight(7) != 7 {
		t.Error("a file limits what is in flight")
	}
}
