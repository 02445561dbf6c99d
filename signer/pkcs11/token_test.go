//go:build cgo

package pkcs11

import (
	"crypto/rsa"
	"os"
	"testing"

	"hsmsign/secret"
	"hsmsign/signer"
	"hsmsign/signer/signertest"
)

// tokenVariable holds a full reference to an RSA key of any real token: HSMSIGN_TEST_PKCS11='pkcs11:token=...' go
// test -run TestAnyToken ./signer/pkcs11. Nothing is written to the token; some hundred signatures are made.
const tokenVariable = "HSMSIGN_TEST_PKCS11" // #nosec G101 -- the name of a variable

func TestAnyToken(t *testing.T) {
	text := os.Getenv(tokenVariable)
	if text == "" {
		t.Skipf("%s names no key of a token", tokenVariable)
	}
	backend := Backend(Options{Secrets: secret.Reader{Getenv: os.Getenv}, Warn: func(text string) { t.Log(text) }})
	key, err := backend.Open(t.Context(), parse(t, text), signer.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	public := key.Public().(*rsa.PublicKey)
	t.Logf("RSA-%d, %+v", public.N.BitLen(), stats(key))
	if err := key.Close(); err != nil {
		t.Fatal(err)
	}
	missing := parse(t, text)
	path, err := parseURI(missing.Path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range path {
		if path[i].name == "object" || path[i].name == "id" {
			path[i].value = "no such key"
		}
	}
	if _, named := path.get("object"); !named {
		path = append(path, pathAttr{"object", "no such key"})
	}
	missing.Path = path.String()
	signertest.Run(t, signertest.Fixture{Backend: backend, Ref: text, Public: public, Missing: missing.String()})
}
