//go:build unix

package isolate

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"hsmsign/fault"
	"hsmsign/signer"
)

const (
	// startLimit is the time limit for the start of a worker that replaces a dead one.
	startLimit = 30 * time.Second
	// The wait between workers that die without a signature doubles from minBackOff to maxBackOff.
	minBackOff, maxBackOff = 100 * time.Millisecond, 10 * time.Second
)

// start is the start of a worker, for all callers that wait for it.
type start struct {
	done chan struct{}
	w    *worker // after done
	err  error   // after done
}

// running returns the worker, and starts one if there is none.
func (k *Key) running(ctx context.Context) (*worker, error) {
	k.mu.Lock()
	if k.current != nil && !k.current.alive() {
		k.lose(context.Cause(k.current.life), k.current.died)
		k.current = nil
	}
	var err error
	switch {
	case k.current != nil:
	case k.ctx.Err() != nil:
		err = signer.ErrClosed
	case k.starting != nil:
	case time.Now().Before(k.notUntil):
		err = fault.Errorf("%w: the next worker process may be started at %s; the last one: %w", signer.ErrUnavailable,
			k.notUntil.Format(time.RFC3339Nano), k.lost).Fix(hintStore)
	default:
		k.starting = &start{done: make(chan struct{})}
		go k.replace(k.starting)
	}
	w, s := k.current, k.starting
	k.mu.Unlock()
	if w != nil || err != nil {
		return w, err
	}
	select {
	case <-s.done:
		return s.w, s.err
	case <-ctx.Done():
		return nil, late(ctx, "the new worker process is not ready")
	}
}

// lose counts the loss of a worker. The caller holds k.mu.
func (k *Key) lose(why error, at time.Time) {
	k.lost = why
	k.notUntil = at.Add(k.backOff)
	k.backOff = min(max(2*k.backOff, minBackOff), maxBackOff)
}

// replace launches the next worker.
func (k *Key) replace(s *start) {
	ctx, cancel := context.WithTimeout(k.ctx, startLimit)
	defer cancel()
	w, err := k.launch(ctx)
	k.mu.Lock()
	defer k.mu.Unlock()
	s.w, s.err = w, err
	k.current, k.starting = w, nil
	switch {
	case err == nil:
		k.restarts++
	case !errors.Is(err, ErrSecretRefused): // after that no worker is started
		k.lose(inner(err), time.Now())
	}
	close(s.done)
}

// launch starts a worker and opens the key in it, within one Login.
func (k *Key) launch(ctx context.Context) (w *worker, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	begin := func(secret Secret) (err error) {
		if w, err = startWorker(ctx, k.cfg, secret, k.warn); err == nil {
			err = k.openIn(ctx, w)
		}
		return k.fail("open", err)
	}
	if k.cfg.Login == nil {
		err = begin(nil)
	} else {
		err = k.cfg.Login(ctx, begin)
	}
	if err == nil {
		return w, nil
	}
	if w != nil {
		w.kill(signer.ErrClosed)
		w.process.gone(exitWait) // what cannot be killed is left to the system
	}
	return nil, err
}

// openIn opens the key in a new worker. It must be the key of the workers before.
func (k *Key) openIn(ctx context.Context, w *worker) error {
	var wanted []byte
	if k.open.PublicKey != nil {
		var err error
		if wanted, err = x509.MarshalPKIXPublicKey(k.open.PublicKey); err != nil {
			return fmt.Errorf("%w: the wanted public key: %w", signer.ErrBadKey, err)
		}
	}
	w.send(frame{kindOpen, [][]byte{[]byte(k.cfg.Ref.Encode()), wanted}})
	var answer frame
	select {
	case answer = <-w.opened:
	case <-w.life.Done():
		return context.Cause(w.life)
	case <-ctx.Done():
		return late(ctx, "the worker process has not opened the key")
	}
	if answer.kind == kindFailed {
		op, err := failed(answer)
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.refused != nil {
			err = w.refused // it wraps more than what crossed the socket and came back
		}
		return k.fail(op, err)
	}
	return k.check(answer.fields[0])
}

// check reads the public key of a worker, which must be that of the first one.
func (k *Key) check(spki []byte) error {
	parsed, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return fmt.Errorf("%w: its public key: %w", signer.ErrBadKey, err)
	}
	pub, ok := parsed.(*rsa.PublicKey)
	switch {
	case !ok:
		return fmt.Errorf("%w: a key of type %T", signer.ErrBadKey, parsed)
	case k.pub == nil:
		k.pub = pub
	case !k.pub.Equal(pub):
		return fault.Errorf("%w: the reference now names another key than before", signer.ErrKeyNotFound).
			Fix("restore the key; or, if the change is intended, restart the program")
	}
	return nil
}

// warn passes a warning on, once: every later worker would repeat it.
func (k *Key) warn(text string) {
	k.mu.Lock()
	told := k.warned[text] || len(k.warned) == maxWarnings
	if !told {
		k.warned[text] = true
	}
	k.mu.Unlock()
	if !told && k.cfg.Warn != nil {
		k.cfg.Warn(text)
	}
}

// inner returns the error without operation and reference.
func inner(err error) error {
	if e, ok := errors.AsType[*signer.Error](err); ok {
		return e.Err
	}
	return err
}
