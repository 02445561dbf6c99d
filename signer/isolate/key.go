//go:build unix

package isolate

import (
	"context"
	"crypto"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"hsmsign/fault"
	"hsmsign/signer"
)

const (
	// defLimit is the time limit of one try of a signature whose caller set no deadline.
	defLimit = 30 * time.Second
	// defGrace is how long a worker may still take after a caller's deadline. Killing it costs its other callers a retry,
	// which a slow HSM that works is not worth.
	defGrace = 2 * time.Second
	// defCloseWait is how long Close waits for signatures, and then for the worker.
	defCloseWait = 5 * time.Second
	// maxSigned is the largest message; the rest of the frame is a few bytes.
	maxSigned = maxFrame - 64
)

// Key is a key in a worker process. It is a signer.Signer and a signer.MessageSigner: the worker decides where a message
// is hashed. It has Stats. Errors are *signer.Error.
type Key struct {
	ref    signer.Ref
	open   signer.OpenOptions
	cfg    Config
	pub    *rsa.PublicKey     // every worker must find this key
	free   chan int           // the numbers of the lanes that are not in use
	closed context.Context    // ends with Close: no signature begins any more
	shut   context.CancelFunc // of closed
	ctx    context.Context
	end    context.CancelFunc // of ctx: no worker is started any more

	limit, grace, closeWait time.Duration

	closing func() error // close, once

	mu       sync.Mutex
	warned   map[string]bool // the warnings that were passed on
	current  *worker         // may be dead; nil: none
	starting *start          // nil: none
	lost     error           // why the last worker was lost, or not started
	backOff  time.Duration   // after the next loss; zero after a signature
	notUntil time.Time       // when the next worker may be started
	restarts uint64          // workers after the first that have opened the key
}

// Open starts a worker and opens the key that ref names in it. It wraps signer.ErrUnavailable if the worker cannot be
// started, dies or does not answer before ctx ends; other errors are those of the worker.
func Open(ctx context.Context, ref signer.Ref, open signer.OpenOptions, cfg Config) (*Key, error) {
	if cfg.Ref.Scheme == "" {
		cfg.Ref = ref
	}
	cfg.Lanes = min(max(cfg.Lanes, 1), MaxLanes)
	k := &Key{
		ref: ref, open: open, cfg: cfg, free: make(chan int, cfg.Lanes),
		limit: defLimit, grace: defGrace, closeWait: defCloseWait, warned: map[string]bool{},
	}
	k.closing = sync.OnceValue(k.close)
	for n := range cfg.Lanes {
		k.free <- n
	}
	k.ctx, k.end = context.WithCancel(context.Background())
	k.closed, k.shut = context.WithCancel(k.ctx)
	w, err := k.launch(ctx)
	if err != nil {
		k.end()
		return nil, err
	}
	k.current = w
	return k, nil
}

// fail returns the error of one operation on this key. Nil, and an error that is a *signer.Error already, are returned as
// they are.
func (k *Key) fail(op string, err error) error {
	if _, told := err.(*signer.Error); told || err == nil { //nolint:errorlint // the outermost error decides
		return err
	}
	return &signer.Error{Op: op, Ref: k.ref, Err: err}
}

const opSign = "sign with"

// Public returns the *rsa.PublicKey, which was read when the key was opened.
func (k *Key) Public() crypto.PublicKey { return k.pub }

// Sign is SignContext without a deadline; a worker that has not answered after 30 seconds is killed.
func (k *Key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.SignContext(context.Background(), digest, opts)
}

// SignContext signs a digest; see signer.Signer.
func (k *Key) SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	h, err := signer.CheckDigest(digest, opts, hashes()...)
	if err != nil {
		return nil, k.fail(opSign, err)
	}
	return k.sign(ctx, frame{kindSignDigest, [][]byte{{byte(h)}, digest}}) // #nosec G115 -- a hash of hashes()
}

// SignMessageContext signs a message of at most 128 KiB; see signer.MessageSigner.
func (k *Key) SignMessageContext(ctx context.Context, message []byte, opts crypto.SignerOpts) ([]byte, error) {
	var blank []byte
	if h, ok := opts.(crypto.Hash); ok && slices.Contains(hashes(), h) {
		blank = make([]byte, h.Size())
	}
	h, err := signer.CheckDigest(blank, opts, hashes()...)
	if err == nil && len(message) > maxSigned {
		err = fmt.Errorf("%w: a message of %d bytes; a worker process accepts %d", signer.ErrUnsupported, len(message), maxSigned)
	}
	if err != nil {
		return nil, k.fail(opSign, err)
	}
	return k.sign(ctx, frame{kindSignMessage, [][]byte{{byte(h)}, message}}) // #nosec G115 -- a hash of hashes()
}

// hashes returns the hashes that cross. The worker refuses those that its key does not sign with.
func hashes() []crypto.Hash {
	return []crypto.Hash{crypto.SHA256, crypto.SHA1, crypto.SHA384, crypto.SHA512}
}

// sign makes one signature, and makes it once more if its worker dies.
func (k *Key) sign(ctx context.Context, question frame) ([]byte, error) {
	n, err := k.acquire(ctx)
	if err != nil {
		return nil, k.fail(opSign, err)
	}
	for again := false; ; again = true {
		w, err := k.running(ctx)
		if err != nil {
			k.free <- n
			return nil, k.fail(opSign, err)
		}
		// A caller that leaves early has still set the time that the worker may take.
		end, limited := ctx.Deadline()
		end = end.Add(k.grace)
		if !limited {
			end = time.Now().Add(k.limit)
		}
		answer, err := w.process.lanes[n].ask(ctx, question, end)
		over := errors.Is(err, os.ErrDeadlineExceeded)
		switch {
		case err == nil:
			k.free <- n
			return k.signature(answer)
		case over && ctx.Err() != nil:
			go k.abandon(context.WithoutCancel(ctx), w, n, end)
			return nil, k.fail(opSign, late(ctx, "the worker process has not answered"))
		case over:
			w.kill(errHung())
			k.free <- n
			return nil, k.fail(opSign, errHung())
		}
		w.lost(err)
		if again || ctx.Err() != nil {
			k.free <- n
			return nil, k.fail(opSign, context.Cause(w.life))
		}
	}
}

// late returns the error of a caller whose context has ended. A caller that gave up gets no hint.
func late(ctx context.Context, what string) error {
	err := fmt.Errorf("%w: %s: %w", signer.ErrUnavailable, what, ctx.Err())
	if errors.Is(err, context.Canceled) {
		return err
	}
	return fault.WithHint(err, hintStore)
}

func errHung() error {
	return fault.Errorf("%w: the worker process did not answer in time and was killed", signer.ErrUnavailable).Fix(hintStore)
}

// abandon waits until end for the answer to a question whose caller has left, and then kills the worker.
func (k *Key) abandon(ctx context.Context, w *worker, n int, end time.Time) {
	switch answer, err := w.process.lanes[n].wait(ctx, end); {
	case err == nil:
		_, _ = k.signature(answer) // it ends the back-off
	case errors.Is(err, os.ErrDeadlineExceeded):
		w.kill(errHung())
	default:
		w.lost(err)
	}
	k.free <- n
}

// acquire waits for a lane. Errors wrap signer.ErrClosed, or signer.ErrUnavailable and ctx.Err().
func (k *Key) acquire(ctx context.Context) (lane int, err error) {
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("%w: %w", signer.ErrUnavailable, err)
	}
	select {
	case n := <-k.free:
		if k.closed.Err() == nil {
			return n, nil
		}
		k.free <- n // both were ready
	case <-k.closed.Done():
	case <-ctx.Done():
		return 0, late(ctx, fmt.Sprintf("all %d sessions are busy", cap(k.free)))
	}
	return 0, signer.ErrClosed
}

// signature returns the signature of a worker's answer, or its error.
func (k *Key) signature(answer frame) ([]byte, error) {
	if answer.kind == kindFailed {
		op, err := failed(answer)
		if errors.Is(err, ErrSecretRefused) && k.cfg.Refused != nil {
			k.cfg.Refused(err)
		}
		return nil, k.fail(op, err)
	}
	sig := answer.fields[0]
	if len(sig) != k.pub.Size() {
		return nil, k.fail(opSign, fmt.Errorf("%w: %d bytes; the modulus has %d", signer.ErrBadSignature, len(sig), k.pub.Size()))
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.backOff = 0
	return sig, nil
}

// Stats returns the signatures in flight and the restarts.
func (k *Key) Stats() signer.Stats {
	k.mu.Lock()
	defer k.mu.Unlock()
	return signer.Stats{InUse: cap(k.free) - len(k.free), Restarts: k.restarts}
}

// Close ends the worker. It waits some seconds for the signatures in flight and some more for the worker to close its
// key; then the worker is killed, which is not an error.
func (k *Key) Close() error { return k.fail("close", k.closing()) }

func (k *Key) close() error {
	k.shut()
	ended := make(chan error, 1)
	hangs := time.AfterFunc(k.closeWait, func() { ended <- k.endWorker(0) })
	for range cap(k.free) {
		<-k.free // the end of the worker ends its signatures too
	}
	if hangs.Stop() {
		ended <- k.endWorker(k.closeWait)
	}
	return <-ended
}

// endWorker ends the worker that exists or is being started.
func (k *Key) endWorker(wait time.Duration) error {
	k.mu.Lock()
	k.end()
	w, s := k.current, k.starting
	k.mu.Unlock()
	if s != nil {
		<-s.done // it obeys k.ctx
		w = s.w
	}
	if w == nil {
		return nil
	}
	if wait == 0 {
		w.kill(fmt.Errorf("%w: the key was closed during the call, and the worker process was killed", signer.ErrClosed))
	}
	return w.stop(wait)
}
