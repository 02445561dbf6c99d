//go:build cgo

package pkcs11

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/miekg/pkcs11"

	"hsmsign/secret"
	"hsmsign/signer"
)

// pinVariable is the environment variable that contains the PIN if the reference does not say where it is.
const pinVariable = "HSMSIGN_PIN"

const opLogin = "log in to the token of"

// pin returns the PIN of a token.
func (m *module) pin(id tokenID) *pinState {
	p, _ := m.pins.LoadOrStore(id, &pinState{})
	return p.(*pinState)
}

// pinState is the user PIN of one token, for keys in this process and in workers alike.
type pinState struct {
	// sending is held while a PIN is on its way to the token, so that none follows one that is refused.
	sending mutex

	mu sync.Mutex
	// value is kept while there are users: a module that was initialized again, a new worker, and a key with
	// CKA_ALWAYS_AUTHENTICATE need it again, and nobody should be asked twice. Nil: none is kept.
	value   []byte
	users   int
	refused error // why the token refused a PIN; never cleared
}

// latched returns why no PIN is sent to the token any more, or nil.
func (p *pinState) latched() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refused == nil {
		return nil
	}
	return advise(fmt.Errorf("%w; no PIN was sent again", p.refused))
}

// refuse notes that the token has refused a PIN. No other follows.
func (p *pinState) refuse(why error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refused == nil {
		p.refused = why
	}
}

// known returns a copy of the PIN that is kept, or nil.
func (p *pinState) known() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return bytes.Clone(p.value)
}

// inUse reports whether a key of the token is open.
func (p *pinState) inUse() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.users > 0
}

// keep counts one more user, and owns the PIN from now on.
func (p *pinState) keep(pin []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.users++
	if p.value != nil {
		clear(pin)
		return
	}
	keepInMemory(pin)
	p.value = pin
}

// drop follows each keep, and clears the PIN after the last.
func (p *pinState) drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.users--; p.users == 0 {
		clear(p.value)
		p.value = nil
	}
}

// send logs in as user (CKU_USER, or CKU_CONTEXT_SPECIFIC for one signature) with the PIN that is kept.
func (p *pinState) send(lib *pkcs11.Ctx, sh pkcs11.SessionHandle, user uint) error {
	p.sending.Lock()
	defer p.sending.Unlock()
	if err := p.latched(); err != nil {
		return err
	}
	pin := p.known()
	defer clear(pin)
	// The string is a copy that cannot be cleared; the library needs it. It is empty for a PIN pad (PKCS#11 3.0 section
	// 5.6.8).
	err := call("C_Login", lib.Login(sh, user, string(pin)))
	if is(err, pkcs11.CKR_USER_ALREADY_LOGGED_IN) {
		return nil
	}
	if classOf(err) == classAuth {
		p.refuse(err)
	}
	return err
}

// keepPIN reads the PIN of a token that needs one and would not be locked by a wrong one, and keeps it. A token with its own PIN pad is sent none unless the
// reference names one.
func (t *token) keepPIN(ctx context.Context, r reference, found foundToken, opts Options) error {
	if err := checkPINFlags(r, found); err != nil || found.info.Flags&pkcs11.CKF_LOGIN_REQUIRED == 0 {
		return err
	}
	if found.info.Flags&pkcs11.CKF_PROTECTED_AUTHENTICATION_PATH != 0 && r.pinValue == "" && r.pinSource == "" {
		opts.warn(fmt.Sprintf("token %q has its own PIN pad, which waits for the PIN now", t.id.label))
		return nil
	}
	pin, err := t.pin.read(ctx, r, t.id, opts)
	if err == nil && ctx.Err() != nil { // the caller has left, so nobody wants the PIN to be sent
		clear(pin)
		err = fmt.Errorf("%w: %w", signer.ErrUnavailable, ctx.Err())
	}
	if err != nil {
		return r.wrap(opLogin, err)
	}
	t.pin.keep(pin)
	t.keepsPIN = true
	return nil
}

// dropPIN follows keepPIN.
func (t *token) dropPIN() {
	if t.keepsPIN {
		t.keepsPIN = false
		t.pin.drop()
	}
}

// read returns the PIN that is kept, or reads it from where the reference says. The caller clears it. Errors are those of
// latched, or wrap signer.ErrAuth or secret.ErrNoFile.
func (p *pinState) read(ctx context.Context, r reference, id tokenID, opts Options) ([]byte, error) {
	if err := p.latched(); err != nil {
		return nil, err
	}
	if pin := p.known(); pin != nil {
		return pin, nil
	}
	if opts.askPIN != nil {
		return opts.askPIN(ctx, id)
	}
	if r.pinValue != "" {
		opts.warn("the key reference contains the PIN (pin-value), where process lists and logs show it; use pin-source=file:PATH")
		return []byte(r.pinValue), nil
	}
	src := secret.Source{Label: fmt.Sprintf("PIN of token %q", id.label), From: r.pinSource, Env: pinVariable}
	pin, err := opts.Secrets.Read(ctx, src)
	if errors.Is(err, secret.ErrInsecureMode) && r.insecure != "" {
		opts.warn(fmt.Sprintf("others can read the PIN file of token %q, which insecure-mode=allow permits; run chmod 600 on it", id.label))
		src.AnyMode = true
		pin, err = opts.Secrets.Read(ctx, src)
	}
	if err != nil && !errors.Is(err, secret.ErrNoFile) {
		err = fmt.Errorf("%w: %w", signer.ErrAuth, err)
	}
	return pin, err
}

// hasPIN reports whether a login needs no question: the PIN is named, or typed at the token's own PIN pad.
func (o Options) hasPIN(r reference, t foundToken) bool {
	return r.pinSource != "" || r.pinValue != "" || o.Secrets.Getenv != nil && o.Secrets.Getenv(pinVariable) != "" ||
		o.Secrets.Prompt != nil && t.info.Flags&pkcs11.CKF_PROTECTED_AUTHENTICATION_PATH != 0
}

func (o Options) warn(text string) {
	if o.Warn != nil {
		o.Warn(text)
	}
}
