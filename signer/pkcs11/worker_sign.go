//go:build cgo && unix

package pkcs11

import (
	"context"
	"crypto"
	"fmt"
	"io"
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
	if err := k.acquire(ctx); err != nil {
		return nil, k.ref.fail("sign with", err, "")
	}
	for again := false; ; again = true {
		w, err := k.running(ctx)
		if err != nil {
			<-k.permits
			return nil, err
		}
		q := w.ask(what, kindSigned, []byte{byte(h)}, data) // #nosec G115 -- CheckDigest let two small ones pass
		// A caller that goes away early has still set the time until which the worker may take.
		end, limited := ctx.Deadline()
		end = end.Add(k.grace)
		var late <-chan time.Time
		if !limited {
			end = time.Now().Add(k.limit)
			timer := time.NewTimer(k.limit)
			defer timer.Stop() // at most two
			late = timer.C
		}
		select {
		case answer := <-q.answer:
			<-k.permits
			return k.signature(answer)
		case <-w.dead:
			if again || ctx.Err() != nil {
				<-k.permits
				return nil, k.ref.fail("sign with", w.err, fixFor(w.err))
			}
		case <-late:
			w.kill(errHung)
			<-k.permits
			return nil, k.ref.fail("sign with", errHung, fixFor(errHung))
		case <-ctx.Done():
			go k.abandon(w, q, end)
			err := fmt.Errorf("%w: the worker process has not answered: %w", signer.ErrUnavailable, ctx.Err())
			return nil, k.ref.fail("sign with", err, fixFor(err))
		}
	}
}

// errHung is why a worker was killed.
var errHung = fmt.Errorf("%w: the worker process did not answer in time, and was killed", signer.ErrUnavailable)

// abandon waits until end for the answer to a question whose caller has gone, and then kills the worker.
func (k *workerKey) abandon(w *worker, q *question, end time.Time) {
	defer func() { <-k.permits }()
	timer := time.NewTimer(time.Until(end))
	defer timer.Stop()
	select {
	case answer := <-q.answer:
		_, _ = k.signature(answer) // it counts, though nobody is left to be told
	case <-w.dead:
	case <-timer.C:
		w.kill(errHung)
	}
}

// acquire waits for a permit. Errors wrap signer.ErrClosed, or signer.ErrUnavailable and ctx.Err().
func (k *workerKey) acquire(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w: %w", signer.ErrUnavailable, err)
	}
	select {
	case k.permits <- struct{}{}:
		// Close may have come before, or while both were ready.
		select {
		case <-k.closed:
			<-k.permits
			return signer.ErrClosed
		default:
			return nil
		}
	case <-k.closed:
		return signer.ErrClosed
	case <-ctx.Done():
		return fmt.Errorf("%w: all %d sessions are busy: %w", signer.ErrUnavailable, cap(k.permits), ctx.Err())
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
		for ; back < cap(k.permits) && wait > 0; back++ {
			select {
			case k.permits <- struct{}{}:
			case <-timer.C:
				back--
				wait = 0 // it hangs
			}
		}
		k.endErr = k.endWorker(wait)
		for ; back < cap(k.permits); back++ {
			k.permits <- struct{}{} // their worker is dead, so they have ended
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
