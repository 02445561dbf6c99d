//go:build cgo && unix

package pkcs11

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"hsmsign/signer"
)

// maxSigned bounds a message that crosses the socket; the rest of the frame is a few bytes.
const maxSigned = maxFrame - 64

// Public is the *rsa.PublicKey, read when the key was opened.
func (k *workerKey) Public() crypto.PublicKey { return k.pub }

// Sign is SignContext without a deadline; the worker is killed when it does not answer in callLimit.
func (k *workerKey) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.SignContext(context.Background(), digest, opts)
}

// SignContext signs a SHA-256 or SHA-1 digest; see signer.Signer. A worker that has not answered some time after
// the deadline of ctx is killed.
func (k *workerKey) SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	h, err := signer.CheckDigest(digest, opts, crypto.SHA256, crypto.SHA1)
	if err != nil {
		return nil, k.ref.fail("sign with", err, "")
	}
	return k.sign(ctx, kindSignDigest, h, digest)
}

// SignMessageContext hashes and signs a message; see signer.MessageSigner. Where the hash is made is up to the
// worker.
func (k *workerKey) SignMessageContext(ctx context.Context, message []byte, opts crypto.SignerOpts) ([]byte, error) {
	var h crypto.Hash
	if opts != nil {
		h = opts.HashFunc()
	}
	// Whether it is a hash to sign with is the same for every digest of its length.
	if _, err := signer.CheckDigest(make([]byte, digestSize(h)), opts, crypto.SHA256, crypto.SHA1); err != nil {
		return nil, k.ref.fail("sign with", err, "")
	}
	if len(message) > maxSigned {
		return nil, k.ref.fail("sign with", fmt.Errorf("%w: a message of %d bytes; a worker process takes %d", signer.ErrUnsupported, len(message), maxSigned), "")
	}
	return k.sign(ctx, kindSignMessage, h, message)
}

func digestSize(h crypto.Hash) int {
	if h == crypto.SHA1 {
		return crypto.SHA1.Size()
	}
	return crypto.SHA256.Size()
}

// sign makes one signature; where its worker dies, once more. Errors are *signer.Error.
func (k *workerKey) sign(ctx context.Context, what kind, h crypto.Hash, data []byte) ([]byte, error) {
	n, err := k.acquire(ctx)
	if err != nil {
		return nil, k.ref.fail("sign with", err, "")
	}
	question := frame{what, [][]byte{{byte(h)}, data}} // #nosec G115 -- CheckDigest let two small ones pass
	for again := false; ; again = true {
		w, err := k.running(ctx)
		if err != nil {
			k.free <- n
			return nil, err
		}
		// A caller that goes away early has still set the time until which the worker may take.
		end, limited := ctx.Deadline()
		end = end.Add(k.grace)
		if !limited {
			end = time.Now().Add(k.limit)
		}
		answer, err := w.lanes[n].ask(ctx, question, end)
		late := errors.Is(err, os.ErrDeadlineExceeded)
		switch {
		case err == nil:
			k.free <- n
			return k.signature(answer)
		case late && ctx.Err() != nil:
			go k.abandon(context.WithoutCancel(ctx), w, n, end)
			err := fmt.Errorf("%w: the worker process has not answered: %w", signer.ErrUnavailable, ctx.Err())
			return nil, k.ref.fail("sign with", err, fixFor(err))
		case late:
			w.kill(errHung)
			k.free <- n
			return nil, k.ref.fail("sign with", errHung, fixFor(errHung))
		}
		w.lost(err)
		if again || ctx.Err() != nil {
			k.free <- n
			return nil, k.ref.fail("sign with", w.err, fixFor(w.err))
		}
	}
}

// errHung is why a worker was killed.
var errHung = fmt.Errorf("%w: the worker process did not answer in time, and was killed", signer.ErrUnavailable)

// abandon waits until end for the answer to a question whose caller has gone, and then kills the worker.
func (k *workerKey) abandon(ctx context.Context, w *worker, n int, end time.Time) {
	switch answer, err := w.lanes[n].wait(ctx, end); {
	case err == nil:
		_, _ = k.signature(answer) // it counts, though nobody is left to be told
	case errors.Is(err, os.ErrDeadlineExceeded):
		w.kill(errHung)
	default:
		w.lost(err)
	}
	k.free <- n
}

// acquire waits for a lane. Errors wrap signer.ErrClosed, or signer.ErrUnavailable and ctx.Err().
func (k *workerKey) acquire(ctx context.Context) (lane int, err error) {
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("%w: %w", signer.ErrUnavailable, err)
	}
	select {
	case n := <-k.free:
		// Close may have come before, or while both were ready.
		select {
		case <-k.closed:
			k.free <- n
			return 0, signer.ErrClosed
		default:
			return n, nil
		}
	case <-k.closed:
		return 0, signer.ErrClosed
	case <-ctx.Done():
		return 0, fmt.Errorf("%w: all %d sessions are busy: %w", signer.ErrUnavailable, k.ref.sessions, ctx.Err())
	}
}

// signature takes the answer of a worker.
func (k *workerKey) signature(answer frame) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if answer.kind == kindFailed {
		err := k.ref.failed(answer)
		k.noteRefusal(err)
		return nil, err
	}
	sig := answer.fields[0]
	if len(sig) != k.pub.Size() {
		return nil, k.ref.fail("sign with", fmt.Errorf("%w: %d bytes where the modulus has %d", signer.ErrBadSignature, len(sig), k.pub.Size()), "")
	}
	k.backOff = 0
	return sig, nil
}

// Close ends the worker. It waits a few seconds for signatures that are under way, and some more for the module
// to finalize; then the worker is killed, which is no error.
func (k *workerKey) Close() error {
	k.closing.Do(func() {
		close(k.closed)
		timer := time.NewTimer(k.wait)
		defer timer.Stop()
		wait, back := k.wait, 0
		for ; back < cap(k.free) && wait > 0; back++ {
			select {
			case <-k.free:
			case <-timer.C:
				back--
				wait = 0 // it hangs
			}
		}
		k.endErr = k.endWorker(wait)
		for ; back < cap(k.free); back++ {
			<-k.free // their worker is dead, so they have ended
		}
		if k.token != nil {
			k.token.release()
		}
	})
	if k.endErr != nil {
		return k.ref.fail("close", k.endErr, "")
	}
	return nil
}

// endWorker ends the worker that is there, or on its way.
func (k *workerKey) endWorker(wait time.Duration) error {
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
		w.kill(fmt.Errorf("%w: the worker process still worked on a call when the key was closed, and was killed", signer.ErrClosed))
	}
	return w.stop(wait)
}
