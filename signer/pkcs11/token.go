//go:build cgo

package pkcs11

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/miekg/pkcs11"

	"hsmsign/fault"
	"hsmsign/signer"
	"hsmsign/signer/pkcs11/internal/uri"
)

// maxListed is how many tokens or keys an error lists.
const maxListed = 10

const opFindToken = "find the token of"

// String returns the attributes that people know a token by.
func (id tokenID) String() string { return fmt.Sprintf("token=%q serial=%q", id.label, id.serial) }

// token is a token that was opened in this process. The entry exists as long as the process.
type token struct {
	id  tokenID
	pin *pinState

	// Guarded by the module's mu.
	keys     int  // open keys
	keepsPIN bool // pin.keep was called for them
	// anchor is a session that stays open while there are keys: a token logs everybody out when its last session closes
	// (PKCS#11 3.0 section 5.6.2).
	anchor     pkcs11.SessionHandle
	needsLogin bool // CKF_LOGIN_REQUIRED

	// now is the login that sessions and object handles belong to; nil when it was lost.
	now        atomic.Pointer[attachment]
	readWrite  atomic.Bool // the token refuses read-only sessions
	reconnects atomic.Uint64
}

// attachment is one login to a token; its address distinguishes it from others.
type attachment struct{ slot uint }

// foundToken is a token as it is now.
type foundToken struct {
	slot uint
	id   tokenID
	info pkcs11.TokenInfo
}

// findToken returns the one initialized token that the reference names. The caller holds m.mu.
func (m *module) findToken(r reference) (foundToken, error) {
	matches, all, err := m.findTokens(r)
	switch {
	case err != nil:
		return foundToken{}, err
	case len(matches) == 0:
		return foundToken{}, r.wrap(opFindToken, fault.Errorf("%w: no token matches; there: %s", signer.ErrKeyNotFound, list(all)).
			Fix("correct the token attributes of the reference; an HSM that cannot be reached shows no tokens either"))
	case len(matches) == 1:
		return matches[0], nil
	}
	var names []string
	for _, t := range matches {
		names = append(names, t.id.String())
	}
	return foundToken{}, r.wrap(opFindToken, fault.Errorf("%w: %d tokens match: %s", signer.ErrAmbiguousKey, len(matches), list(names)).
		Fix("add token=, serial= or slot-id= to the reference"))
}

// findTokens returns every initialized token that the reference matches, and the names of all tokens. The caller holds
// m.mu.
func (m *module) findTokens(r reference) (matches []foundToken, all []string, err error) {
	defer func() { err = r.wrap(opFindToken, err) }()
	lib, err := m.lib.GetInfo()
	if err != nil {
		return nil, nil, call("C_GetInfo", err)
	}
	version := fmt.Sprintf("%d.%d", lib.LibraryVersion.Major, lib.LibraryVersion.Minor)
	if !r.path.Matches("library-manufacturer", lib.ManufacturerID) || !r.path.Matches("library-description", lib.LibraryDescription) ||
		!r.path.Matches("library-version", version) {
		return nil, nil, fault.Errorf("%w: the module is %q of %q, version %s", signer.ErrKeyNotFound, lib.LibraryDescription, lib.ManufacturerID, version).
			Fix("correct the library attributes of the reference, or omit them")
	}
	slots, err := m.lib.GetSlotList(true)
	if err != nil {
		return nil, nil, call("C_GetSlotList", err)
	}
	for _, slot := range slots {
		info, err := m.tokenInfo(slot)
		if err != nil {
			// One broken reader must not hide the others.
			all = append(all, fmt.Sprintf("slot %d: %v", slot, err))
			continue
		}
		if info.Flags&pkcs11.CKF_TOKEN_INITIALIZED == 0 {
			continue
		}
		t := foundToken{slot, tokenID{info.Label, info.SerialNumber, info.Model, info.ManufacturerID}, info}
		all = append(all, t.id.String())
		ok, err := m.tokenMatches(r.path, t)
		if err != nil {
			return nil, nil, err
		}
		if ok {
			matches = append(matches, t)
		}
	}
	return matches, all, nil
}

// tokenInfo returns the answer of C_GetTokenInfo. Its texts are padded with spaces (PKCS#11 3.0 section 3.2); tpm2-pkcs11
// pads with zero bytes, and no reference could name those.
func (m *module) tokenInfo(slot uint) (pkcs11.TokenInfo, error) {
	info, err := m.lib.GetTokenInfo(slot)
	for _, text := range []*string{&info.Label, &info.ManufacturerID, &info.Model, &info.SerialNumber} {
		*text = strings.TrimRight(*text, " \x00")
	}
	return info, call("C_GetTokenInfo", err)
}

func (m *module) tokenMatches(p uri.Path, t foundToken) (bool, error) {
	if !p.Matches("token", t.id.label) || !p.Matches("serial", t.id.serial) || !p.Matches("model", t.id.model) ||
		!p.Matches("manufacturer", t.id.manufacturer) || !p.Matches("slot-id", fmt.Sprint(t.slot)) {
		return false, nil
	}
	slot, err := m.lib.GetSlotInfo(t.slot)
	if err != nil {
		return false, call("C_GetSlotInfo", err)
	}
	return p.Matches("slot-manufacturer", slot.ManufacturerID) && p.Matches("slot-description", slot.SlotDescription), nil
}

// retainToken counts one more key of a token, and logs in for the first. found may change: a token that was found again
// may be in another slot. The caller holds m.mu.
func (m *module) retainToken(ctx context.Context, r reference, found *foundToken, opts Options) (*token, error) {
	t := m.tokens[found.id]
	if t == nil {
		t = &token{id: found.id, pin: m.pin(found.id)}
		m.tokens[found.id] = t
	}
	if err := t.pin.latched(); err != nil {
		return nil, r.wrap(opLogin, err)
	}
	if t.keys == 0 {
		err := t.keepPIN(ctx, r, *found, opts)
		if err == nil {
			err = m.attachSettled(ctx, r, t, found)
		}
		if err != nil {
			t.dropPIN()
			return nil, err
		}
	}
	t.keys++
	return t, nil
}

// releaseToken follows each retainToken that returned no error. The caller holds m.mu.
func (m *module) releaseToken(t *token) error {
	t.keys--
	if t.keys > 0 {
		return nil
	}
	t.dropPIN()
	if t.now.Swap(nil) == nil {
		return nil
	}
	return unlessDead(call("C_CloseSession", m.lib.CloseSession(t.anchor)))
}

// attach opens the anchor and logs in with the PIN that is kept. The caller holds m.mu.
func (m *module) attach(r reference, t *token, found foundToken) error {
	if err := checkPINFlags(r, found); err != nil {
		return err
	}
	sh, err := t.openSession(m.lib, found.slot, false)
	if err != nil {
		return r.wrap("open", advise(err))
	}
	t.needsLogin = found.info.Flags&pkcs11.CKF_LOGIN_REQUIRED != 0
	if t.needsLogin {
		if err := t.pin.send(m.lib, sh, pkcs11.CKU_USER); err != nil {
			_ = m.lib.CloseSession(sh) // the first error is reported
			return r.wrap(opLogin, advise(err))
		}
	}
	t.anchor = sh
	t.now.Store(&attachment{found.slot})
	return nil
}

// openSession opens a read-write session if it is to write, or if the token has refused read-only ones.
func (t *token) openSession(lib *pkcs11.Ctx, slot uint, write bool) (pkcs11.SessionHandle, error) {
	const readOnly, readWrite = pkcs11.CKF_SERIAL_SESSION, pkcs11.CKF_SERIAL_SESSION | pkcs11.CKF_RW_SESSION
	if write || t.readWrite.Load() {
		sh, err := lib.OpenSession(slot, readWrite)
		return sh, call("C_OpenSession", err)
	}
	sh, err := lib.OpenSession(slot, readOnly)
	if slices.ContainsFunc([]pkcs11.Error{
		pkcs11.CKR_SESSION_READ_ONLY, pkcs11.CKR_SESSION_READ_WRITE_SO_EXISTS, pkcs11.CKR_TOKEN_WRITE_PROTECTED,
		pkcs11.CKR_FUNCTION_NOT_SUPPORTED, pkcs11.CKR_ARGUMENTS_BAD,
	}, func(code pkcs11.Error) bool { return is(err, code) }) {
		if sh, second := lib.OpenSession(slot, readWrite); second == nil {
			t.readWrite.Store(true)
			return sh, nil
		}
	}
	return sh, call("C_OpenSession", err)
}

// checkPINFlags refuses a token that a wrong PIN would lock, or has locked. The error wraps signer.ErrAuth.
func checkPINFlags(r reference, found foundToken) error {
	switch flags := found.info.Flags; {
	case flags&pkcs11.CKF_LOGIN_REQUIRED == 0:
		return nil
	case flags&pkcs11.CKF_USER_PIN_LOCKED != 0:
		return r.wrap(opLogin, fault.Errorf("%w: %s has locked its user PIN (CKF_USER_PIN_LOCKED)", signer.ErrAuth, found.id).
			Fix(hintLocked))
	case flags&pkcs11.CKF_USER_PIN_FINAL_TRY != 0:
		return r.wrap(opLogin, fault.Errorf("%w: %s locks after one more wrong user PIN (CKF_USER_PIN_FINAL_TRY), so none is sent", signer.ErrAuth, found.id).
			Fix("log in once by hand with the right PIN (pkcs11-tool --login --test), which resets the counter"))
	}
	return nil
}

// list joins at most maxListed items.
func list(items []string) string {
	switch n := len(items); {
	case n == 0:
		return "none"
	case n > maxListed:
		return strings.Join(items[:maxListed], "; ") + "; and more"
	}
	return strings.Join(items, "; ")
}
