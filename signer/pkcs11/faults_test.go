//go:build cgo && linux

package pkcs11

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hsmsign/signer"
	softhsmtest "hsmsign/softhsm-test"
)

// faulty is a token with the test key behind a module whose faults are scripted.
func faulty(t *testing.T) (*softhsmtest.Token, *softhsmtest.FaultModule) {
	t.Helper()
	tok := newToken(t)
	f := softhsmtest.BuildFaultModule(t)
	f.Use(tok)
	return tok, f
}

// mustSign signs a message, within 20 s, and holds the signature to the bytes that crypto/rsa gives.
func mustSign(t *testing.T, key signer.Signer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	message := []byte("certificate request")
	sig, err := signer.Sign(ctx, key, message, crypto.SHA256)
	if err != nil {
		t.Errorf("%v", err)
		return
	}
	_, private := vendorKey(t)
	hash := crypto.SHA256.New()
	hash.Write(message)
	want, err := rsa.SignPKCS1v15(nil, private, crypto.SHA256, hash.Sum(nil))
	if err != nil || !bytes.Equal(sig, want) {
		t.Errorf("another signature than crypto/rsa gives (%v)", err)
	}
}

// calls holds the number of calls to what it must be.
func calls(t *testing.T, f *softhsmtest.FaultModule, want map[string]int) {
	t.Helper()
	got := f.Calls(t)
	for name, n := range want {
		if got[name] != n {
			t.Errorf("%d calls of %s; want %d", got[name], name, n)
		}
	}
}

// All sessions are closed behind our back, and with the last one the login goes.
func TestSessionsClosed(t *testing.T) {
	tok, f := faulty(t)
	key := mustOpen(t, tok.Ref("vendor"))
	mustSign(t, key)
	f.Script(t, "C_SignInit 1 closeall")
	mustSign(t, key)
	if got := stats(key); got.Reconnects != 1 || got.Reinitialized != 0 || got.Evicted != 1 || got.Open != 1 {
		t.Errorf("%+v; want one reconnect and one session", got)
	}
	mustSign(t, key)
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
	_, err := Backend(Options{}).Open(t.Context(), parse(t, tok.Ref("vendor")), signer.OpenOptions{})
	if err == nil {
		t.Fatal("opened without a token")
	}
	move(aside, folder)
	opened := mustOpen(t, tok.Ref("vendor")) // nothing is latched
	m := opened.(*key).module
	m.pause, m.next = 0, time.Time{}
	mustSign(t, opened)
	move(folder, aside)
	for range 2 {
		_, err := signer.Sign(t.Context(), opened, []byte("x"), crypto.SHA256)
		refused(t, err, signer.ErrUnavailable)
		hinted(t, err)
	}
	move(aside, folder)
	mustSign(t, opened)
	mustSign(t, opened)
	if got := stats(opened); got.Reinitialized < 1 || got.Reconnects < 1 {
		t.Errorf("%+v; want the module initialized anew", got)
	}
}

// A device in trouble gets one new C_Initialize, and no other before its time; callers fail at once meanwhile.
func TestRecoveryPause(t *testing.T) {
	tok, f := faulty(t)
	opened := mustOpen(t, tok.Ref("vendor")+"&max-sessions=4")
	m := opened.(*key).module
	f.Script(t, "C_Sign * return 0x30")
	for range 5 {
		_, err := opened.Sign(nil, digest, crypto.SHA256)
		refused(t, err, signer.ErrUnavailable, "CKR_DEVICE_ERROR")
		hinted(t, err)
	}
	_, err := opened.Sign(nil, digest, crypto.SHA256)
	refused(t, err, signer.ErrUnavailable, "the module is connected again at "+m.next.UTC().Format(time.TimeOnly)+" UTC at the earliest")
	calls(t, f, map[string]int{"C_Initialize": 2, "C_Finalize": 1, "C_Login": 2})
	f.Script(t)
	mustSign(t, opened) // the device came back by itself
	f.Script(t, "C_Sign 1 return 0x30")
	m.next = time.Now()
	mustSign(t, opened)
	calls(t, f, map[string]int{"C_Initialize": 3, "C_Login": 3})
}

// Many callers and two keys meet the same fault: the module is initialized once for all of them.
func TestSharedRecovery(t *testing.T) {
	tok, f := faulty(t)
	text, _ := vendorKey(t)
	tok.Import(t, text, "second", []byte{2})
	keys := []signer.Signer{mustOpen(t, tok.Ref("vendor")+"&max-sessions=4"), mustOpen(t, tok.Ref("second")+"&max-sessions=4")}
	f.Script(t, "C_SignInit * sleep 50", "C_SignInit 1 return 0x30", "C_SignInit 2 return 0x30", "C_SignInit 3 return 0xE0", "C_SignInit 4 return 0x32")
	var callers sync.WaitGroup
	for n := range 8 {
		callers.Go(func() {
			for range 2 {
				mustSign(t, keys[n%2])
			}
		})
	}
	callers.Wait()
	calls(t, f, map[string]int{"C_Initialize": 2, "C_Finalize": 1, "C_Login": 2})
	for _, key := range keys {
		if got := stats(key); got.InUse != 0 || got.Open != got.Idle || got.Open > 4 {
			t.Errorf("%+v; want no session in use, and at most 4", got)
		}
	}
}

// A handle of before a recovery may by then mean another key: it is not used, even by a call that had begun.
func TestStaleHandle(t *testing.T) {
	tok, f := faulty(t)
	k := mustOpen(t, tok.Ref("vendor")).(*key)
	before := k.binding.Load()
	f.Script(t, "C_SignInit 1 return 0x30")
	mustSign(t, k)
	inits := f.Calls(t)["C_SignInit"]
	sig, err := k.attempt(t.Context(), before, newPayload(crypto.SHA256, digest))
	if sig != nil || classOf(err) != classSession || f.Calls(t)["C_SignInit"] != inits {
		t.Errorf("%x, %v; want a session error, and no call", sig, err)
	}
}

// The token's other user has replaced the key: nothing is signed with the new one, until the old one is back.
func TestKeyReplaced(t *testing.T) {
	tok, f := faulty(t)
	opened := mustOpen(t, tok.Ref("vendor"))
	opened.(*key).module.pause = time.Hour
	mustSign(t, opened)
	label := func(from, to string) {
		t.Helper()
		tool(t, tok, "--login", "--pin", tok.PIN, "--set-id", to, "--id", from, "--type", "privkey")
	}
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(other)
	if err != nil {
		t.Fatal(err)
	}
	tok.Import(t, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), "vendor", []byte{7})
	byID := mustOpen(t, strings.Replace(tok.Ref(""), "?", ";id=%01?", 1))
	label("01", "09")
	label("07", "01")
	f.Script(t, "C_SignInit 1 return 0x82")
	_, err = byID.Sign(nil, digest, crypto.SHA256)
	refused(t, err, signer.ErrKeyNotFound, "not that of the key that was opened")
	hinted(t, err)
	_, err = byID.Sign(nil, digest, crypto.SHA256)
	refused(t, err, signer.ErrKeyNotFound, "not that of the key that was opened")
	label("01", "07")
	label("09", "01")
	mustSign(t, byID)
	calls(t, f, map[string]int{"C_Initialize": 1})
}

// tool runs pkcs11-tool on the token, past the module with the faults.
func tool(t *testing.T, tok *softhsmtest.Token, args ...string) {
	t.Helper()
	module, err := softhsmtest.FindModule()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "pkcs11-tool", append([]string{"--module", module, "--token-label", tok.Label}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("pkcs11-tool %q: %v: %s", args, err, out)
	}
}

// C_Sign hangs: the caller returns in time, and when the module comes back so does everything.
func TestHangingSign(t *testing.T) {
	tok, f := faulty(t)
	key := mustOpen(t, tok.Ref("vendor")+"&max-sessions=2")
	f.Script(t, "C_Sign * hang")
	for range 4 {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		began := time.Now()
		_, err := key.SignContext(ctx, digest, crypto.SHA256)
		cancel()
		refused(t, err, context.DeadlineExceeded)
		refused(t, err, signer.ErrUnavailable)
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("it took %v", took)
		}
	}
	if got := stats(key); got.InUse != 2 {
		t.Errorf("%+v; want both sessions in use", got)
	}
	f.Script(t)
	mustSign(t, key)
}

// crashVariable holds the reference for the child of TestCrash.
const crashVariable = "HSMSIGN_TEST_CRASH"

// The module dies of SIGSEGV in C_Sign, and takes the process with it: that is why there is isolate=yes.
func TestCrash(t *testing.T) {
	if ref := os.Getenv(crashVariable); ref != "" {
		_, err := mustOpen(t, ref).Sign(nil, digest, crypto.SHA256)
		t.Fatalf("it has survived: %v", err)
	}
	tok, f := faulty(t)
	f.Script(t, "C_Sign 1 crash")
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestCrash$")
	cmd.Env = append(os.Environ(), crashVariable+"="+tok.Ref("vendor"))
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGSEGV {
		t.Errorf("the child ended with %v: %s", err, out)
	}
	calls(t, f, map[string]int{"C_Sign": 1, "C_Login": 1})
	mustSign(t, mustOpen(t, tok.Ref("vendor"))) // the second C_Sign
}

// A token that refuses read-only sessions is given read-write ones; others are not.
func TestReadWriteSessions(t *testing.T) {
	tok, f := faulty(t)
	key := mustOpen(t, tok.Ref("vendor"))
	mustSign(t, key)
	if stats(key).ReadWrite {
		t.Error("a read-write session without need")
	}
	if err := key.Close(); err != nil {
		t.Fatal(err)
	}
	for _, code := range []string{"0xB5", "0xB8", "0x54", "0xE2"} {
		tok := newToken(t)
		f.Use(tok)
		before := f.Calls(t)["C_OpenSession"]
		f.Script(t, "C_OpenSession * without 0x2 "+code)
		key := mustOpen(t, tok.Ref("vendor"))
		mustSign(t, key)
		if !stats(key).ReadWrite {
			t.Errorf("%s: no read-write session", code)
		}
		calls(t, f, map[string]int{"C_OpenSession": before + 3}) // refused, the anchor, one of the pool
		if err := key.Close(); err != nil {
			t.Fatal(err)
		}
	}
	f.Script(t)
	tok = newToken(t)
	f.Use(tok)
	key = mustOpen(t, tok.Ref("vendor"))
	mustSign(t, key)
	f.Script(t, "C_SignInit 1 return 0xB5")
	mustSign(t, key)
	if !stats(key).ReadWrite {
		t.Error("C_SignInit wants a read-write session, and got none")
	}
}

// The token has fewer sessions than the pool would like: callers share those that there are. Without any the error
// says so.
func TestSessionsExhausted(t *testing.T) {
	tok, f := faulty(t)
	key := mustOpen(t, tok.Ref("vendor")+"&max-sessions=4")
	f.Script(t, "C_OpenSession * return 0xB1")
	_, err := key.Sign(nil, digest, crypto.SHA256)
	refused(t, err, signer.ErrUnavailable, "C_OpenSession gives CKR_SESSION_COUNT")
	hinted(t, err)
	f.Script(t, "C_OpenSession 2+ return 0xB1", "C_SignInit * sleep 5")
	for range 2 {
		var callers sync.WaitGroup
		for range 16 {
			callers.Go(func() { mustSign(t, key) })
		}
		callers.Wait()
	}
	if got := stats(key); got.Open != 1 || got.Idle != 1 || got.Evicted != 0 {
		t.Errorf("%+v; want one session", got)
	}
	f.Script(t, "C_SignInit * hang") // who waits for the one session can leave
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	for range 3 {
		_, err := key.SignContext(ctx, digest, crypto.SHA256)
		refused(t, err, context.DeadlineExceeded)
	}
	f.Script(t)
	mustSign(t, key)
}

// A module that cannot lock gets one call at a time.
func TestModuleCannotLock(t *testing.T) {
	tok, f := faulty(t)
	f.Script(t, "C_Initialize * locking 0xA", "* * alone 0x5", "C_SignInit * sleep 1")
	var warned []string
	opened, err := Backend(Options{Warn: func(text string) { warned = append(warned, text) }}).Open(t.Context(), parse(t, tok.Ref("vendor")+"&max-sessions=4"), signer.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	second := mustOpen(t, tok.Ref("vendor"))
	var callers sync.WaitGroup
	for n := range 8 {
		callers.Go(func() {
			for range 3 {
				mustSign(t, []signer.Signer{opened, second}[n%2])
			}
		})
	}
	callers.Wait()
	if got := stats(opened); !got.Serialized || got.Open != 1 || got.Reinitialized != 0 {
		t.Errorf("%+v; want one session, and no recovery", got)
	}
	if len(warned) != 1 || !strings.Contains(warned[0], "CKR_CANT_LOCK") {
		t.Errorf("warnings %q", warned)
	}
	if err := opened.Close(); err != nil {
		t.Error(err)
	}
	calls(t, f, map[string]int{"C_Initialize": 2})
}

// A key that is opened while the device is away from the others is opened all the same.
func TestOpenRecovers(t *testing.T) {
	tok, f := faulty(t)
	first := mustOpen(t, tok.Ref("vendor"))
	f.Script(t, "C_FindObjectsInit 1 return 0x30")
	second := mustOpen(t, tok.Ref("vendor"))
	mustSign(t, second)
	mustSign(t, first)
	if diff := cmp.Diff(signer.Stats{Open: 1, Idle: 1, Reconnects: 1, Reinitialized: 1}, stats(first)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if diff := cmp.Diff(signer.Stats{Open: 1, Idle: 1}, stats(second)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// Another program writes to the token's files just now: what the module makes of them is not taken for an answer, but
// no PIN is sent without end.
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
			key, err := Backend(Options{}).Open(t.Context(), parse(t, tok.Ref("vendor")), signer.OpenOptions{})
			if !errors.Is(err, c.want) {
				t.Fatalf("%v; want %v", err, c.want)
			}
			if err == nil {
				mustSign(t, key)
				if err := key.Close(); err != nil {
					t.Error(err)
				}
			}
			calls(t, f, map[string]int{"C_Login": c.logins, "C_Initialize": c.opened})
		})
	}
}
