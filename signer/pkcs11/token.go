//go:build cgo

package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/miekg/pkcs11"

	"hsmsign/signer"
)

// maxListed bounds how many tokens or keys an error lists.
const maxListed = 10

// pinVariable is the environment variable that holds the PIN when the reference does not say where it is.
const pinVariable = "HSMSIGN_PIN"

// tokenID tells tokens of one module apart for as long as the process lives; slots may change.
type tokenID struct{ label, serial, model, manufacturer string }

func (id tokenID) String() string { return fmt.Sprintf("token=%q serial=%q", id.label, id.serial) }

// token is a token that was opened in this process. Guarded by its module's mu.
type token struct {
	keys int // open keys
	// anchor is a session that stays open while there are keys: a token logs everybody out when the last
	// session closes (PKCS#11 3.0 section 5.6.2).
	anchor pkcs11.SessionHandle
	// refused is why the token refused its PIN. It is never cleared.
	refused error
}

// foundToken is a token as it is now.
type foundToken struct {
	slot uint
	id   tokenID
	info pkcs11.TokenInfo
}

// findToken looks for the one initialized token that the reference names. The caller holds m.mu.
func (m *module) findToken(r reference) (foundToken, error) {
	const op = "find the token of"
	lib, err := m.lib.GetInfo()
	if err != nil {
		return foundToken{}, r.fail(op, call("C_GetInfo", err), "")
	}
	if !r.path.matches("library-manufacturer", lib.ManufacturerID) || !r.path.matches("library-description", lib.LibraryDescription) ||
		!r.path.matchesVersion(lib.LibraryVersion.Major, lib.LibraryVersion.Minor) {
		return foundToken{}, r.fail(op, fmt.Errorf("%w: the module is %q of %q, version %d.%d", signer.ErrKeyNotFound,
			lib.LibraryDescription, lib.ManufacturerID, lib.LibraryVersion.Major, lib.LibraryVersion.Minor),
			"correct the library attributes of the reference, or leave them out")
	}
	slots, err := m.lib.GetSlotList(true)
	if err != nil {
		return foundToken{}, r.fail(op, call("C_GetSlotList", err), "")
	}
	var matches []foundToken
	var matching, there []string
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
			return foundToken{}, r.fail(op, err, "")
		}
		if ok {
			matches = append(matches, t)
			matching = append(matching, t.id.String())
		}
	}
	switch len(matches) {
	case 0:
		return foundToken{}, r.fail(op, fmt.Errorf("%w: no token matches; there: %s", signer.ErrKeyNotFound, list(there)),
			"correct the token attributes of the reference; an HSM that is not reachable shows no tokens either")
	case 1:
		return matches[0], nil
	}
	return foundToken{}, r.fail(op, fmt.Errorf("%w: %d tokens match: %s", signer.ErrAmbiguousKey, len(matches), list(matching)),
		"add token=, serial= or slot-id= to the reference")
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

// retainToken counts one key more on a token, and logs in to it for the first. The caller holds m.mu.
func (m *module) retainToken(ctx context.Context, r reference, found foundToken, opts Options) (*token, error) {
	t := m.tokens[found.id]
	if t == nil {
		t = &token{}
		m.tokens[found.id] = t
	}
	if t.refused != nil {
		return nil, r.fail("log in to the token of", fmt.Errorf("%w; no PIN was sent again", t.refused), "correct the PIN, then start the program anew")
	}
	if t.keys == 0 {
		sh, err := m.lib.OpenSession(found.slot, pkcs11.CKF_SERIAL_SESSION)
		if err != nil {
			return nil, r.fail("open", call("C_OpenSession", err), "")
		}
		if err := m.login(ctx, r, sh, found, opts); err != nil {
			if classOf(err) == classAuth {
				t.refused = errors.Unwrap(err)
			}
			_ = m.lib.CloseSession(sh) // the first error is the one to tell
			return nil, err
		}
		t.anchor = sh
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
	return call("C_CloseSession", m.lib.CloseSession(t.anchor))
}

// login sends the PIN, once.
func (m *module) login(ctx context.Context, r reference, sh pkcs11.SessionHandle, found foundToken, opts Options) error {
	const op = "log in to the token of"
	flags := found.info.Flags
	switch {
	case flags&pkcs11.CKF_LOGIN_REQUIRED == 0:
		return nil
	case flags&pkcs11.CKF_USER_PIN_LOCKED != 0:
		return r.fail(op, fmt.Errorf("%w: %s has locked its user PIN (CKF_USER_PIN_LOCKED)", signer.ErrAuth, found.id),
			"have the security officer set a new user PIN (C_InitPIN; pkcs11-tool --init-pin)")
	case flags&pkcs11.CKF_USER_PIN_FINAL_TRY != 0:
		return r.fail(op, fmt.Errorf("%w: %s allows one more try of its user PIN before it locks (CKF_USER_PIN_FINAL_TRY); it is left to you", signer.ErrAuth, found.id),
			"log in once by hand with the right PIN (pkcs11-tool --login --test), which resets the counter")
	}
	pin, err := r.readPIN(ctx, found.id, opts)
	if err != nil {
		return r.fail(op, err, "")
	}
	defer clear(pin)
	// Whoever waited for this PIN may have gone: then nobody is left who wants it sent.
	if err := ctx.Err(); err != nil {
		return r.fail(op, fmt.Errorf("%w: %w", signer.ErrUnavailable, err), "")
	}
	// The string is a copy that cannot be cleared; the library's interface asks for it.
	err = call("C_Login", m.lib.Login(sh, pkcs11.CKU_USER, string(pin)))
	if err == nil || is(err, pkcs11.CKR_USER_ALREADY_LOGGED_IN) {
		return nil
	}
	return r.fail(op, err, "check the PIN before you start again: a token locks itself after a few wrong ones")
}

// readPIN gets the PIN from where the reference says; the caller clears it.
func (r reference) readPIN(ctx context.Context, id tokenID, opts Options) ([]byte, error) {
	if r.pinValue != "" {
		opts.warn("the PIN stands in the key reference (pin-value), where process lists and logs show it; use pin-source=file:PATH")
		return []byte(r.pinValue), nil
	}
	src := signer.Source{Label: fmt.Sprintf("PIN of token %q", id.label), From: r.pinSource, Env: pinVariable}
	pin, err := opts.Secrets.Read(ctx, src)
	if !errors.Is(err, signer.ErrInsecureMode) || !r.anyPINMode {
		return pin, err
	}
	opts.warn(fmt.Sprintf("the PIN file of token %q can be read by others, and insecure-mode=allow lets it pass; run chmod 600 on it", id.label))
	src.AnyMode = true
	return opts.Secrets.Read(ctx, src)
}

func (o Options) warn(text string) {
	if o.Warn != nil {
		o.Warn(text)
	}
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
