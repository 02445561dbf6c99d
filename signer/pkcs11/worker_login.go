//go:build cgo && unix

package pkcs11

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"

	"hsmsign/signer"
)

// workerModules is what this process knows of the modules that its workers load: package-level state for the reason
// of modules. The token counts wrong PINs, whichever worker sent them. Keyed by the module's path; an entry stays for
// the life of the process.
var workerModules struct {
	sync.Mutex
	byPath map[string]*workerModule
}

// workerModule is one such module.
type workerModule struct {
	// turn holds one element while a worker opens its key: ten keys opened at once with a wrong PIN cost one try,
	// and SoftHSM2 does not find a token while another process logs in to it.
	turn chan struct{}

	mu     sync.Mutex
	tokens map[tokenID]*workerToken
}

// workerToken is a token that workers log in to.
type workerToken struct {
	mu      sync.Mutex
	keys    int    // open keys that sent a PIN
	pin     []byte // the one that worked, while there are keys: a new worker must log in without asking anybody
	refused error  // why the token refused a PIN; never cleared
}

// workerModuleAt gives the entry of a module.
func workerModuleAt(path string) *workerModule {
	workerModules.Lock()
	defer workerModules.Unlock()
	m := workerModules.byPath[path]
	if m == nil {
		m = &workerModule{turn: make(chan struct{}, 1), tokens: map[tokenID]*workerToken{}}
		if workerModules.byPath == nil {
			workerModules.byPath = map[string]*workerModule{}
		}
		workerModules.byPath[path] = m
	}
	return m
}

// token gives the entry of a token.
func (m *workerModule) token(id tokenID) *workerToken {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.tokens[id]
	if t == nil {
		t = &workerToken{}
		m.tokens[id] = t
	}
	return t
}

// refuse notes that the token refused a PIN. None follows.
func (t *workerToken) refuse(why error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.refused == nil {
		t.refused = why
	}
}

// retain counts one key more, and keeps a copy of the PIN that worked.
func (t *workerToken) retain(pin []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.keys++
	if t.pin == nil {
		t.pin = bytes.Clone(pin)
		keepInMemory(t.pin)
	}
}

// release takes back one retain, and clears the PIN with the last.
func (t *workerToken) release() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.keys--; t.keys == 0 {
		clear(t.pin)
		t.pin = nil
	}
}

// known is a copy of the PIN that worked, nil where there is none, or why none may be sent.
func (t *workerToken) known() ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.refused != nil {
		return nil, noMore(t.refused)
	}
	return bytes.Clone(t.pin), nil
}

// login is how one worker gets its PIN.
type login struct {
	ctx    context.Context // of the worker's start
	ref    reference
	opts   Options
	module *workerModule // whose turn is ours
	same   *workerToken  // nil: any token will do

	mu    sync.Mutex
	asks  bool         // a question is being answered
	ended bool         // the worker is open, or has failed
	token *workerToken // that the PIN was sent to
	pin   []byte       // the PIN that was sent
	err   error        // why none was
}

// asked answers the worker's question for the PIN, in the background: a person may have to type it.
func (l *login) asked(w *worker, f frame) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.asks {
		return errors.New("the worker process asks for the PIN twice at once")
	}
	l.asks = true
	go func() {
		answer := l.answer(string(f.fields[0]), string(f.fields[1]))
		w.send(answer)
		clear(answer.fields[0])
		l.mu.Lock()
		l.asks = false
		l.mu.Unlock()
	}()
	return nil
}

func (l *login) answer(label, serial string) frame {
	pin, err := l.read(label, serial)
	if err != nil {
		l.mu.Lock()
		l.err = err
		l.mu.Unlock()
		return failure(err)
	}
	return frame{kindPIN, [][]byte{pin}}
}

// read gives a copy of the PIN of a token.
func (l *login) read(label, serial string) ([]byte, error) {
	if pin := l.secret(); pin != nil {
		return pin, nil // the worker has it already
	}
	id := tokenID{label: label, serial: serial}
	t := l.module.token(id)
	if l.same != nil && l.same != t {
		return nil, fmt.Errorf("%w: the reference now names %s, which is another token than before", signer.ErrAuth, id)
	}
	pin, err := t.known()
	if pin == nil && err == nil {
		pin, err = l.ref.readPIN(l.ctx, id, l.opts)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil && l.ended {
		err = fmt.Errorf("%w: nobody waits for the PIN any more", signer.ErrUnavailable)
	}
	if err != nil {
		clear(pin)
		return nil, err
	}
	l.token, l.pin = t, pin
	return bytes.Clone(pin), nil
}

// secret is a copy of the PIN that was sent, or nil.
func (l *login) secret() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Clone(l.pin)
}

// end is told how the start of the worker ended. It gives the token that was logged in to, nil where none was,
// retained for a key where first says so. The error is that of the start, or what kept the PIN from being sent.
func (l *login) end(err error, first bool) (*workerToken, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	if l.err != nil && err != nil {
		fix := ""
		if errors.Is(l.err, errPINRefused) {
			fix = fixFor(l.err)
		}
		// The error that was met here wraps more than what crossed the socket and came back.
		err = l.ref.fail(opLogin, l.err, fix)
	}
	if l.token == nil {
		return nil, err
	}
	if err == nil && first {
		l.token.retain(l.pin)
	}
	if errors.Is(err, errPINRefused) {
		l.token.refuse(inner(err))
	}
	return l.token, err
}

// clear forgets the PIN of a worker that is gone.
func (l *login) clear() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.pin)
	l.pin = nil
}

// inner is the error without operation and reference.
func inner(err error) error {
	var e *signer.Error
	if errors.As(err, &e) {
		return e.Err
	}
	return err
}
