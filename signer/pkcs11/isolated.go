//go:build cgo

package pkcs11

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"hsmsign/fault"
	"hsmsign/signer"
	"hsmsign/signer/isolate"
)

// isolatedKey is a key whose module runs in a worker process. It is the parent's side: package isolate starts and
// replaces the workers, and isolatedKey gives them their PIN.
type isolatedKey struct {
	*isolate.Key
	ref    reference
	opts   Options
	module *module // not loaded here

	mu  sync.Mutex
	pin *pinState // of the token that the workers log in to, kept; nil: none asked for a PIN
}

// openIsolated opens a key in a worker process.
func (o Options) openIsolated(ctx context.Context, r reference, wanted signer.OpenOptions) (signer.Signer, error) {
	if len(o.Worker) == 0 {
		return nil, r.wrap("open", fault.Errorf("%w: isolate=yes: this program has no worker process for PKCS#11 modules", signer.ErrUnsupported).
			Fix("write isolate=no in the key reference"))
	}
	m, err := findModule(r)
	if err != nil {
		return nil, err
	}
	sessions := r.sessions
	if _, set := r.ref.Query("max-sessions"); !set {
		sessions *= 2 // while one answer and the next question cross, another session works
	}
	variable, _ := strings.CutPrefix(r.pinSource, "env:")
	k := &isolatedKey{ref: r, opts: o, module: m}
	k.Key, err = isolate.Open(ctx, r.ref, wanted, isolate.Config{
		Command: o.Worker, Lanes: sessions, Ref: r.forWorker(m.path), DropEnv: variable, Login: k.login, Refused: k.refused, Warn: o.warn,
	})
	if err != nil {
		return nil, err
	}
	return k, nil
}

// RunWorker is the whole work of a worker process; see isolate.Serve. args are the arguments that were added to
// Options.Worker. The caller exits when it returns.
func RunWorker(ctx context.Context, args []string) error {
	return isolate.Serve(ctx, args, func(ctx context.Context, ref signer.Ref, wanted signer.OpenOptions, parent isolate.Parent) (signer.Signer, error) {
		r, err := parseReference(ref)
		if err != nil {
			return nil, r.wrap("open", err)
		}
		r.sessions = max(1, parent.Lanes)
		opts := Options{Warn: parent.Warn, askPIN: func(ctx context.Context, id tokenID) ([]byte, error) {
			return parent.Secret(ctx, strings.Join([]string{id.label, id.serial, id.model, id.manufacturer}, "\x00"))
		}}
		return opts.openHere(ctx, r, wanted)
	})
}

// token returns the PIN of the token that the workers log in to, or nil.
func (k *isolatedKey) token() *pinState {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.pin
}

// refused latches the token's PIN after a signature.
func (k *isolatedKey) refused(err error) {
	if pin := k.token(); pin != nil {
		pin.refuse(err)
	}
}

// login runs the start of one worker: one worker of a module at a time opens its key, and none whose PIN was refused.
func (k *isolatedKey) login(ctx context.Context, start func(isolate.Secret) error) error {
	if err := k.module.turn.LockContext(ctx); err != nil {
		return k.ref.wrap("open", advise(err))
	}
	defer k.module.turn.Unlock()
	if pin := k.token(); pin != nil {
		if err := pin.latched(); err != nil {
			return k.ref.wrap(opLogin, err)
		}
	}
	l := &workerLogin{key: k}
	return l.end(start(l.secret))
}

// Close ends the worker; see isolate.Key. The token's PIN is forgotten with its last key.
func (k *isolatedKey) Close() error {
	err := k.Key.Close()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.pin != nil {
		k.pin.drop()
		k.pin = nil
	}
	return err
}

// workerLogin is the login of one worker.
type workerLogin struct {
	key *isolatedKey

	// Guarded by the key's mu.
	ended bool      // the worker has opened its key, or failed
	pin   *pinState // whose sending is held; nil: no PIN was sent
	sent  []byte
}

// secret returns a copy of the PIN of the token that the worker names, and holds its sending until the start has ended.
func (l *workerLogin) secret(ctx context.Context, question string) ([]byte, error) {
	part := strings.Split(question, "\x00")
	if len(part) != 4 {
		return nil, fmt.Errorf("%w: the worker process names no token", signer.ErrUnavailable)
	}
	id := tokenID{part[0], part[1], part[2], part[3]}
	pin := l.key.module.pin(id)
	l.key.mu.Lock()
	first, again := cmp.Or(l.pin, l.key.pin), bytes.Clone(l.sent)
	l.key.mu.Unlock()
	switch {
	case first != nil && first != pin:
		clear(again)
		return nil, fmt.Errorf("%w: the reference now names %s, which is another token than before", signer.ErrAuth, id)
	case again != nil:
		return again, nil
	}
	value, err := pin.read(ctx, l.key.ref, id, l.key.opts)
	if err == nil {
		err = l.claim(ctx, pin, value)
	}
	if err != nil {
		clear(value)
		return nil, err
	}
	return value, nil
}

// claim takes the right to send a PIN until end.
func (l *workerLogin) claim(ctx context.Context, pin *pinState, value []byte) error {
	if err := pin.sending.LockContext(ctx); err != nil {
		return err
	}
	err := pin.latched()
	l.key.mu.Lock()
	defer l.key.mu.Unlock()
	if err == nil && l.ended {
		err = fmt.Errorf("%w: the start of the worker process has ended", signer.ErrUnavailable)
	}
	if err != nil {
		pin.sending.Unlock()
		return err
	}
	l.pin, l.sent = pin, bytes.Clone(value)
	return nil
}

// end returns the error of the start. A PIN that worked is kept for the key, and one that was refused is latched.
func (l *workerLogin) end(err error) error {
	l.key.mu.Lock()
	defer l.key.mu.Unlock()
	l.ended = true
	if l.pin == nil {
		return err
	}
	defer l.pin.sending.Unlock()
	if errors.Is(err, isolate.ErrSecretRefused) {
		l.pin.refuse(inner(err))
	}
	if err == nil && l.key.pin == nil {
		l.pin.keep(bytes.Clone(l.sent))
		l.key.pin = l.pin
	}
	clear(l.sent)
	l.sent = nil
	return err
}

// inner returns the error without operation and reference.
func inner(err error) error {
	if e, ok := errors.AsType[*signer.Error](err); ok {
		return e.Err
	}
	return err
}
