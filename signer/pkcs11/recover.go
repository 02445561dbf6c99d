//go:build cgo

package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/miekg/pkcs11"

	"hsmsign/signer"
	"hsmsign/signer/pkcs11/internal/uri"
)

// recoveryPause is the time between two recoveries of a module: a device that is down stays down for a while, and it
// writes every login to its audit log.
const recoveryPause = 30 * time.Second

// recoveryWait is how long a recovery waits for calls of the module to end.
const recoveryWait = 5 * time.Second

// errOtherKey: the reference now names a different key.
var errOtherKey = fmt.Errorf("%w: the reference now names a different key: its modulus is not that of the key that was opened, so it does not sign", signer.ErrKeyNotFound)

// binding is the object handle of a key, and the login in which the handle means this key.
type binding struct {
	login  *attachment
	object pkcs11.ObjectHandle
	always bool // CKA_ALWAYS_AUTHENTICATE: every signature needs a separate login
}

// bound returns the binding, and whether it is still valid.
func (k *key) bound() (*binding, bool) {
	b := k.binding.Load()
	return b, b != nil && b.login == k.token.now.Load()
}

// bind finds the key in the present login of its token. It must be the key that was opened. The caller holds the module's
// mu, and no signature of this key is in flight.
func (k *key) bind() error {
	k.binding.Store(nil)
	f := finder{k.module.lib, k.token.anchor, k.ref, k.wanted}
	object, pub, err := f.privateKey()
	if err != nil {
		return err
	}
	if k.pub != nil && !k.pub.Equal(pub) {
		return k.ref.wrap(opFind, advise(errOtherKey))
	}
	always, err := f.alwaysAuthenticate(object)
	if err != nil {
		return k.ref.wrap(opFind, advise(err))
	}
	if k.pub == nil { // Public reads it without a lock
		k.pub = pub
	}
	k.binding.Store(&binding{k.token.now.Load(), object, always})
	return nil
}

// recover repairs the key after a call under the binding failed for another cause than the request: it drops dead
// sessions, logs in if the token has forgotten the login, initializes the module again if nothing less helps, and finds
// the key again. Callers that failed together share one recovery.
func (k *key) recover(ctx context.Context, failed *binding, cause error) error {
	m := k.module
	if err := m.mu.LockContext(ctx); err != nil {
		return err
	}
	defer m.mu.Unlock()
	now, ok := k.bound()
	if ok && now != failed {
		return nil // another caller has recovered it
	}
	if err := m.signing.close(ctx, m.wait); err != nil {
		return err
	}
	defer m.signing.open()
	_ = k.sessions.evict() // a session that fails need not be dead for all
	if is(cause, pkcs11.CKR_SESSION_READ_ONLY) {
		k.token.readWrite.Store(true)
	}
	// After the recovery of another key of the module, it needs no second one.
	if classOf(cause) == classSession || !ok {
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

// worthRecovery reports whether C_Initialize may help: against the failure of a module or session, and if a token or key
// is gone, because SoftHSM2 shows a token folder that came back only after C_Initialize. It does not help against a
// wrong PIN, an ambiguous reference or another key.
func worthRecovery(err error) bool {
	c := classOf(err)
	return c == classModule || c == classSession || errors.Is(err, signer.ErrKeyNotFound) && !errors.Is(err, errOtherKey)
}

// rebind logs in again if necessary, and finds the key. The caller holds the module's mu, with the gate shut.
func (k *key) rebind() error {
	if !k.module.attached(k.token) {
		if err := k.module.reattach(k.ref, k.token); err != nil {
			return err
		}
	}
	return k.bind()
}

// attached reports whether the anchor is open and, if the token needs that, logged in.
func (m *module) attached(t *token) bool {
	if t.now.Load() == nil {
		return false
	}
	info, err := m.lib.GetSessionInfo(t.anchor)
	return err == nil && (!t.needsLogin || info.State == pkcs11.CKS_RO_USER_FUNCTIONS || info.State == pkcs11.CKS_RW_USER_FUNCTIONS)
}

// reattach logs in to a token again, in whatever slot it is now. The caller holds m.mu, with the gate shut.
func (m *module) reattach(r reference, t *token) error {
	before := t.now.Swap(nil)
	if err := t.pin.latched(); err != nil {
		return r.wrap(opLogin, err)
	}
	again := reference{ref: r.ref, path: uri.Path{
		{Name: "token", Value: t.id.label}, {Name: "serial", Value: t.id.serial},
		{Name: "model", Value: t.id.model}, {Name: "manufacturer", Value: t.id.manufacturer},
	}}
	matches, all, err := m.findTokens(again)
	if err != nil {
		return err
	}
	if len(matches) != 1 {
		return r.wrap(opFindToken, advise(fmt.Errorf("%w: %w: %s is gone; there: %s", signer.ErrUnavailable, signer.ErrKeyNotFound, t.id, list(all))))
	}
	if before != nil && !m.foreign {
		// No session is of use any more, and open ones would count against the token's limit.
		_ = m.lib.CloseAllSessions(before.slot)
	}
	if err := m.attach(r, t, matches[0]); err != nil {
		return err
	}
	t.reconnects.Add(1)
	return nil
}

// reinitialize calls C_Finalize and C_Initialize; afterwards every token needs a login. During the pause between two
// recoveries it fails at once, with the cause and the time of the next attempt. The caller holds m.mu, with the gate shut.
func (m *module) reinitialize(cause error) error {
	cause = inner(cause) // the caller adds this key's reference
	if m.foreign {
		return fmt.Errorf("%w: %w; another part of this program has initialized the module and must initialize it again", signer.ErrUnavailable, cause)
	}
	if time.Now().Before(m.next) {
		return fmt.Errorf("%w: %w; the module is connected again at %s at the earliest", signer.ErrUnavailable, cause, m.next.UTC().Format(time.TimeOnly+" MST"))
	}
	m.next = time.Now().Add(m.pause)
	if err := m.restart(); err != nil {
		return err
	}
	m.reinitialized.Add(1)
	return nil
}

// restart calls C_Finalize and C_Initialize; afterwards every token needs a login. The caller holds m.mu, with the gate
// shut.
func (m *module) restart() error {
	for _, t := range m.tokens {
		t.now.Store(nil)
	}
	_ = m.finalize() // a module in trouble may refuse this; C_Initialize says whether it matters
	return m.initialize()
}
