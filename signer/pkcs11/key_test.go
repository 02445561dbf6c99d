//go:build cgo && linux

package pkcs11

import (
	"context"
	"crypto"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/pkcs11"

	"hsmsign/internal/testkit"
	"hsmsign/secret"
	"hsmsign/signer"
)

// Two keys of a token share the module and the login, which end with the last key.
func TestSharedLogin(t *testing.T) {
	tok, f := faulty(t)
	first, err := open(t, Options{}, tok.Ref("vendor"))
	if err != nil {
		t.Fatal(err)
	}
	second, err := open(t, Options{}, bare(tok.Ref("vendor"))) // it needs no PIN
	if err != nil {
		t.Fatal(err)
	}
	closeKey(t, first)
	mustSign(t, second)
	closeKey(t, second)
	calls(t, f, map[string]int{"C_Initialize": 1, "C_Login": 1, "C_OpenSession": 2, "C_CloseSession": 2, "C_Finalize": 1})
	openFails(t, bare(tok.Ref("vendor")), signer.ErrAuth)
}

// A module that another part of the process has initialized and logged in to is used, and left to it to finalize and to
// initialize again.
func TestForeignModule(t *testing.T) {
	tok, f := faulty(t)
	lib := pkcs11.New(f.Path)
	if err := lib.Initialize(); err != nil {
		t.Fatal(err)
	}
	found, err := (&module{lib: lib}).findToken(reference{})
	if err != nil {
		t.Fatal(err)
	}
	sh, err := lib.OpenSession(found.slot, pkcs11.CKF_SERIAL_SESSION)
	if err == nil {
		err = lib.Login(sh, pkcs11.CKU_USER, tok.PIN)
	}
	if err != nil {
		t.Fatal(err)
	}
	key, err := open(t, Options{}, tok.Ref("vendor"))
	if err != nil {
		t.Fatal(err)
	}
	mustSign(t, key)
	f.Script(t, "C_Sign 1 return 0x30")
	_, err = key.Sign(nil, digest, crypto.SHA256)
	hinted(t, err, signer.ErrUnavailable, "CKR_DEVICE_ERROR", "another part of this program")
	mustSign(t, key)
	closeKey(t, key)
	if _, _, err := (finder{lib: lib, sh: sh}).privateKey(); err != nil {
		t.Errorf("the other user's session after Close: %v", err)
	}
	calls(t, f, map[string]int{"C_Initialize": 2, "C_Finalize": 0})
	if err := lib.Finalize(); err != nil {
		t.Error(err)
	}
}

// What each class of return values of C_Sign causes: nothing, a new session, or a new C_Initialize; and the error.
func TestReturnValues(t *testing.T) {
	type steps struct{ Signed, Evicted, Initialized, Logins int }
	var (
		nothing = steps{Signed: 1}
		session = steps{Signed: 2, Evicted: 2}
		module  = steps{Signed: 2, Evicted: 2, Initialized: 1, Logins: 1}
	)
	tok, f := faulty(t)
	k := mustOpen(t, tok.Ref("vendor")+"&max-sessions=1")
	k.module.pause = 0
	for _, tt := range []struct {
		code   uint
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
	} {
		f.Script(t)
		mustSign(t, k)
		before, figures := f.Calls(t), stats(k)
		f.Script(t, fmt.Sprintf("C_Sign * return %#x", tt.code))
		_, err := k.Sign(nil, digest, crypto.SHA256)
		hinted(t, err, tt.family, "C_Sign returns "+tt.name)
		after := f.Calls(t)
		got := steps{
			after["C_Sign"] - before["C_Sign"], int(stats(k).Evicted - figures.Evicted),
			after["C_Initialize"] - before["C_Initialize"], after["C_Login"] - before["C_Login"],
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", tt.name, diff)
		}
	}
	f.Script(t, "C_Sign 2 length 255")
	_, err := k.Sign(nil, digest, crypto.SHA256)
	refused(t, err, signer.ErrBadSignature, "255 bytes; the modulus has 256")
}

// C_Sign hangs: callers and Close return in time, and everything is released when the module returns.
func TestHangingModule(t *testing.T) {
	tok, f := faulty(t)
	opened, err := open(t, Options{}, tok.Ref("vendor")+"&max-sessions=2")
	if err != nil {
		t.Fatal(err)
	}
	k := opened.(*key)
	k.closeWait = 100 * time.Millisecond
	f.Script(t, "C_Sign * hang")
	for _, says := range []string{"C_Sign has not returned", "C_Sign has not returned", "all 2 sessions are busy"} {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		_, err := k.SignContext(ctx, digest, crypto.SHA256)
		cancel()
		refused(t, err, context.DeadlineExceeded, says)
		refused(t, err, signer.ErrUnavailable)
	}
	if got := stats(k); got.InUse != 2 {
		t.Errorf("%+v; want both sessions in use", got)
	}
	refused(t, k.Close(), signer.ErrUnavailable, "still works on a call")
	_, err = k.Sign(nil, digest, crypto.SHA256)
	refused(t, err, signer.ErrClosed)
	calls(t, f, map[string]int{"C_Finalize": 0})
	f.Script(t)
	k.closeWait = 20 * time.Second
	closeKey(t, k)
	calls(t, f, map[string]int{"C_Finalize": 1})
}

// A caller whose context ends returns at once, though the login hangs; what is opened later is released.
func TestAbandoned(t *testing.T) {
	for name, do := range map[string]func(ctx context.Context, b signer.Backend, ref signer.Ref) error{
		"open": func(ctx context.Context, b signer.Backend, ref signer.Ref) error {
			_, err := b.Open(ctx, ref, signer.OpenOptions{})
			return err
		},
		"generate": func(ctx context.Context, b signer.Backend, ref signer.Ref) error {
			ref.Path = strings.Replace(ref.Path, "vendor", "new", 1)
			_, err := b.Generate(ctx, ref, signer.KeySpec{Bits: 2048})
			return err
		},
		"list": func(ctx context.Context, b signer.Backend, ref signer.Ref) error {
			_, err := b.List(ctx, ref)
			return err
		},
		"diagnose": func(ctx context.Context, b signer.Backend, ref signer.Ref) (err error) {
			b.Diagnose(ctx, ref, signer.OpenOptions{}, func(s signer.Step) {
				if s.Name == "login" {
					err = &signer.Error{Op: s.Name, Ref: ref, Err: s.Err}
				}
			})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			tok, f := faulty(t)
			f.Script(t, "C_Login 1 hang")
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			err := do(ctx, Backend(Options{}), parse(t, tok.Ref("vendor")))
			refused(t, err, signer.ErrUnavailable)
			refused(t, err, context.DeadlineExceeded)
			f.Script(t)
			testkit.Eventually(t, "the release", func() bool {
				c := f.Calls(t)
				return c["C_Login"] == 1 && c["C_Finalize"] == 1 && c["C_OpenSession"] == c["C_CloseSession"]
			})
		})
	}
}

// A PIN that comes after its caller has left is not sent.
func TestNoLoginAfterTheEnd(t *testing.T) {
	tok, f := faulty(t)
	ctx, cancel := context.WithCancel(t.Context())
	opts := Options{Secrets: secret.Reader{Prompt: func(context.Context, string) ([]byte, error) {
		cancel()
		return []byte(tok.PIN), nil
	}}}
	_, err := Backend(opts).Open(ctx, parse(t, bare(tok.Ref("vendor"))), signer.OpenOptions{})
	refused(t, err, context.Canceled)
	testkit.Eventually(t, "the release", func() bool { return f.Calls(t)["C_Finalize"] == 1 })
	_, err = Backend(Options{}).Open(ctx, parse(t, tok.Ref("vendor")), signer.OpenOptions{}) // it has ended before
	refused(t, err, context.Canceled)
	calls(t, f, map[string]int{"C_Initialize": 1, "C_Login": 0})
}

// A token that refuses read-only sessions gets read-write sessions; others do not.
func TestReadWriteSessions(t *testing.T) {
	for _, script := range []string{
		"", "C_OpenSession * without 0x2 0xB5", "C_OpenSession * without 0x2 0xB8", "C_OpenSession * without 0x2 0x54",
		"C_OpenSession * without 0x2 0xE2", "C_SignInit 1 return 0xB5",
	} {
		t.Run("script "+script, func(t *testing.T) {
			tok, f := faulty(t)
			f.Script(t, script)
			k := mustOpen(t, tok.Ref("vendor"))
			mustSign(t, k)
			if got := stats(k).ReadWrite; got != (script != "") {
				t.Errorf("read-write sessions: %v", got)
			}
			if strings.HasPrefix(script, "C_OpenSession") {
				calls(t, f, map[string]int{"C_OpenSession": 3}) // refused, the anchor, one of the pool
			}
		})
	}
}

// The token has fewer sessions than the pool wants: callers share those that it has. Without any, the error says so.
func TestSessionsExhausted(t *testing.T) {
	tok, f := faulty(t)
	f.Script(t, "C_OpenSession * return 0xB1")
	openFails(t, tok.Ref("vendor"), signer.ErrUnavailable, "C_OpenSession", "CKR_SESSION_COUNT")
	f.Script(t)
	k := mustOpen(t, tok.Ref("vendor")+"&max-sessions=4")
	f.Script(t, "C_OpenSession * return 0xB1")
	_, err := k.Sign(nil, digest, crypto.SHA256)
	hinted(t, err, signer.ErrUnavailable, "C_OpenSession returns CKR_SESSION_COUNT")
	f.Script(t, "C_OpenSession 2+ return 0xB1", "C_SignInit * sleep 5")
	for range 2 {
		signAtOnce(t, 16, 1, k)
	}
	if got := stats(k); got.Open != 1 || got.Idle != 1 || got.Evicted != 0 {
		t.Errorf("%+v; want one session", got)
	}
	f.Script(t, "C_SignInit * hang") // a caller that waits for the session can leave
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	for range 3 {
		_, err := k.SignContext(ctx, digest, crypto.SHA256)
		refused(t, err, context.DeadlineExceeded)
	}
	f.Script(t)
	mustSign(t, k)
}

// signAtOnce lets callers make some signatures each, with the keys in turn.
func signAtOnce(t *testing.T, callers, each int, keys ...signer.Signer) {
	t.Helper()
	var group sync.WaitGroup
	for n := range callers {
		group.Go(func() {
			for range each {
				mustSign(t, keys[n%len(keys)])
			}
		})
	}
	group.Wait()
}

// A module that cannot lock gets one call at a time.
func TestModuleCannotLock(t *testing.T) {
	tok, f := faulty(t)
	f.Script(t, "C_Initialize * locking 0xA", "* * alone 0x5", "C_SignInit * sleep 1")
	var warned []string
	opened := mustOpenWith(t, Options{Warn: func(text string) { warned = append(warned, text) }}, tok.Ref("vendor")+"&max-sessions=4")
	signAtOnce(t, 8, 3, opened, mustOpen(t, tok.Ref("vendor")))
	if got := stats(opened); !got.Serialized || got.Open != 1 || got.Reinitialized != 0 {
		t.Errorf("%+v; want one session, and no recovery", got)
	}
	if len(warned) != 1 || !strings.Contains(warned[0], "CKR_CANT_LOCK") {
		t.Errorf("warnings %q", warned)
	}
	calls(t, f, map[string]int{"C_Initialize": 2})
}

// The session that was used last is taken first. If one is found dead, the idle ones are dropped: the second try of a
// signature is its last. There are no more sessions than are needed, and never more than the reference allows.
func TestPool(t *testing.T) {
	tok, f := faulty(t)
	k := mustOpen(t, tok.Ref("vendor")+"&max-sessions=3")
	take := func() session {
		t.Helper()
		s, err := k.sessions.take(t.Context(), k.token.now.Load())
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	for range 10 {
		mustSign(t, k)
	}
	calls(t, f, map[string]int{"C_OpenSession": 2}) // the anchor, and one for one caller
	a, b, c := take(), take(), take()
	if a == b || b == c {
		t.Fatal("one session was taken twice")
	}
	for _, order := range [][3]session{{a, b, c}, {b, c, a}} {
		for _, s := range order {
			k.sessions.put(s, nil)
		}
		if got := [3]session{take(), take(), take()}; got != [3]session{order[2], order[1], order[0]} {
			t.Errorf("put back %v, taken %v", order, got)
		}
	}
	for _, s := range []session{a, b, c} {
		k.sessions.put(s, nil)
		if err := k.module.lib.CloseSession(s.handle); err != nil {
			t.Fatal(err)
		}
	}
	mustSign(t, k)
	if got, want := stats(k), (signer.Stats{Open: 1, Idle: 1, Evicted: 3}); got != want {
		t.Errorf("%+v; want %+v", got, want)
	}
	f.Script(t, "C_SignInit * sleep 2")
	signAtOnce(t, 16, 4, k)
	if got := stats(k); got.Open > 3 || got.Open != got.Idle {
		t.Errorf("%+v; want at most 3 sessions, all idle", got)
	}
	calls(t, f, map[string]int{"C_Login": 1, "C_Initialize": 1})
}

func TestPoolSize(t *testing.T) {
	for _, tt := range []struct {
		want     int
		tokenMax uint
		size     int
	}{
		{4, pkcs11.CK_EFFECTIVELY_INFINITE, 4},
		{4, pkcs11.CK_UNAVAILABLE_INFORMATION, 4},
		{4, 100, 4},
		{4, 5, 4},
		{4, 4, 3}, // one is the anchor
		{4, 2, 1},
		{4, 1, 1},
	} {
		if got := poolSize(tt.want, tt.tokenMax); got != tt.size {
			t.Errorf("%d wanted, the token allows %d: %d; want %d", tt.want, tt.tokenMax, got, tt.size)
		}
	}
}
