//go:build cgo

package pkcs11

import (
	"context"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"

	"hsmsign/secret"
	"hsmsign/signer"
)

// pinVariable is the environment variable that holds the PIN when the reference does not say where it is.
const pinVariable = "HSMSIGN_PIN"

// readPIN gets the PIN of a token that wants one, and keeps it. A token with a PIN pad of its own is given none,
// unless the reference names one.
func (t *token) readPIN(ctx context.Context, r reference, found foundToken, opts Options) error {
	if found.info.Flags&pkcs11.CKF_LOGIN_REQUIRED == 0 {
		return nil
	}
	if found.info.Flags&pkcs11.CKF_PROTECTED_AUTHENTICATION_PATH != 0 && r.pinValue == "" && r.pinSource == "" {
		opts.warn(fmt.Sprintf("token %q takes its PIN at its own PIN pad, which waits for it now", t.id.label))
		return nil
	}
	pin, err := r.readPIN(ctx, t.id, opts)
	if err != nil {
		return r.fail(opLogin, err, "")
	}
	// Whoever waited for this PIN may have gone: then nobody is left who wants it sent.
	if err := ctx.Err(); err != nil {
		clear(pin)
		return r.fail(opLogin, fmt.Errorf("%w: %w", signer.ErrUnavailable, err), "")
	}
	keepInMemory(pin)
	t.pin = pin
	return nil
}

// readPIN gets the PIN from where the reference says; the caller clears it.
func (r reference) readPIN(ctx context.Context, id tokenID, opts Options) ([]byte, error) {
	if opts.askPIN != nil {
		return opts.askPIN(ctx, id.label, id.serial)
	}
	if r.pinValue != "" {
		opts.warn("the PIN stands in the key reference (pin-value), where process lists and logs show it; use pin-source=file:PATH")
		return []byte(r.pinValue), nil
	}
	src := secret.Source{Label: fmt.Sprintf("PIN of token %q", id.label), From: r.pinSource, Env: pinVariable}
	pin, err := opts.Secrets.Read(ctx, src)
	if errors.Is(err, secret.ErrInsecureMode) && r.anyPINMode {
		opts.warn(fmt.Sprintf("the PIN file of token %q can be read by others, and insecure-mode=allow lets it pass; run chmod 600 on it", id.label))
		src.AnyMode = true
		pin, err = opts.Secrets.Read(ctx, src)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", signer.ErrAuth, err)
	}
	return pin, nil
}

// sendPIN logs in as user (CKU_USER, or CKU_CONTEXT_SPECIFIC for one signature) with the PIN that is kept. A PIN
// that the token refuses is the last one it is sent.
func (t *token) sendPIN(lib cryptoki, sh pkcs11.SessionHandle, user uint) error {
	t.auth.Lock()
	defer t.auth.Unlock()
	if t.refused != nil {
		return noMore(t.refused)
	}
	// The string is a copy that cannot be cleared; the library's interface asks for it. It is empty for a PIN pad
	// (PKCS#11 3.0 section 5.6.8).
	err := call("C_Login", lib.Login(sh, user, string(t.pin)))
	if is(err, pkcs11.CKR_USER_ALREADY_LOGGED_IN) {
		return nil
	}
	if classOf(err) == classAuth {
		t.refused = err
	}
	return err
}

// latched is why no PIN is sent to the token any more, or nil.
func (t *token) latched() error {
	t.auth.Lock()
	defer t.auth.Unlock()
	if t.refused == nil {
		return nil
	}
	return noMore(t.refused)
}

func noMore(refused error) error { return fmt.Errorf("%w; no PIN was sent again", refused) }

// forgetPIN clears the PIN.
func (t *token) forgetPIN() {
	t.auth.Lock()
	defer t.auth.Unlock()
	clear(t.pin)
	t.pin = nil
}

func (o Options) warn(text string) {
	if o.Warn != nil {
		o.Warn(text)
	}
}
