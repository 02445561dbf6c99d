//go:build cgo && unix

package pkcs11

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"hsmsign/signer"
)

// maxWarnings bounds what one worker may warn about.
const maxWarnings = 100

// worker is this side of a worker process.
type worker struct {
	process *workerProcess
	login   *login
	warn    func(text string)
	opened  chan frame // takes the answer to kindOpen
	lanes   []*lane
	dead    chan struct{} // closed when nothing is answered any more
	killing sync.Once
	err     error     // why it is dead; readable after dead
	died    time.Time // when; as err

	// Used by read alone.
	warnings int // that came
	answered bool
}

// startWorker starts a worker process. It dies by kill or stop, by itself, or with this process.
func startWorker(r reference, opts Options, l *login, warn func(string)) (*worker, error) {
	variable, _ := strings.CutPrefix(r.pinSource, "env:")
	p, err := startProcess(opts.Worker, variable, r.sessions)
	if err != nil {
		return nil, fmt.Errorf("%w: start a worker process: %w", signer.ErrUnavailable, err)
	}
	w := &worker{process: p, login: l, warn: warn, opened: make(chan frame, 1), dead: make(chan struct{})}
	for _, file := range p.lanes {
		w.lanes = append(w.lanes, &lane{file, bufio.NewReaderSize(file, maxAnswer)})
	}
	go w.read()
	return w, nil
}

// read takes in frames until the worker is dead.
func (w *worker) read() {
	for {
		f, err := readFrame(w.process.conn)
		if err == nil {
			err = w.take(f)
		}
		if err != nil {
			w.lost(err)
			return
		}
	}
}

// take handles one frame. An error says which rule it breaks.
func (w *worker) take(f frame) error {
	switch {
	case f.kind == kindWarning:
		return w.takeWarning(string(f.fields[0]))
	case f.kind == kindAskPIN:
		return w.login.asked(w, f)
	case (f.kind == kindOpened || f.kind == kindFailed) && !w.answered:
		w.answered = true
		w.opened <- f
		return nil
	}
	return unexpected(f)
}

func unexpected(f frame) error {
	return fmt.Errorf("the worker process sent a frame of kind %d that nobody waits for", f.kind)
}

// send writes a frame to the socket that opens the key. It does not block: there are two of them at most. Where it
// fails, read meets the end of the socket, too.
func (w *worker) send(f frame) {
	b := f.encode()
	_, _ = w.process.conn.Write(b)
	clear(b) // it may hold the PIN
}

// lost kills the worker for what reading from it gave.
func (w *worker) lost(err error) {
	if broken := syscall.Errno(0); errors.As(err, &broken) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		w.process.gone(exitWait) // how it ended is known then
		secret := w.login.secret()
		err = fmt.Errorf("the worker process ended: %s", w.process.lastWords(secret))
		clear(secret)
	}
	w.kill(fmt.Errorf("%w: %w", signer.ErrUnavailable, err))
}

// takeWarning passes a warning on.
func (w *worker) takeWarning(text string) error {
	if w.warnings++; w.warnings > maxWarnings {
		return fmt.Errorf("the worker process warned more than %d times", maxWarnings)
	}
	w.warn(text)
	return nil
}

// alive: it has not been killed, nor found dead.
func (w *worker) alive() bool {
	select {
	case <-w.dead:
		return false
	default:
		return true
	}
}

// kill ends the worker; whoever waits for an answer gets the first reason given.
func (w *worker) kill(why error) {
	w.killing.Do(func() {
		w.process.kill()
		w.err, w.died = why, time.Now()
		close(w.dead)
		w.login.clear()
	})
}

// stop lets the worker finalize its module and end by itself, and kills it when that takes too long.
func (w *worker) stop(wait time.Duration) error {
	w.process.hangUp()
	ended := w.process.gone(wait)
	w.kill(signer.ErrClosed)
	if ended || w.process.gone(exitWait) {
		return nil
	}
	// A call into a kernel driver can hold even a killed process.
	return fmt.Errorf("%w: worker process %d was killed and is still there", signer.ErrUnavailable, w.process.cmd.Process.Pid)
}

// lane is a socket that carries one signature at a time. It is used by one goroutine at a time, whose thread waits in
// the kernel: to be woken by Go's network poller costs a busy machine of two cores another tenth of a signature.
type lane struct {
	file *os.File // reads give EAGAIN after laneTick
	in   *bufio.Reader
}

// laneTick is how late a caller may learn that its context has ended.
const laneTick = 20 * time.Millisecond

// ask sends a question and waits for its answer until ctx or end. When one of these is first, the error wraps
// os.ErrDeadlineExceeded, and wait may go on waiting for the answer.
func (l *lane) ask(ctx context.Context, question frame, end time.Time) (frame, error) {
	if _, err := l.file.Write(question.encode()); err != nil { // it fits the socket's buffer, which is empty
		return frame{}, err
	}
	return l.wait(ctx, end)
}

// wait waits for an answer that ask has not waited for.
func (l *lane) wait(ctx context.Context, end time.Time) (frame, error) {
	for {
		f, err := peekFrame(l.in)
		switch {
		case errors.Is(err, syscall.EAGAIN) && ctx.Err() == nil && time.Now().Before(end):
			continue
		case errors.Is(err, syscall.EAGAIN):
			return frame{}, os.ErrDeadlineExceeded
		case err == nil && (f.kind != kindSigned && f.kind != kindFailed || l.in.Buffered() > 0):
			return frame{}, unexpected(f)
		}
		return f, err
	}
}
