//go:build unix

package isolate

import (
	"cmp"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"

	"hsmsign/signer"
)

// firstSocket is the first file descriptor that is not standard (exec.Cmd.ExtraFiles).
const firstSocket = 3

// server is the worker's side of its sockets. Safe for concurrent use.
type server struct {
	conn   io.ReadWriteCloser
	lanes  []*os.File
	fail   func(error)        // ends the worker
	opened chan signer.Signer // receives the key

	sending sync.Mutex // held for a whole frame
	asking  sync.Mutex // held for a question and its answer
	answers chan frame
}

// Serve is the whole work of a worker process: it serves one key to its parent, over the sockets that it inherited,
// until the parent closes its end. args are the arguments that the parent added to the command; if they are not, the
// error wraps signer.ErrReference. Serve returns nil when the parent is gone, and an error when it breaks the rules or
// ctx ends. What the key still works on is left to the end of the process, so the caller exits next.
func Serve(ctx context.Context, args []string, open Opener) error {
	conn, lanes, err := inherited(args)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	context.AfterFunc(ctx, func() { _ = conn.Close() }) // ends the read
	s := &server{conn: conn, lanes: lanes, fail: cancel, answers: make(chan frame, 1), opened: make(chan signer.Signer, 1)}
	err = s.serve(ctx, open)
	err = cmp.Or(context.Cause(ctx), err)
	_ = conn.Close()
	select {
	case key := <-s.opened:
		_ = key.Close() // the parent is gone
	default:
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return fmt.Errorf("worker: %w", err)
}

// inherited returns the sockets of a worker process.
func inherited(args []string) (conn net.Conn, lanes []*os.File, err error) {
	if len(args) != 1 {
		return nil, nil, fmt.Errorf("%w: a worker process is started by its program", signer.ErrReference)
	}
	n, err := strconv.Atoi(args[0])
	if err == nil && (n < 0 || n > MaxLanes) {
		err = strconv.ErrRange
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %q lanes: %w", signer.ErrReference, args[0], err)
	}
	// Whatever file descriptor 3 is, net has its own copy.
	first := os.NewFile(firstSocket, "worker")
	defer func() { _ = first.Close() }()
	if conn, err = net.FileConn(first); err != nil {
		return nil, nil, fmt.Errorf("%w: file descriptor %d: %w", signer.ErrReference, firstSocket, err)
	}
	for i := range n {
		lanes = append(lanes, os.NewFile(uintptr(firstSocket+1+i), "lane"))
	}
	return conn, lanes, nil
}

// warn sends a warning to the parent.
func (s *server) warn(text string) { s.send(frame{kindWarning, [][]byte{clip(text)}}) }

// ask asks the parent for a secret; see Parent.
func (s *server) ask(ctx context.Context, question string) ([]byte, error) {
	if len(question) > maxText {
		return nil, fmt.Errorf("%w: a question of %d bytes", signer.ErrUnsupported, len(question))
	}
	s.asking.Lock()
	defer s.asking.Unlock()
	s.send(frame{kindAsk, [][]byte{[]byte(question)}})
	select {
	case f := <-s.answers:
		if f.kind == kindFailed {
			_, err := failed(f)
			return nil, err
		}
		return f.fields[0], nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s *server) send(f frame) {
	s.sending.Lock()
	defer s.sending.Unlock()
	_, _ = s.conn.Write(f.encode()) // a broken socket ends serve too
}

// serve handles the frames of the first socket until it ends.
func (s *server) serve(ctx context.Context, open Opener) error {
	in := newReader(s.conn)
	first, err := readFrame(in)
	if err != nil {
		return err
	}
	if first.kind != kindOpen {
		return errUnexpected(first)
	}
	go s.open(ctx, open, first)
	for {
		f, err := readFrame(in)
		if err != nil {
			return err
		}
		if f.kind != kindSecret && f.kind != kindFailed {
			return errUnexpected(f)
		}
		select {
		case s.answers <- f:
		default:
			return errors.New("an answer without a question")
		}
	}
}

// open opens the key, sends the result, and serves the lanes.
func (s *server) open(ctx context.Context, open Opener, f frame) {
	key, spki, err := s.openKey(ctx, open, f)
	if err != nil {
		s.send(failure(err))
		return
	}
	s.opened <- key
	for _, lane := range s.lanes {
		go func() {
			if err := serveLane(lane, key); !errors.Is(err, io.EOF) {
				s.fail(err)
			}
		}()
	}
	s.send(frame{kindOpened, [][]byte{spki}})
}

func (s *server) openKey(ctx context.Context, open Opener, f frame) (signer.Signer, []byte, error) {
	ref, err := signer.ParseRef(string(f.fields[0]))
	if err != nil {
		return nil, nil, err
	}
	var opts signer.OpenOptions
	if len(f.fields[1]) > 0 {
		if opts.PublicKey, err = x509.ParsePKIXPublicKey(f.fields[1]); err != nil {
			return nil, nil, &signer.Error{Op: "open", Ref: ref, Err: fmt.Errorf("%w: the wanted public key: %w", signer.ErrBadKey, err)}
		}
	}
	key, err := open(ctx, ref, opts, Parent{len(s.lanes), s.warn, s.ask})
	if err != nil {
		return nil, nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		_ = key.Close() // the first error is reported
		return nil, nil, &signer.Error{Op: "open", Ref: ref, Err: fmt.Errorf("%w: %w", signer.ErrBadKey, err)}
	}
	return key, spki, nil
}

// serveLane makes one signature after the other. The thread that reads also signs and answers: to wake another one
// costs tens of microseconds.
func serveLane(lane io.ReadWriter, key signer.Signer) error {
	in := newReader(lane)
	for {
		f, err := readFrame(in)
		if err != nil {
			return err
		}
		if f.kind != kindSignDigest && f.kind != kindSignMessage {
			return errUnexpected(f)
		}
		sig, err := sign(key, f)
		answer := frame{kindSigned, [][]byte{sig}}
		if err != nil {
			answer = failure(err)
		}
		if _, err := lane.Write(answer.encode()); err != nil {
			return err
		}
	}
}

// sign makes the signature of one question. It has no deadline: the parent kills a worker that takes too long.
func sign(key signer.Signer, f frame) ([]byte, error) {
	if len(f.fields[0]) != 1 {
		return nil, fmt.Errorf("%w: a hash of %d bytes", signer.ErrUnsupported, len(f.fields[0]))
	}
	ctx, h, data := context.Background(), crypto.Hash(f.fields[0][0]), f.fields[1]
	if f.kind == kindSignDigest {
		return key.SignContext(ctx, data, h)
	}
	if ms, ok := key.(signer.MessageSigner); ok {
		return ms.SignMessageContext(ctx, data, h)
	}
	if !h.Available() {
		return nil, fmt.Errorf("%w: hash %v", signer.ErrUnsupported, h)
	}
	hash := h.New()
	hash.Write(data)
	return key.SignContext(ctx, hash.Sum(nil), h)
}
