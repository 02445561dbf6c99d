//go:build cgo

package pkcs11

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/pkcs11"

	"hsmsign/fault"
	"hsmsign/secret"
	"hsmsign/signer"
)

// digest is any SHA-256 digest.
var digest = bytes.Repeat([]byte{0xab}, 32)

func TestSharedLogin(t *testing.T) {
	tok := newToken(t)
	s := script(t, tok.Module)
	b := Backend(Options{})
	first, err := b.Open(t.Context(), parse(t, tok.Ref("vendor")), signer.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// A second key needs no PIN: the token is logged in to.
	bare, _, _ := strings.Cut(tok.Ref("vendor"), "&pin-source")
	second, err := b.Open(t.Context(), parse(t, bare), signer.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := second.Sign(nil, digest, crypto.SHA256); err != nil {
		t.Errorf("after the first key was closed: %v", err)
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	want := map[string]int{"C_Initialize": 1, "C_Login": 1, "C_OpenSession": 2, "C_CloseSession": 2, "C_Finalize": 1}
	if diff := cmp.Diff(want, s.counts()); diff != "" {
		t.Errorf("calls: (-want +got)\n%s", diff)
	}
	_, err = b.Open(t.Context(), parse(t, bare), signer.OpenOptions{})
	refused(t, err, signer.ErrAuth) // the login ended with the last key
}

// A module that somebody else in the process initialized and logged in to is used and left as it was.
func TestForeignModule(t *testing.T) {
	tok := newToken(t)
	lib := load(t, tok.Module)
	if err := lib.Initialize(); err != nil {
		t.Fatal(err)
	}
	m := &module{lib: lib}
	there, err := m.findToken(reference{})
	if err != nil {
		t.Fatal(err)
	}
	sh, err := lib.OpenSession(there.slot, pkcs11.CKF_SERIAL_SESSION)
	if err != nil {
		t.Fatal(err)
	}
	if err := lib.Login(sh, pkcs11.CKU_USER, tok.PIN); err != nil {
		t.Fatal(err)
	}
	key, err := Backend(Options{}).Open(t.Context(), parse(t, tok.Ref("vendor")), signer.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := key.Sign(nil, digest, crypto.SHA256); err != nil {
		t.Error(err)
	}
	if err := key.Close(); err != nil {
		t.Error(err)
	}
	if _, _, err := (finder{lib, sh, reference{}}).privateKey(); err != nil {
		t.Errorf("the other user's session after Close: %v", err)
	}
	if err := lib.Finalize(); err != nil {
		t.Error(err)
	}
}

// The session is closed on the module's side: another one is opened, and the caller does not notice.
func TestDeadSession(t *testing.T) {
	tok := newToken(t)
	s := script(t, tok.Module)
	opened := mustOpen(t, tok.Ref("vendor")+"&max-sessions=1")
	var kill atomic.Bool
	s.before = func(sh pkcs11.SessionHandle) {
		if kill.CompareAndSwap(true, false) {
			if err := s.cryptoki.CloseSession(sh); err != nil {
				t.Error(err)
			}
		}
	}
	for range 3 {
		if _, err := opened.Sign(nil, digest, crypto.SHA256); err != nil {
			t.Fatal(err)
		}
		kill.Store(true)
	}
	want := signer.Stats{Open: 1, Idle: 1, Evicted: 2}
	if diff := cmp.Diff(want, stats(opened)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if got := s.counts(); got["C_OpenSession"] != 4 || got["C_Login"] != 1 || got["C_Initialize"] != 1 { // the anchor, and three of the pool
		t.Errorf("calls %v; want 4 sessions, one login", got)
	}
}

// What a return value of C_Sign sets in motion: nothing, a new session, or a new C_Initialize; and what the caller
// is told when that does not help.
func TestReturnValues(t *testing.T) {
	type steps struct{ Signed, Evicted, Initialized, Logins int }
	var (
		nothing = steps{Signed: 1}
		session = steps{Signed: 2, Evicted: 2}
		module  = steps{Signed: 2, Evicted: 2, Initialized: 1, Logins: 1}
	)
	tests := []struct {
		code   pkcs11.Error
		name   string
		family error
		want   steps
	}{
		{pkcs11.CKR_SESSION_HANDLE_INVALID, "CKR_SESSION_HANDLE_INVALID", signer.ErrUnavailable, session},
		{pkcs11.CKR_KEY_HANDLE_INVALID, "CKR_KEY_HANDLE_INVALID", signer.ErrUnavailable, session},
		{pkcs11.CKR_OPERATION_ACTIVE, "CKR_OPERATION_ACTIVE", signer.ErrUnavailable, session},
		{pkcs11.CKR_USER_NOT_LOGGED_IN, "CKR_USER_NOT_LOGGED_IN", signer.ErrAuth, session},
		{0x80000042, "CKR 0x80000042", signer.ErrUnavailable, session},
		{pkcs11.CKR_DEVICE_REMOVED, "CKR_DEVICE_REMOVED", signer.ErrUnavailable, module},
		{pkcs11.CKR_DEVICE_ERROR, "CKR_DEVICE_ERROR", signer.ErrUnavailable, module},
		{pkcs11.CKR_GENERAL_ERROR, "CKR_GENERAL_ERROR", signer.ErrUnavailable, module},
		{pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED, "CKR_CRYPTOKI_NOT_INITIALIZED", signer.ErrUnavailable, module},
		{pkcs11.CKR_DATA_LEN_RANGE, "CKR_DATA_LEN_RANGE", signer.ErrUnsupported, nothing},
		{pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED, "CKR_KEY_FUNCTION_NOT_PERMITTED", signer.ErrBadKey, nothing},
		{pkcs11.CKR_FUNCTION_CANCELED, "CKR_FUNCTION_CANCELED", signer.ErrUnavailable, nothing},
		{pkcs11.CKR_PIN_EXPIRED, "CKR_PIN_EXPIRED", signer.ErrAuth, steps{Signed: 1, Evicted: 1}},
	}
	tok := newToken(t)
	s := script(t, tok.Module)
	opened := mustOpen(t, tok.Ref("vendor")+"&max-sessions=1")
	m := opened.(*key).module
	for _, tt := range tests {
		s.signed = nil
		m.next = time.Time{} // every one is the first of its kind
		if _, err := opened.Sign(nil, digest, crypto.SHA256); err != nil {
			t.Fatal(err)
		}
		before, figures := s.counts(), stats(opened)
		signed := 0
		s.signed = func(pkcs11.SessionHandle, []byte) ([]byte, error) { signed++; return nil, tt.code }
		_, err := opened.Sign(nil, digest, crypto.SHA256)
		refused(t, err, tt.family, "C_Sign gives "+tt.name)
		hinted(t, err)
		after := s.counts()
		got := steps{
			signed, int(stats(opened).Evicted - figures.Evicted),
			after["C_Initialize"] - before["C_Initialize"], after["C_Login"] - before["C_Login"],
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", tt.name, diff)
		}
	}
	s.signed = func(_ pkcs11.SessionHandle, sig []byte) ([]byte, error) { return sig[:255], nil }
	_, err := opened.Sign(nil, digest, crypto.SHA256)
	refused(t, err, signer.ErrBadSignature, "255 bytes where the modulus has 256")
}

// stats are the figures of an open key.
func stats(key signer.Signer) signer.Stats { return key.(signer.Statistics).Stats() }

// hinted: the error says what to do.
func hinted(t *testing.T, err error) {
	t.Helper()
	var told *signer.Error
	if !errors.As(err, &told) || fault.Hint(told) == "" {
		t.Errorf("%v comes without a hint", err)
	}
}

// A module that hangs holds its session, and nothing else: the caller, the next caller and Close all return.
func TestHangingModule(t *testing.T) {
	tok := newToken(t)
	s := script(t, tok.Module)
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		s.before = func(pkcs11.SessionHandle) { <-hang }
		key, err := Backend(Options{}).Open(context.Background(), parse(t, tok.Ref("vendor")+"&max-sessions=1"), signer.OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		began := time.Now()
		_, err = key.SignContext(ctx, digest, crypto.SHA256)
		refused(t, err, context.DeadlineExceeded, "C_Sign has not come back")
		ctx, cancel = context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err = key.SignContext(ctx, digest, crypto.SHA256)
		refused(t, err, context.DeadlineExceeded, "all 1 sessions are busy")
		if took := time.Since(began); took != 2*time.Second {
			t.Errorf("both callers took %v; want the 2s of their contexts", took)
		}

		began = time.Now()
		refused(t, key.Close(), signer.ErrUnavailable, "still works on a call")
		if took := time.Since(began); took != closeWait {
			t.Errorf("close took %v; want %v", took, closeWait)
		}
		_, err = key.Sign(nil, digest, crypto.SHA256)
		refused(t, err, signer.ErrClosed)
		if s.counts()["C_Finalize"] != 0 {
			t.Error("C_Finalize came while a call was under way")
		}
		close(hang)
		if err := key.Close(); err != nil {
			t.Errorf("close after the module came back: %v", err)
		}
		if s.counts()["C_Finalize"] != 1 {
			t.Error("no C_Finalize after the module came back")
		}
	})
}

// A login that hangs does not hold the caller, and what it still opens is given back.
func TestHangingOpen(t *testing.T) {
	tok := newToken(t)
	s := script(t, tok.Module)
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		s.login = func() error { <-hang; return nil }
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err := Backend(Options{}).Open(ctx, parse(t, tok.Ref("vendor")), signer.OpenOptions{})
		refused(t, err, signer.ErrUnavailable)
		refused(t, err, context.DeadlineExceeded)
		close(hang)
		synctest.Wait()
		want := map[string]int{"C_Initialize": 1, "C_Login": 1, "C_OpenSession": 1, "C_CloseSession": 1, "C_Finalize": 1}
		if diff := cmp.Diff(want, s.counts()); diff != "" {
			t.Errorf("calls: (-want +got)\n%s", diff)
		}
	})
}

// A caller that has gone while the PIN was asked for does not want it sent any more.
func TestNoLoginAfterTheEnd(t *testing.T) {
	tok := newToken(t)
	s := script(t, tok.Module)
	bare, _, _ := strings.Cut(tok.Ref("vendor"), "&pin-source")
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		opts := Options{Secrets: secret.Reader{Prompt: func(context.Context, string) ([]byte, error) {
			cancel()
			return []byte(tok.PIN), nil
		}}}
		_, err := Backend(opts).Open(ctx, parse(t, bare), signer.OpenOptions{})
		refused(t, err, context.Canceled)
		synctest.Wait()
		if n := s.counts()["C_Login"]; n != 0 {
			t.Errorf("%d calls of C_Login; want none", n)
		}
		before := s.counts()
		_, err = Backend(Options{}).Open(ctx, parse(t, tok.Ref("vendor")), signer.OpenOptions{})
		refused(t, err, context.Canceled)
		synctest.Wait()
		if diff := cmp.Diff(before, s.counts()); diff != "" {
			t.Errorf("a context that had ended before made calls: (-before +after)\n%s", diff)
		}
	})
}

// A module that cannot open a session, and one that answers nothing.
func TestModuleFails(t *testing.T) {
	tok := newToken(t)
	s := script(t, tok.Module)
	s.open = func() error { return pkcs11.Error(pkcs11.CKR_SESSION_COUNT) }
	_, err := Backend(Options{}).Open(t.Context(), parse(t, tok.Ref("vendor")), signer.OpenOptions{})
	refused(t, err, signer.ErrUnavailable, "C_OpenSession", "CKR_SESSION_COUNT")
	s.open = nil
	s.login = func() error { return errors.New("no return value") }
	_, err = Backend(Options{}).Open(t.Context(), parse(t, tok.Ref("vendor")), signer.OpenOptions{})
	refused(t, err, signer.ErrUnavailable, "C_Login", "no return value")
	if calls := s.counts(); calls["C_Initialize"] != 2 || calls["C_Finalize"] != 2 {
		t.Errorf("calls %v; want each open to finalize what it initialized", calls)
	}
}
