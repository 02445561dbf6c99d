//go:build cgo && unix

package pkcs11

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"hsmsign/signer"
)

// maxWarnings bounds what one worker may warn about.
const maxWarnings = 100

// worker is this side of a worker process: questions go out, answers come back in any order.
type worker struct {
	process *workerProcess
	login   *login
	warn    func(text string)
	out     chan []byte   // encoded frames on their way; cleared when they are sent
	dead    chan struct{} // closed when nothing is answered any more
	killing sync.Once
	err     error     // why it is dead; readable after dead
	died    time.Time // when; as err

	warnings int // that came; used by read alone

	mu    sync.Mutex
	calls map[uint32]*question
	last  uint32
}

// question waits for an answer.
type question struct {
	want   kind       // or kindFailed
	answer chan frame // takes one
}

// startWorker starts a worker process. It dies by kill or stop, by itself, or with this process.
func startWorker(r reference, opts Options, l *login, warn func(string)) (*worker, error) {
	variable, _ := strings.CutPrefix(r.pinSource, "env:")
	p, err := startProcess(opts.Worker, variable)
	if err != nil {
		return nil, fmt.Errorf("%w: start a worker process: %w", signer.ErrUnavailable, err)
	}
	w := &worker{
		process: p, login: l, warn: warn,
		out: make(chan []byte, maxCalls+2), dead: make(chan struct{}), calls: map[uint32]*question{},
	}
	go w.read()
	go w.write()
	return w, nil
}

// ask sends a question, which may be answered by kindFailed. Nobody waits for it yet.
func (w *worker) ask(what, want kind, fields ...[]byte) *question {
	q := &question{want, make(chan frame, 1)}
	w.mu.Lock()
	w.last++
	f := frame{what, w.last, fields}
	w.calls[f.call] = q
	w.mu.Unlock()
	w.send(f)
	return q
}

// read takes in frames until the worker is dead.
func (w *worker) read() {
	for {
		f, err := readFrame(w.process.conn)
		if err == nil {
			err = w.take(f)
		} else if w.process.gone(exitWait) || errors.Is(err, io.EOF) {
			secret := w.login.secret()
			err = fmt.Errorf("the worker process ended: %s", w.process.lastWords(secret))
			clear(secret)
		}
		if err != nil {
			w.kill(fmt.Errorf("%w: %w", signer.ErrUnavailable, err))
			return
		}
	}
}

// take handles one frame. An error says which rule it breaks.
func (w *worker) take(f frame) error {
	switch f.kind {
	case kindWarning:
		return w.takeWarning(string(f.fields[0]))
	case kindAskPIN:
		return w.login.asked(w, f)
	}
	w.mu.Lock()
	q := w.calls[f.call]
	delete(w.calls, f.call)
	w.mu.Unlock()
	if q == nil || f.kind != q.want && f.kind != kindFailed {
		return fmt.Errorf("the worker process sent a frame of kind %d that nobody waits for", f.kind)
	}
	q.answer <- f
	return nil
}

// takeWarning passes a warning on.
func (w *worker) takeWarning(text string) error {
	if w.warnings++; w.warnings > maxWarnings {
		return fmt.Errorf("the worker process warned more than %d times", maxWarnings)
	}
	w.warn(text)
	return nil
}

// write sends frames until the worker is dead.
func (w *worker) write() {
	for {
		select {
		case b := <-w.out:
			_, err := w.process.conn.Write(b)
			clear(b) // it may hold the PIN
			if err != nil {
				return // read meets the end of the socket, too
			}
		case <-w.dead:
			return
		}
	}
}

// send puts a frame on its way. It does not block: there are never more questions than sessions.
func (w *worker) send(f frame) {
	select {
	case w.out <- f.encode():
	case <-w.dead:
	}
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
