//go:build cgo && linux

package pkcs11

import (
	"context"
	"crypto"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/signer"
)

// The module hangs while it is connected again: signatures, opens and Close of all its keys return all the same, and
// when it comes back so do they.
func TestHangingRecovery(t *testing.T) {
	for _, function := range []string{"C_Finalize", "C_Initialize", "C_GetSlotList", "C_Login", "C_FindObjects"} {
		t.Run(function, func(t *testing.T) {
			tok, f := faulty(t)
			keys := []signer.Signer{mustOpen(t, tok.Ref("vendor")), mustOpen(t, tok.Ref("vendor"))}
			for _, key := range keys {
				mustSign(t, key)
			}
			f.Script(t, "C_SignInit 1 return 0x30", function+" * hang")
			for n := range 4 {
				ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
				began := time.Now()
				_, err := keys[n%2].SignContext(ctx, digest, crypto.SHA256)
				refused(t, err, context.DeadlineExceeded)
				refused(t, err, signer.ErrUnavailable)
				_, err = Backend(Options{}).Open(ctx, parse(t, tok.Ref("vendor")), signer.OpenOptions{})
				refused(t, err, context.DeadlineExceeded)
				cancel()
				if took := time.Since(began); took > 2*time.Second {
					t.Errorf("both took %v", took)
				}
			}
			f.Script(t)
			for _, key := range keys {
				mustSign(t, key)
			}
			calls(t, f, map[string]int{"C_Initialize": 2, "C_Finalize": 1, "C_Login": 2})
		})
	}
}

// A call that never comes back keeps the module from C_Finalize, and the error says what helps.
func TestRecoveryBehindHangingCall(t *testing.T) {
	tok, f := faulty(t)
	opened := mustOpen(t, tok.Ref("vendor")+"&max-sessions=2")
	opened.(*key).module.wait = 200 * time.Millisecond
	f.Script(t, "C_Sign 1 hang")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := opened.(*key).SignContext(ctx, digest, crypto.SHA256)
	refused(t, err, context.DeadlineExceeded)

	f.Script(t, "C_Sign 1 hang", "C_SignInit * return 0x30")
	_, err = opened.Sign(nil, digest, crypto.SHA256) // no deadline: it waits as long as a recovery does
	refused(t, err, signer.ErrUnavailable, errBusy.Error())
	if fault.Hint(err) != fixFor(errBusy) {
		t.Errorf("%v: hint %q", err, fault.Hint(err))
	}
	calls(t, f, map[string]int{"C_Initialize": 1, "C_Finalize": 0})
	f.Script(t)
	mustSign(t, opened)
}

// A module that somebody else initialized is theirs to initialize anew.
func TestForeignModuleFails(t *testing.T) {
	tok, f := faulty(t)
	lib := load(t, f.Path)
	if err := lib.Initialize(); err != nil {
		t.Fatal(err)
	}
	key, err := Backend(Options{}).Open(t.Context(), parse(t, tok.Ref("vendor")), signer.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	f.Script(t, "C_Sign 1 return 0x30")
	_, err = key.Sign(nil, digest, crypto.SHA256)
	refused(t, err, signer.ErrUnavailable, "CKR_DEVICE_ERROR", "another part of this program")
	mustSign(t, key)
	if err := key.Close(); err != nil {
		t.Error(err)
	}
	calls(t, f, map[string]int{"C_Initialize": 2, "C_Finalize": 0})
	if err := lib.Finalize(); err != nil {
		t.Error(err)
	}
}
