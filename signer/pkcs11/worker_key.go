//go:build cgo && unix

package pkcs11

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"

	"hsmsign/signer"
)

const (
	// callLimit bounds a try of a signature whose caller set no deadline.
	callLimit = 30 * time.Second
	// callGrace is what a worker still has after a caller's deadline. Killing it costs its other callers a retry, and a
	// slow HSM that works is not worth that.
	callGrace = 2 * time.Second
	// startLimit bounds the start of a worker that follows a dead one.
	startLimit = 30 * time.Second
	// The wait between workers that die without a signature doubles from the first to the last.
	firstBackOff, lastBackOff = 100 * time.Millisecond, 10 * time.Second
)

// workerKey is a private key whose module runs in a worker process. A worker that dies or hangs is replaced, and
// each signature that was under way is tried once more.
type workerKey struct {
	ref    reference
	opts   Options
	pub    *rsa.PublicKey
	spki   []byte        // of pub: every worker must come up with it
	free   chan int      // the numbers of the lanes that nobody uses; there is one for each session
	closed chan struct{} // closed by Close
	ctx    context.Context
	end    context.CancelFunc // of ctx: no worker is started any more

	limit, grace, wait time.Duration // callLimit, callGrace and closeWait

	closing sync.Once
	endErr  error // readable after closing

	mu       sync.Mutex
	token    *workerToken    // that the workers log in to; nil: none asked for a PIN
	warned   map[string]bool // the warnings that were passed on
	current  *worker         // may be dead; nil: none
	starting *workerStart    // nil: none
	refused  error           // why no PIN may be sent any more
	lost     error           // why the last worker was lost, or not started
	backOff  time.Duration   // after the next loss; zero after a signature
	notUntil time.Time       // when the next worker may be started
	restarts uint64          // workers after the first that have opened the key
}

// workerStart is a worker on its way, for all who wait for it.
type workerStart struct {
	done chan struct{}
	w    *worker // after done
	err  error   // after done
}

// openIsolated opens a key in a worker process of its own.
func openIsolated(ctx context.Context, r reference, opts Options) (signer.Signer, error) {
	if len(opts.Worker) == 0 {
		return nil, r.fail("open", fmt.Errorf("%w: isolate=yes: this program has no worker process for PKCS#11 modules", signer.ErrUnsupported),
			"write isolate=no in the key reference")
	}
	if _, said := r.ref.Query("max-sessions"); !said {
		r.sessions *= 2 // while the answer of one crosses to us and the next question back, another one works
	}
	k := &workerKey{
		ref: r, opts: opts, free: make(chan int, r.sessions), closed: make(chan struct{}),
		limit: callLimit, grace: callGrace, wait: closeWait, warned: map[string]bool{},
	}
	for n := range r.sessions {
		k.free <- n
	}
	k.ctx, k.end = context.WithCancel(context.Background())
	w, err := k.launch(ctx)
	if err != nil {
		k.end()
		return nil, err
	}
	k.current = w
	return k, nil
}

// launch starts a worker, opens the key in it, and holds it to the public key of the workers before. Errors are
// *signer.Error.
func (k *workerKey) launch(ctx context.Context) (*worker, error) {
	m := workerModuleAt(k.ref.module)
	select {
	case m.turn <- struct{}{}:
		defer func() { <-m.turn }()
	case <-ctx.Done():
		err := fmt.Errorf("%w: another key of module %q is being opened: %w", signer.ErrUnavailable, k.ref.module, ctx.Err())
		return nil, k.ref.fail("open", err, fixFor(err))
	}
	l := &login{ctx: ctx, ref: k.ref, opts: k.opts, module: m, same: k.token}
	w, err := startWorker(k.ref, k.opts, l, k.warn)
	if err != nil {
		return nil, k.ref.fail("open", err, "check that the program's own file is still there, and may be run")
	}
	first := k.pub == nil
	token, err := l.end(k.openIn(ctx, w), first)
	if err != nil {
		w.kill(signer.ErrClosed)
		w.process.gone(exitWait) // what cannot be killed is left to the system
		return nil, err
	}
	if first {
		k.token = token
	}
	return w, nil
}

// openIn opens the key in a new worker.
func (k *workerKey) openIn(ctx context.Context, w *worker) error {
	var wanted []byte
	if k.opts.PublicKey != nil {
		var err error
		if wanted, err = x509.MarshalPKIXPublicKey(k.opts.PublicKey); err != nil {
			return k.ref.fail("open", fmt.Errorf("%w: the public key that is looked for: %w", signer.ErrBadKey, err), "")
		}
	}
	w.send(frame{kindOpen, [][]byte{[]byte(k.ref.ref.String()), []byte(k.ref.module), wanted}})
	var answer frame
	select {
	case answer = <-w.opened:
	case <-w.dead:
		return k.ref.fail("open", w.err, fixFor(w.err))
	case <-ctx.Done():
		err := fmt.Errorf("%w: module %q in its worker process: %w", signer.ErrUnavailable, k.ref.module, ctx.Err())
		return k.ref.fail("open", err, fixFor(err))
	}
	if answer.kind == kindFailed {
		return k.ref.failed(answer)
	}
	spki := answer.fields[0]
	if k.pub != nil {
		if !bytes.Equal(spki, k.spki) {
			return k.ref.fail("open", fmt.Errorf("%w: the token now holds another key under this name", signer.ErrKeyNotFound),
				"bring the key back; or, when the change was meant, start the program anew")
		}
		return nil
	}
	parsed, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return k.ref.fail("open", fmt.Errorf("%w: its public key: %w", signer.ErrBadKey, err), "")
	}
	pub, ok := parsed.(*rsa.PublicKey)
	if !ok {
		return k.ref.fail("open", fmt.Errorf("%w: a key of type %T", signer.ErrBadKey, parsed), "")
	}
	k.pub, k.spki = pub, spki
	return nil
}

// warn passes a warning on, once: every worker that follows would repeat it.
func (k *workerKey) warn(text string) {
	k.mu.Lock()
	told := k.warned[text] || len(k.warned) == maxWarnings
	if !told {
		k.warned[text] = true
	}
	k.mu.Unlock()
	if !told {
		k.opts.warn(text)
	}
}

// running gives the worker, and starts one where there is none. Errors are *signer.Error.
func (k *workerKey) running(ctx context.Context) (*worker, error) {
	const op = "sign with"
	k.mu.Lock()
	if k.current != nil && !k.current.alive() {
		k.lose(k.current.err, k.current.died)
		k.current = nil
	}
	switch {
	case k.current != nil:
		defer k.mu.Unlock()
		return k.current, nil
	case k.ctx.Err() != nil:
		defer k.mu.Unlock()
		return nil, k.ref.fail(op, signer.ErrClosed, "")
	case k.refused != nil:
		defer k.mu.Unlock()
		return nil, k.ref.fail(op, noMore(k.refused), fixFor(k.refused))
	case k.starting == nil && time.Now().Before(k.notUntil):
		defer k.mu.Unlock()
		return nil, k.ref.fail(op, fmt.Errorf("%w: the next worker process may be started at %s; the last one: %w", signer.ErrUnavailable,
			k.notUntil.Format(time.RFC3339Nano), k.lost), fixFor(signer.ErrUnavailable))
	case k.starting == nil:
		k.starting = &workerStart{done: make(chan struct{})}
		go k.start(k.starting)
	}
	s := k.starting
	k.mu.Unlock()
	select {
	case <-s.done:
		return s.w, s.err
	case <-ctx.Done():
		return nil, k.ref.fail(op, fmt.Errorf("%w: a new worker process is not ready yet: %w", signer.ErrUnavailable, ctx.Err()), "")
	}
}

// lose counts the loss of a worker. The caller holds k.mu.
func (k *workerKey) lose(why error, at time.Time) {
	k.lost = why
	k.notUntil = at.Add(k.backOff)
	k.backOff = min(max(2*k.backOff, firstBackOff), lastBackOff)
}

// start launches the next worker.
func (k *workerKey) start(s *workerStart) {
	ctx, cancel := context.WithTimeout(k.ctx, startLimit)
	defer cancel()
	w, err := k.launch(ctx)
	k.mu.Lock()
	defer k.mu.Unlock()
	s.w, s.err = w, err
	k.current, k.starting = w, nil
	if err != nil {
		k.lose(inner(err), time.Now())
	} else {
		k.restarts++
	}
	k.noteRefusal(err)
	close(s.done)
}

// noteRefusal latches an error that says that the token refused the PIN. The caller holds k.mu.
func (k *workerKey) noteRefusal(err error) {
	if k.refused == nil && errors.Is(err, errPINRefused) {
		k.refused = inner(err)
		if k.token != nil {
			k.token.refuse(k.refused)
		}
	}
}

// Stats is how the key is doing; see Statistics.
func (k *workerKey) Stats() signer.Stats {
	k.mu.Lock()
	defer k.mu.Unlock()
	return signer.Stats{InUse: cap(k.free) - len(k.free), Restarts: k.restarts}
}
