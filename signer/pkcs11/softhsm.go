//go:build cgo

package pkcs11

import (
	"context"
	"errors"
	"time"

	"github.com/miekg/pkcs11"

	"hsmsign/signer"
)

// SoftHSM2 writes to a token's file at each login: it truncates the file, and releases its lock before it has written
// the new content. While another process does that, the token looks absent, damaged or without a PIN, and what the
// module has read in C_Initialize stays wrong until the next C_Initialize. So these answers are not believed at once:
// the module is initialized again, unless other keys of this process use it and have found it well.
const (
	settleTries = 8 // to find a token
	loginTries  = 3 // limits how often one PIN is sent
	settlePause = 50 * time.Millisecond
)

// findSettledToken is findToken, and repeats the search for a token that does not exist. The caller holds m.mu and has
// retained the module.
func (m *module) findSettledToken(ctx context.Context, r reference) (foundToken, error) {
	for try := 1; ; try++ {
		found, err := m.findToken(r)
		if try == settleTries || !errors.Is(err, signer.ErrKeyNotFound) || !m.settle(ctx) {
			return found, err
		}
	}
}

// attachSettled is attach, and repeats it after the answers of a half-written token. None of these answers is about the
// PIN that was sent. The caller holds m.mu.
func (m *module) attachSettled(ctx context.Context, r reference, t *token, found *foundToken) error {
	for try := 1; ; try++ {
		err := m.attach(r, t, *found)
		halfWritten := is(err, pkcs11.CKR_GENERAL_ERROR) || is(err, pkcs11.CKR_USER_PIN_NOT_INITIALIZED)
		if try == loginTries || !halfWritten || !m.settle(ctx) {
			return err
		}
		if *found, err = m.findSettledToken(ctx, r); err != nil {
			return err
		}
	}
}

// softHSM is the manufacturer of SoftHSM2's tokens.
const softHSM = "SoftHSM project"

// refresh lets the module see what other processes have written to the token. SoftHSM2 reads a token again when its
// generation number has changed; two processes that write at the same time both count to the same number, and neither
// sees the object of the other until the next C_Initialize. The caller holds m.mu and has retained the token.
func (m *module) refresh(ctx context.Context, r reference, t *token, found *foundToken) error {
	if found.id.manufacturer != softHSM || m.foreign {
		return nil
	}
	err := m.signing.close(ctx, m.wait)
	if err != nil {
		return err
	}
	defer m.signing.open()
	_ = m.lib.CloseSession(t.anchor) // C_Finalize would close it too
	if err = m.restart(); err != nil {
		return err
	}
	if *found, err = m.findSettledToken(ctx, r); err != nil {
		return err
	}
	return m.attachSettled(ctx, r, t, found)
}

// settle waits a moment and initializes the module again. It returns false if another try is useless. The caller holds
// m.mu and has retained the module.
func (m *module) settle(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(settlePause):
	}
	if m.keys > 1 || m.foreign {
		return true
	}
	_ = m.finalize() // C_Initialize says whether it matters
	return m.initialize() == nil
}
