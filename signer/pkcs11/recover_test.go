//go:build cgo && linux

package pkcs11

import (
	"context"
	"crypto"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hsmsign/internal/testkit"
	"hsmsign/signer"
)

// All sessions are closed by another program, and with the last one the login ends.
func TestSessionsClosed(t *testing.T) {
	tok, f := faulty(t)
	k := mustOpen(t, tok.Ref("vendor"))
	mustSign(t, k)
	f.Script(t, "C_SignInit 1 closeall")
	mustSign(t, k)
	if got := stats(k); got.Reconnects != 1 || got.Reinitialized != 0 || got.Evicted != 1 || got.Open != 1 {
		t.Errorf("%+v; want one reconnect and one session", got)
	}
	mustSign(t, k)
	calls(t, f, map[string]int{"C_Login": 2, "C_Initialize": 1, "C_SignInit": 4})
}

// The token's folder goes away and comes back, as a network HSM does.
func TestTokenFolderRemoved(t *testing.T) {
	tok := newToken(t)
	folder, aside := filepath.Join(tok.Dir, "tokens"), filepath.Join(tok.Dir, "aside")
	move := func(from, to string) {
		t.Helper()
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	move(folder, aside)
	if _, err := open(t, Options{}, tok.Ref("vendor")); err == nil {
		t.Fatal("opened without a token")
	}
	move(aside, folder)
	k := mustOpen(t, tok.Ref("vendor")) // nothing is latched
	k.module.pause, k.module.next = 0, time.Time{}
	mustSign(t, k)
	move(folder, aside)
	for range 2 {
		_, err := signer.Sign(t.Context(), k, []byte("x"), crypto.SHA256)
		hinted(t, err, signer.ErrUnavailable)
	}
	move(aside, folder)
	mustSign(t, k)
	mustSign(t, k)
	if got := stats(k); got.Reinitialized < 1 || got.Reconnects < 1 {
		t.Errorf("%+v; want a recovery", got)
	}
}

// A failing device gets one C_Initialize, and no other before the pause is over; meanwhile callers fail at once.
func TestRecoveryPause(t *testing.T) {
	tok, f := faulty(t)
	k := mustOpen(t, tok.Ref("vendor")+"&max-sessions=4")
	f.Script(t, "C_Sign * return 0x30")
	for range 5 {
		_, err := k.Sign(nil, digest, crypto.SHA256)
		hinted(t, err, signer.ErrUnavailable, "CKR_DEVICE_ERROR")
	}
	_, err := k.Sign(nil, digest, crypto.SHA256)
	refused(t, err, signer.ErrUnavailable, "the module is connected again at "+k.module.next.UTC().Format(time.TimeOnly)+" UTC at the earliest")
	calls(t, f, map[string]int{"C_Initialize": 2, "C_Finalize": 1, "C_Login": 2})
	f.Script(t)
	mustSign(t, k) // the device came back by itself
	f.Script(t, "C_Sign 1 return 0x30")
	k.module.next = time.Now()
	mustSign(t, k)
	calls(t, f, map[string]int{"C_Initialize": 3, "C_Login": 3})
}

// Many callers and two keys meet the same fault: the module is initialized once for all of them.
func TestSharedRecovery(t *testing.T) {
	tok, f := faulty(t)
	tok.Import(t, testkit.File(t, "golden/vendor.key"), "second", []byte{2})
	keys := []signer.Signer{mustOpen(t, tok.Ref("vendor")+"&max-sessions=4"), mustOpen(t, tok.Ref("second")+"&max-sessions=4")}
	f.Script(t, "C_SignInit * sleep 50", "C_SignInit 1 return 0x30", "C_SignInit 2 return 0x30", "C_SignInit 3 return 0xE0", "C_SignInit 4 return 0x32")
	signAtOnce(t, 8, 2, keys...)
	calls(t, f, map[string]int{"C_Initialize": 2, "C_Finalize": 1, "C_Login": 2})
	for _, key := range keys {
		if got := stats(key); got.InUse != 0 || got.Open != got.Idle || got.Open > 4 {
			t.Errorf("%+v; want no session in use, and at most 4", got)
		}
	}
}

// A handle from before a recovery may mean another key: it is not used, even by a call that had begun.
func TestStaleHandle(t *testing.T) {
	tok, f := faulty(t)
	k := mustOpen(t, tok.Ref("vendor"))
	before := k.binding.Load()
	f.Script(t, "C_SignInit 1 return 0x30")
	mustSign(t, k)
	inits := f.Calls(t)["C_SignInit"]
	sig, err := k.attempt(t.Context(), before, newPayload(crypto.SHA256, digest))
	if sig != nil || classOf(err) != classSession || f.Calls(t)["C_SignInit"] != inits {
		t.Errorf("%x, %v; want a session error, and no call", sig, err)
	}
}

// Another program has replaced the key: nothing is signed with the new one, until the old one is back.
func TestKeyReplaced(t *testing.T) {
	tok, f := faulty(t)
	setID := func(from, to string) {
		t.Helper()
		tool(t, tok, "--set-id", to, "--id", from, "--type", "privkey")
	}
	tok.Import(t, keyPEM(t, testkit.Key("other")), "vendor", []byte{7})
	k := mustOpen(t, with(tok, "id=%01"))
	k.module.pause = time.Hour
	mustSign(t, k)
	setID("01", "09")
	setID("07", "01")
	f.Script(t, "C_SignInit 1 return 0x82")
	for range 2 {
		_, err := k.Sign(nil, digest, crypto.SHA256)
		hinted(t, err, signer.ErrKeyNotFound, "not that of the key that was opened")
	}
	setID("01", "07")
	setID("09", "01")
	mustSign(t, k)
	calls(t, f, map[string]int{"C_Initialize": 1})
}

// A key is opened while the device has gone away from the others.
func TestOpenRecovers(t *testing.T) {
	tok, f := faulty(t)
	first := mustOpen(t, tok.Ref("vendor"))
	f.Script(t, "C_FindObjectsInit 1 return 0x30")
	second := mustOpen(t, tok.Ref("vendor"))
	mustSign(t, second)
	mustSign(t, first)
	openFails(t, strings.Replace(tok.Ref("vendor"), tok.Label, "nope", 1), signer.ErrKeyNotFound) // is no reason to recover
	calls(t, f, map[string]int{"C_Initialize": 2})
	if diff := cmp.Diff(signer.Stats{Open: 1, Idle: 1, Reconnects: 1, Reinitialized: 1}, stats(first)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if diff := cmp.Diff(signer.Stats{Open: 1, Idle: 1}, stats(second)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// Another program writes to the token's files: what the module reads then is not believed at once, and one PIN is sent a
// limited number of times.
func TestHalfWrittenToken(t *testing.T) {
	for name, c := range map[string]struct {
		script []string
		opened int // times that the module was initialized
		logins int
		want   error
	}{
		"token unreadable":  {[]string{"C_GetTokenInfo 1 return 5", "C_GetTokenInfo 2 return 5"}, 2, 1, nil},
		"login unreadable":  {[]string{"C_Login 1 return 5", "C_Login 2 return 5"}, 3, 3, nil},
		"PIN unreadable":    {[]string{"C_Login 1 return 0x102", "C_Login 2 return 0x102"}, 3, 3, nil},
		"no PIN":            {[]string{"C_Login * return 0x102"}, 3, 3, signer.ErrAuth},
		"token that fails":  {[]string{"C_GetTokenInfo * return 5"}, settleTries, 0, signer.ErrKeyNotFound},
		"module that fails": {[]string{"C_Login * return 5"}, 3, 3, signer.ErrUnavailable},
		"wrong PIN":         {[]string{"C_Login * return 0xA0"}, 1, 1, signer.ErrAuth},
	} {
		t.Run(name, func(t *testing.T) {
			tok, f := faulty(t)
			f.Script(t, c.script...)
			key, err := open(t, Options{}, tok.Ref("vendor"))
			if !errors.Is(err, c.want) {
				t.Fatalf("%v; want %v", err, c.want)
			}
			if err == nil {
				mustSign(t, key)
				closeKey(t, key)
			}
			calls(t, f, map[string]int{"C_Login": c.logins, "C_Initialize": c.opened})
		})
	}
}

// The module hangs during a recovery: signatures and opens return in time, and work when the module returns.
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
				_, err := keys[n%2].SignContext(ctx, digest, crypto.SHA256)
				refused(t, err, context.DeadlineExceeded)
				refused(t, err, signer.ErrUnavailable)
				_, err = Backend(Options{}).Open(ctx, parse(t, tok.Ref("vendor")), signer.OpenOptions{})
				refused(t, err, context.DeadlineExceeded)
				cancel()
			}
			f.Script(t)
			for _, key := range keys {
				mustSign(t, key)
			}
			calls(t, f, map[string]int{"C_Initialize": 2, "C_Finalize": 1, "C_Login": 2})
		})
	}
}

// A call that never returns prevents C_Finalize, and the error says what helps.
func TestRecoveryBehindHangingCall(t *testing.T) {
	tok, f := faulty(t)
	k := mustOpen(t, tok.Ref("vendor")+"&max-sessions=2")
	k.module.wait = 200 * time.Millisecond
	f.Script(t, "C_Sign 1 hang")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := k.SignContext(ctx, digest, crypto.SHA256)
	refused(t, err, context.DeadlineExceeded)

	f.Script(t, "C_Sign 1 hang", "C_SignInit * return 0x30")
	_, err = k.Sign(nil, digest, crypto.SHA256) // no deadline: it waits as long as a recovery does
	hinted(t, err, signer.ErrUnavailable, errBusy.Error())
	calls(t, f, map[string]int{"C_Initialize": 1, "C_Finalize": 0})
	f.Script(t)
	mustSign(t, k)
}
