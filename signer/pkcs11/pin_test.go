//go:build cgo && linux

package pkcs11

import (
	"bytes"
	"crypto"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hsmsign/signer"
)

// A PIN is sent once: with a token that counts, and over any number of opens.
func TestPINCounter(t *testing.T) {
	tok, f := faulty(t)
	bare, _, _ := strings.Cut(tok.Ref("vendor"), "&pin-source")
	f.Script(t, "C_Login * pins 3")
	for range 5 {
		_, err := Backend(Options{}).Open(t.Context(), parse(t, bare+"&pin-value=9173551"), signer.OpenOptions{})
		refused(t, err, signer.ErrAuth, "CKR_PIN_INCORRECT")
		hinted(t, err)
	}
	calls(t, f, map[string]int{"C_Login": 1})

	// A program that starts anew, with the wrong PIN again, leaves the last try alone.
	for range 3 {
		f2 := *f
		f2.Path = filepath.Join(t.TempDir(), "again.so")
		if err := os.Link(f.Path, f2.Path); err != nil {
			t.Fatal(err)
		}
		bare := strings.Replace(bare, f.Path, f2.Path, 1)
		_, err := Backend(Options{}).Open(t.Context(), parse(t, bare+"&pin-value=9173551"), signer.OpenOptions{})
		refused(t, err, signer.ErrAuth)
	}
	calls(t, f, map[string]int{"C_Login": 2})
}

// The PIN that worked is refused after the module was initialized anew: it is not sent a second time.
func TestPINRefusedAfterRecovery(t *testing.T) {
	tok, f := faulty(t)
	opened := mustOpen(t, tok.Ref("vendor"))
	opened.(*key).module.pause = 0
	mustSign(t, opened)
	f.Script(t, "C_Sign 1 return 0x30", "C_Login * return 0xA0")
	for range 3 {
		_, err := signer.Sign(t.Context(), opened, []byte("x"), crypto.SHA256)
		refused(t, err, signer.ErrAuth, "CKR_PIN_INCORRECT")
		hinted(t, err)
	}
	calls(t, f, map[string]int{"C_Login": 2})
	f.Script(t)
	_, err := Backend(Options{}).Open(t.Context(), parse(t, tok.Ref("vendor")), signer.OpenOptions{})
	refused(t, err, signer.ErrAuth, "no PIN was sent again")
	calls(t, f, map[string]int{"C_Login": 2})
}

// The PIN is in memory while a key of the token is open, and not after.
func TestPINIsForgotten(t *testing.T) {
	tok := newToken(t)
	opened, err := Backend(Options{}).Open(t.Context(), parse(t, tok.Ref("vendor")), signer.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	kept := opened.(*key).token.pin
	if string(kept) != tok.PIN {
		t.Fatalf("kept %q", kept)
	}
	if err := opened.Close(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(kept, make([]byte, len(tok.PIN))) || opened.(*key).token.pin != nil {
		t.Error("the PIN is still there after Close")
	}
}
