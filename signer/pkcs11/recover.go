//go:build cgo

package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/miekg/pkcs11"

	"hsmsign/signer"
)

// recoveryPause is the least time between two C_Finalize and C_Initialize of a module: a device that is down
// stays so for a while, and every login is written to its audit log.
const recoveryPause = 30 * time.Second

// recoveryWait bounds how long a recovery waits for calls of the module to end.
const recoveryWait = 5 * time.Second

// errOtherKey: under the reference lies a key now that is not the one that was opened.
var errOtherKey = fmt.Errorf("%w: the reference names another key now: its modulus is not that of the key that was opened, so nothing is signed with it", signer.ErrKeyNotFound)

// binding is where the key is: its object handle, and the login in which that handle means this key.
type binding struct {
	login  *attachment
	object pkcs11.ObjectHandle
	always bool // CKA_ALWAYS_AUTHENTICATE: every signature wants a login of its own
}

// bound is the binding, and whether it still holds.
func (k *key) bound() (*binding, bool) {
	b := k.binding.Load()
	return b, b != nil && b.login == k.token.now.Load()
}

// bind finds the key in the present login of its token. It must be the key that was opened. The caller holds
// the module's mu, and no signature of this key is under way.
func (k *key) bind() error {
	k.binding.Store(nil)
	f := finder{k.module.lib, k.token.anchor, k.ref}
	object, pub, err := f.privateKey()
	if err != nil {
		return err
	}
	if k.pub != nil && !k.pub.Equal(pub) {
		return k.ref.fail("find", errOtherKey, fixFor(errOtherKey))
	}
	always, err := f.alwaysAuthenticate(object)
	if err != nil {
		return k.ref.fail("find", err, fixFor(err))
	}
	if k.pub == nil { // later on Public reads it without a lock
		k.pub = pub
	}
	k.binding.Store(&binding{k.token.now.Load(), object, always})
	return nil
}

// recover makes the key fit to sign again after a call under the binding failed for a cause other than the
// request: it opens what was closed, logs in where the token has forgotten that, initializes the module anew
// where nothing less helps, and finds the key again. Nothing of it is done twice for callers that failed together.
func (k *key) recover(ctx context.Context, failed *binding, cause error) error {
	m := k.module
	if err := m.mu.LockContext(ctx); err != nil {
		return err
	}
	defer m.mu.Unlock()
	now, ok := k.bound()
	if ok && now != failed {
		return nil // another caller was here before
	}
	if err := m.signing.close(ctx, m.wait); err != nil {
		return err
	}
	defer m.signing.open()
	k.sessions.evict()
	if is(cause, pkcs11.CKR_SESSION_READ_ONLY) {
		k.token.readWrite.Store(true)
	}
	// A module that somebody else's recovery has initialized anew needs no other one.
	if cause == nil || classOf(cause) == classSession || !ok {
		err := k.rebind()
		if err == nil || !worthRecovery(err) {
			return err
		}
		cause = err
	}
	if err := m.reinitialize(cause); err != nil {
		return err
	}
	return k.rebind()
}

// worthRecovery: the module, the session, or a token or key that is gone; SoftHSM2 shows a token folder that came
// back after C_Initialize only. Not a PIN, an ambiguous reference or another key.
func worthRecovery(err error) bool {
	c := classOf(err)
	return c == classModule || c == classSession || errors.Is(err, signer.ErrKeyNotFound) && !errors.Is(err, errOtherKey)
}

// rebind logs in again where that is due, and finds the key. The caller holds the module's mu, with the gate shut.
func (k *key) rebind() error {
	if !k.module.attached(k.token) {
		if err := k.module.reattach(k.ref, k.token); err != nil {
			return err
		}
	}
	return k.bind()
}

// attached: the anchor is there and, where the token wants that, logged in.
func (m *module) attached(t *token) bool {
	if t.now.Load() == nil {
		return false
	}
	info, err := m.lib.GetSessionInfo(t.anchor)
	return err == nil && (!t.needsLogin || info.State == pkcs11.CKS_RO_USER_FUNCTIONS || info.State == pkcs11.CKS_RW_USER_FUNCTIONS)
}

// reattach logs in to a token again, wherever it is by now. The caller holds m.mu, with the gate shut.
func (m *module) reattach(r reference, t *token) error {
	before := t.now.Swap(nil)
	if err := t.latched(); err != nil {
		return r.fail(opLogin, err, fixFor(err))
	}
	again := reference{ref: r.ref, path: uri{{"token", t.id.label}, {"serial", t.id.serial}, {"model", t.id.model}, {"manufacturer", t.id.manufacturer}}}
	matches, there, err := m.findTokens(again)
	if err != nil {
		return err
	}
	if len(matches) != 1 {
		err := fmt.Errorf("%w: %w: %s is not there any more; there: %s", signer.ErrUnavailable, signer.ErrKeyNotFound, t.id, list(there))
		return r.fail(opFindToken, err, fixFor(err))
	}
	if before != nil && !m.foreign {
		// None of the sessions is worth keeping, and those that live on would count against the token's limit.
		_ = m.lib.CloseAllSessions(before.slot)
	}
	if err := m.attach(r, t, matches[0]); err != nil {
		return err
	}
	t.reconnects.Add(1)
	return nil
}

// reinitialize puts the module through C_Finalize and C_Initialize, after which every token must be logged in to
// again. Between two of them it fails at once, with the cause and the time when the next one may be. The caller
// holds m.mu, with the gate shut.
func (m *module) reinitialize(cause error) error {
	var told *signer.Error
	if errors.As(cause, &told) {
		cause = told.Err // which is told with this key's reference again
	}
	if m.foreign {
		return fmt.Errorf("%w: %w; another part of this program has initialized the module, and must do it again", signer.ErrUnavailable, cause)
	}
	if time.Now().Before(m.next) {
		return fmt.Errorf("%w: %w; the module is connected again at %s at the earliest", signer.ErrUnavailable, cause, m.next.UTC().Format(time.TimeOnly+" MST"))
	}
	m.next = time.Now().Add(m.pause)
	for _, t := range m.tokens {
		t.now.Store(nil)
	}
	_ = m.finalize() // a module in trouble may refuse this; C_Initialize says whether it matters
	if err := m.initialize(); err != nil {
		return err
	}
	m.reinitialized.Add(1)
	return nil
}
