package pfx

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"hsmsign/internal/testkit"
	"hsmsign/testpki"
)

var now = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

var fixtures = sync.OnceValue(func() []testpki.Identity { return testkit.Must(testkit.Authority(now).Identities(now)) })

// fixture returns the push certificate of Profile Manager.
func fixture() testpki.Identity {
	return fixtures()[slices.IndexFunc(fixtures(), func(i testpki.Identity) bool { return i.Kind == "push-profile-manager" })]
}

// export returns a file of OpenSSL with the certificates in this order, the key, and the passphrase "p".
func export(t testing.TB, certs []*x509.Certificate, args ...string) []byte {
	t.Helper()
	dir := t.TempDir()
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: testkit.Value(x509.MarshalPKCS8PrivateKey(fixture().Key))(t)})
	for _, cert := range certs {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	testkit.OK(t, os.WriteFile(filepath.Join(dir, "all.pem"), text, 0o600))
	return testkit.OpenSSL(t, dir, nil, append([]string{"pkcs12", "-export", "-in", "all.pem", "-passout", "pass:p"}, args...)...)
}

// Old and new encryptions, as OpenSSL and testpki write them, with the chain in any order.
func TestDecode(t *testing.T) {
	i := fixture()
	all := append([]*x509.Certificate{i.Certificate}, i.Chain...)
	reversed := slices.Clone(all)
	slices.Reverse(reversed)
	for name, tt := range map[string]struct {
		file       []byte
		passphrase string
	}{
		"modern":      {export(t, all), "p"},
		"legacy":      {export(t, all, "-legacy"), "p"},
		"triple DES":  {export(t, all, "-certpbe", "PBE-SHA1-3DES", "-keypbe", "PBE-SHA1-3DES", "-macalg", "sha1"), "p"},
		"reversed":    {testkit.Value(testpki.Identity{Key: i.Key, Certificate: reversed[0], Chain: reversed[1:]}.PKCS12(true))(t), testpki.Passphrase},
		"testpki":     {testkit.Value(i.PKCS12(true))(t), testpki.Passphrase},
		"testpki new": {testkit.Value(i.PKCS12(false))(t), testpki.Passphrase},
	} {
		f, err := Decode(context.Background(), tt.file, []byte(tt.passphrase))
		if err != nil || !f.Certificate.Equal(i.Certificate) || len(f.Others) != 2 || !f.Certificates()[0].Equal(i.Certificate) || len(f.Certificates()) != 3 {
			t.Errorf("%s: %v, %+v", name, err, f)
			continue
		}
		if !i.Certificate.PublicKey.(*rsa.PublicKey).Equal(f.Key.Public()) {
			t.Errorf("%s: another key", name)
		}
		if _, err := Decode(context.Background(), tt.file, []byte("wrong")); !errors.Is(err, ErrPassphrase) {
			t.Errorf("%s: a wrong passphrase: %v", name, err)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	i := fixture()
	good := testkit.Value(i.PKCS12(true))(t)
	type params struct {
		Salt       []byte
		Iterations int
	}
	type derivation struct {
		OID    asn1.ObjectIdentifier
		Params params
	}
	type mac struct {
		Digest     []asn1.ObjectIdentifier
		Salt       []byte
		Iterations int
	}
	pbkdf2 := asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 12}
	for n, refused := range map[int]bool{MaxIterations: false, MaxIterations + 1: true} {
		for _, part := range []any{derivation{pbkdf2, params{make([]byte, 8), n}}, mac{[]asn1.ObjectIdentifier{pbkdf2}, make([]byte, 8), n}} {
			der := testkit.Value(asn1.Marshal(testkit.Value(asn1.Marshal(part))(t)))(t) // in an OCTET STRING
			if err := Check(der); (err != nil) != refused {
				t.Errorf("%T with %d iterations: %v", part, n, err)
			}
		}
	}
	var many []*x509.Certificate
	for range maxCertificates {
		many = append(many, i.Chain[0])
	}
	another := testpki.Identity{Key: i.Key, Certificate: i.Chain[0], Chain: i.Chain[1:]}
	if f, err := Decode(context.Background(), testkit.Value(another.PKCS12(true))(t), []byte(testpki.Passphrase)); err != nil || f.Certificate != nil || len(f.Certificates()) != 2 {
		t.Errorf("a key without its certificate: %+v, %v", f, err)
	}
	for name, tt := range map[string]struct {
		file []byte
		text string
	}{
		"empty": {nil, "P12"}, "text": {[]byte("hello"), "P12"}, "cut": {good[:len(good)-10], "P12"},
		"large":             {make([]byte, MaxSize+1), "larger"},
		"many certificates": {testkit.Value(testpki.Identity{Key: i.Key, Certificate: i.Certificate, Chain: many}.PKCS12(true))(t), "certificates"},
	} {
		if _, err := Decode(context.Background(), tt.file, []byte(testpki.Passphrase)); err == nil || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Decode(ctx, export(t, []*x509.Certificate{i.Certificate}, "-iter", "300000"), []byte("p")); !errors.Is(err, context.Canceled) {
		t.Errorf("an interrupted derivation: %v", err)
	}
}

// FuzzDecode: no file panics, or takes longer than its limits allow.
func FuzzDecode(f *testing.F) {
	names := testkit.Value(filepath.Glob(filepath.Join("..", "..", "signer", "file", "testdata", "*.p12")))(f)
	if len(names) < 4 {
		f.Fatalf("%d seeds", len(names))
	}
	for _, name := range names {
		f.Add(testkit.Value(os.ReadFile(name))(f), []byte("secret"))
	}
	f.Fuzz(func(t *testing.T, data, passphrase []byte) {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if content, err := Decode(ctx, data, passphrase); (content == nil) == (err == nil) {
			t.Errorf("%v, %v", content, err)
		}
	})
}
