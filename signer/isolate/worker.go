//go:build unix

package isolate

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"hsmsign/fault"
	"hsmsign/signer"
)

// maxWarnings is how many warnings one worker may send.
const maxWarnings = 100

// hintStore is what to do about a worker that failed.
const hintStore = "check that the key store answers and that its client is connected, then try again"

// worker is the parent's side of a worker process.
type worker struct {
	process *process
	warn    func(text string)
	opened  chan frame      // receives the answer to kindOpen
	life    context.Context // ends when nothing is answered any more; its cause says why
	end     context.CancelCauseFunc
	killing sync.Once
	died    time.Time // readable after life

	starting context.Context // of its start: secrets are answered until it ends
	secret   Secret          // nil: a question is refused

	// Used by read alone.
	warnings int
	answered bool

	mu      sync.Mutex
	asking  bool   // a question is being answered
	sent    []byte // the last secret that was sent
	refused error  // why the last question was not answered
}

// startWorker starts a worker process. It ends by kill or stop, by itself, or with this process.
func startWorker(ctx context.Context, cfg Config, secret Secret, warn func(string)) (*worker, error) {
	p, err := startProcess(cfg.Command, cfg.DropEnv, cfg.Lanes)
	if err != nil {
		return nil, fault.Errorf("%w: start a worker process: %w", signer.ErrUnavailable, err).
			Fix("check that the program's own file exists and may be run")
	}
	w := &worker{process: p, warn: warn, opened: make(chan frame, 1), starting: ctx, secret: secret}
	w.life, w.end = context.WithCancelCause(context.Background())
	go w.read()
	return w, nil
}

// read handles the frames of the first socket until the worker is dead.
func (w *worker) read() {
	in := bufio.NewReaderSize(w.process.conn, maxAnswer)
	for {
		f, err := readFrame(in)
		if err == nil {
			err = w.handle(f)
		}
		if err != nil {
			w.lost(err)
			return
		}
	}
}

// handle handles one frame. It returns an error if the frame breaks a rule.
func (w *worker) handle(f frame) error {
	switch {
	case f.kind == kindWarning:
		if w.warnings++; w.warnings > maxWarnings {
			return fmt.Errorf("the worker process warned more than %d times", maxWarnings)
		}
		w.warn(string(f.fields[0]))
		return nil
	case f.kind == kindAsk:
		return w.ask(string(f.fields[0]))
	case (f.kind == kindOpened || f.kind == kindFailed) && !w.answered:
		w.answered = true
		w.opened <- f
		return nil
	}
	return errUnexpected(f)
}

// ask answers the worker's question in the background: a person may have to type the answer.
func (w *worker) ask(question string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.asking {
		return errors.New("the worker process asks for a secret twice at once")
	}
	w.asking = true
	go func() {
		var secret []byte
		err := fmt.Errorf("%w: the program has no secret for its worker process", signer.ErrAuth)
		if w.secret != nil {
			secret, err = w.secret(w.starting, question)
		}
		w.mu.Lock()
		w.asking, w.refused = false, err
		if w.alive() { // else kill would not clear it
			w.sent = bytes.Clone(secret)
		}
		w.mu.Unlock()
		if err != nil {
			w.send(failure(err))
			return
		}
		w.send(frame{kindSecret, [][]byte{secret}})
		clear(secret)
	}()
	return nil
}

// send writes a frame to the first socket. It does not block: there are at most two. If it fails, read meets the end of
// the socket too.
func (w *worker) send(f frame) {
	b := f.encode()
	_, _ = w.process.conn.Write(b)
	clear(b) // it may contain the secret
}

// lost kills the worker because a read from it failed.
func (w *worker) lost(err error) {
	if broken := syscall.Errno(0); errors.As(err, &broken) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		w.mu.Lock()
		secret := bytes.Clone(w.sent)
		w.mu.Unlock()
		err = fmt.Errorf("the worker process ended: %s", w.process.lastWords(secret))
		clear(secret)
	}
	w.kill(fault.Errorf("%w: %w", signer.ErrUnavailable, err).Fix(hintStore))
}

// alive reports whether the worker was neither killed nor found dead.
func (w *worker) alive() bool { return w.life.Err() == nil }

// kill ends the worker. Whoever waits for an answer gets the first reason.
func (w *worker) kill(why error) {
	w.killing.Do(func() {
		_ = w.process.cmd.Process.Kill() // it may be gone already
		w.process.closeAll()
		w.died = time.Now()
		w.end(why)
		w.mu.Lock()
		defer w.mu.Unlock()
		clear(w.sent)
		w.sent = nil
	})
}

// stop lets the worker close its key and end by itself, and kills it when that takes too long.
func (w *worker) stop(wait time.Duration) error {
	_ = w.process.conn.CloseWrite() // if that fails, the process is gone
	ended := w.process.gone(wait)
	w.kill(signer.ErrClosed)
	if ended || w.process.gone(exitWait) {
		return nil
	}
	// A call into a kernel driver can keep even a killed process.
	return fmt.Errorf("%w: worker process %d was killed and still exists", signer.ErrUnavailable, w.process.cmd.Process.Pid)
}

// lane is a socket that carries one signature at a time. One goroutine uses it at a time, and its thread waits in the
// kernel: to be woken by Go's network poller costs a tenth of a signature on a busy machine of two cores.
type lane struct {
	file *os.File // reads return EAGAIN after laneTick
	in   *bufio.Reader
}

// laneTick is the longest time in which a caller does not notice that its context has ended.
const laneTick = 20 * time.Millisecond

// ask sends a question and waits for its answer until ctx or end. If one of these comes first, the error wraps
// os.ErrDeadlineExceeded, and wait can go on waiting for the answer.
func (l *lane) ask(ctx context.Context, question frame, end time.Time) (frame, error) {
	if _, err := l.file.Write(question.encode()); err != nil { // it fits into the socket's buffer, which is empty
		return frame{}, err
	}
	return l.wait(ctx, end)
}

// wait waits for the answer to a question that was sent.
func (l *lane) wait(ctx context.Context, end time.Time) (frame, error) {
	for {
		f, err := readFrame(l.in)
		switch {
		case errors.Is(err, syscall.EAGAIN) && ctx.Err() == nil && time.Now().Before(end):
			continue
		case errors.Is(err, syscall.EAGAIN):
			return frame{}, os.ErrDeadlineExceeded
		case err == nil && (f.kind != kindSigned && f.kind != kindFailed || l.in.Buffered() > 0):
			return frame{}, errUnexpected(f)
		}
		return f, err
	}
}

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
