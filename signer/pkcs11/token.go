//go:build cgo

package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"

	"github.com/miekg/pkcs11"

	"hsmsign/signer"
)

// maxListed bounds how many tokens or keys an error lists.
const maxListed = 10

// tokenID tells tokens of one module apart for as long as the process lives; slots may change.
type tokenID struct{ label, serial, model, manufacturer string }

func (id tokenID) String() string { return fmt.Sprintf("token=%q serial=%q", id.label, id.serial) }

// token is a token that was opened in this process.
type token struct {
	id tokenID

	// Guarded by the module's mu.
	keys int // open keys
	// anchor is a session that stays open while there are keys: a token logs everybody out when the last
	// session closes (PKCS#11 3.0 section 5.6.2).
	anchor     pkcs11.SessionHandle
	needsLogin bool // CKF_LOGIN_REQUIRED

	// now is the login that sessions and object handles belong to; nil when it was lost.
	now        atomic.Pointer[attachment]
	readWrite  atomic.Bool // the token refuses read-only sessions
	reconnects atomic.Uint64

	// auth makes sure that one PIN is sent at a time, and none after one was refused.
	auth mutex
	// pin is kept while keys are open: a module that was initialized anew, and a key with
	// CKA_ALWAYS_AUTHENTICATE, want it again, and nobody should be asked for it again. Nil for a PIN pad.
	pin []byte
	// refused is why the token refused its PIN. It is never cleared.
	refused error
}

// attachment is one time that a token was logged in to; its address tells it from others.
type attachment struct{ slot uint }

// foundToken is a token as it is now.
type foundToken struct {
	slot uint
	id   tokenID
	info pkcs11.TokenInfo
}

// findToken looks for the one initialized token that the reference names. The caller holds m.mu.
func (m *module) findToken(r reference) (foundToken, error) {
	matches, there, err := m.findTokens(r)
	switch {
	case err != nil:
		return foundToken{}, err
	case len(matches) == 0:
		return foundToken{}, r.fail(opFindToken, fmt.Errorf("%w: no token matches; there: %s", signer.ErrKeyNotFound, list(there)),
			"correct the token attributes of the reference; an HSM that is not reachable shows no tokens either")
	case len(matches) == 1:
		return matches[0], nil
	}
	var names []string
	for _, t := range matches {
		names = append(names, t.id.String())
	}
	return foundToken{}, r.fail(opFindToken, fmt.Errorf("%w: %d tokens match: %s", signer.ErrAmbiguousKey, len(matches), list(names)),
		"add token=, serial= or slot-id= to the reference")
}

const opFindToken = "find the token of"

// findSettledToken is findToken, but waits a little for a token that is not there; see settlePause. The caller holds
// m.mu and has retained the module.
func (m *module) findSettledToken(ctx context.Context, r reference) (foundToken, error) {
	for try := 1; ; try++ {
		found, err := m.findToken(r)
		if try == settleTries || !errors.Is(err, signer.ErrKeyNotFound) || !m.startAgain(ctx) {
			return found, err
		}
	}
}

// findTokens gives every initialized token that the reference matches, and the names of all that are there. The
// caller holds m.mu.
func (m *module) findTokens(r reference) (matches []foundToken, there []string, err error) {
	lib, err := m.lib.GetInfo()
	if err != nil {
		return nil, nil, r.fail(opFindToken, call("C_GetInfo", err), "")
	}
	if !r.path.matches("library-manufacturer", lib.ManufacturerID) || !r.path.matches("library-description", lib.LibraryDescription) ||
		!r.path.matchesVersion(lib.LibraryVersion.Major, lib.LibraryVersion.Minor) {
		return nil, nil, r.fail(opFindToken, fmt.Errorf("%w: the module is %q of %q, version %d.%d", signer.ErrKeyNotFound,
			lib.LibraryDescription, lib.ManufacturerID, lib.LibraryVersion.Major, lib.LibraryVersion.Minor),
			"correct the library attributes of the reference, or leave them out")
	}
	slots, err := m.lib.GetSlotList(true)
	if err != nil {
		return nil, nil, r.fail(opFindToken, call("C_GetSlotList", err), "")
	}
	for _, slot := range slots {
		info, err := m.lib.GetTokenInfo(slot)
		if err != nil {
			// One broken reader must not hide the others.
			there = append(there, fmt.Sprintf("slot %d, where %v", slot, call("C_GetTokenInfo", err)))
			continue
		}
		if info.Flags&pkcs11.CKF_TOKEN_INITIALIZED == 0 {
			continue
		}
		t := foundToken{slot, tokenID{info.Label, info.SerialNumber, info.Model, info.ManufacturerID}, info}
		there = append(there, t.id.String())
		ok, err := m.tokenMatches(r.path, t)
		if err != nil {
			return nil, nil, r.fail(opFindToken, err, "")
		}
		if ok {
			matches = append(matches, t)
		}
	}
	return matches, there, nil
}

func (m *module) tokenMatches(u uri, t foundToken) (bool, error) {
	if !u.matches("token", t.id.label) || !u.matches("serial", t.id.serial) || !u.matches("model", t.id.model) ||
		!u.matches("manufacturer", t.id.manufacturer) || !u.matchesNumber("slot-id", uint64(t.slot)) {
		return false, nil
	}
	slot, err := m.lib.GetSlotInfo(t.slot)
	if err != nil {
		return false, call("C_GetSlotInfo", err)
	}
	return u.matches("slot-manufacturer", slot.ManufacturerID) && u.matches("slot-description", slot.SlotDescription), nil
}

const opLogin = "log in to the token of"

// retainToken counts one key more on a token, and logs in to it for the first. Found may change: a token that was
// found again may be in another slot. The caller holds m.mu.
func (m *module) retainToken(ctx context.Context, r reference, found *foundToken, opts Options) (*token, error) {
	t := m.tokens[found.id]
	if t == nil {
		t = &token{id: found.id}
		m.tokens[found.id] = t
	}
	if err := t.latched(); err != nil {
		return nil, r.fail(opLogin, err, "correct the PIN, then start the program anew")
	}
	if t.keys == 0 {
		err := checkPINFlags(r, *found)
		if err == nil {
			err = t.readPIN(ctx, r, *found, opts)
		}
		if err == nil {
			err = m.attachSettled(ctx, r, t, found)
		}
		if err != nil {
			t.forgetPIN()
			return nil, err
		}
	}
	t.keys++
	return t, nil
}

// releaseToken takes back one retainToken. The caller holds m.mu.
func (m *module) releaseToken(t *token) error {
	t.keys--
	if t.keys > 0 {
		return nil
	}
	t.forgetPIN()
	if t.now.Swap(nil) == nil {
		return nil
	}
	return unlessDead(call("C_CloseSession", m.lib.CloseSession(t.anchor)))
}

// attachSettled is attach, but tries again where a half-written token explains the answer; see settlePause. None of
// these answers is about the PIN that was sent. The caller holds m.mu.
func (m *module) attachSettled(ctx context.Context, r reference, t *token, found *foundToken) error {
	for try := 1; ; try++ {
		err := m.attach(r, t, *found)
		halfWritten := is(err, pkcs11.CKR_GENERAL_ERROR) || is(err, pkcs11.CKR_USER_PIN_NOT_INITIALIZED)
		if try == loginTries || !halfWritten || !m.startAgain(ctx) {
			return err
		}
		again, err := m.findSettledToken(ctx, r)
		if err != nil {
			return err
		}
		*found = again
	}
}

// attach opens the anchor and logs in with the PIN that is kept. The caller holds m.mu.
func (m *module) attach(r reference, t *token, found foundToken) error {
	if err := checkPINFlags(r, found); err != nil {
		return err
	}
	sh, err := t.openSession(m.lib, found.slot)
	if err != nil {
		return r.fail("open", err, fixFor(err))
	}
	t.needsLogin = found.info.Flags&pkcs11.CKF_LOGIN_REQUIRED != 0
	if t.needsLogin {
		if err := t.sendPIN(m.lib, sh, pkcs11.CKU_USER); err != nil {
			_ = m.lib.CloseSession(sh) // the first error is the one to tell
			return r.fail(opLogin, err, fixFor(err))
		}
	}
	t.anchor = sh
	t.now.Store(&attachment{found.slot})
	return nil
}

// openSession opens a read-only session, or a read-write one where the token has refused read-only ones.
func (t *token) openSession(lib cryptoki, slot uint) (pkcs11.SessionHandle, error) {
	const readOnly, readWrite = pkcs11.CKF_SERIAL_SESSION, pkcs11.CKF_SERIAL_SESSION | pkcs11.CKF_RW_SESSION
	if t.readWrite.Load() {
		sh, err := lib.OpenSession(slot, readWrite)
		return sh, call("C_OpenSession", err)
	}
	sh, err := lib.OpenSession(slot, readOnly)
	if err == nil {
		return sh, nil
	}
	err = call("C_OpenSession", err)
	for _, code := range []pkcs11.Error{
		pkcs11.CKR_SESSION_READ_ONLY, pkcs11.CKR_SESSION_READ_WRITE_SO_EXISTS, pkcs11.CKR_TOKEN_WRITE_PROTECTED,
		pkcs11.CKR_FUNCTION_NOT_SUPPORTED, pkcs11.CKR_ARGUMENTS_BAD,
	} {
		if !is(err, code) {
			continue
		}
		if sh, second := lib.OpenSession(slot, readWrite); second == nil {
			t.readWrite.Store(true)
			return sh, nil
		}
	}
	return 0, err
}

// checkPINFlags refuses a token that a wrong PIN would lock, or has locked. The error wraps signer.ErrAuth.
func checkPINFlags(r reference, found foundToken) error {
	switch flags := found.info.Flags; {
	case flags&pkcs11.CKF_LOGIN_REQUIRED == 0:
		return nil
	case flags&pkcs11.CKF_USER_PIN_LOCKED != 0:
		return r.fail(opLogin, fmt.Errorf("%w: %s has locked its user PIN (CKF_USER_PIN_LOCKED)", signer.ErrAuth, found.id),
			"have the security officer set a new user PIN (C_InitPIN; pkcs11-tool --init-pin)")
	case flags&pkcs11.CKF_USER_PIN_FINAL_TRY != 0:
		return r.fail(opLogin, fmt.Errorf("%w: %s allows one more try of its user PIN before it locks (CKF_USER_PIN_FINAL_TRY); it is left to you", signer.ErrAuth, found.id),
			"log in once by hand with the right PIN (pkcs11-tool --login --test), which resets the counter")
	}
	return nil
}

// list prints what there is, at most maxListed of it.
func list(items []string) string {
	switch n := len(items); {
	case n == 0:
		return "none"
	case n > maxListed:
		return strings.Join(items[:maxListed], "; ") + "; and more"
	}
	return strings.Join(items, "; ")
}
