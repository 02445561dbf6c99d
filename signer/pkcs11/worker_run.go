//go:build cgo

package pkcs11

import (
	"bufio"
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

// isolated says whether the key is opened in a worker process.
func (r reference) isolated(opts Options) bool {
	return r.isolate == "yes" || r.isolate == "" && opts.Isolate
}

// RunWorker is the whole work of a worker process: it serves one key to the process that started it, over the sockets
// that it has inherited (see Options.Worker), until that process closes its end. Args are the arguments that were added
// to the command. The result is nil then, and an error when the other side breaks the rules or ctx ends. Whatever a
// module still works on is left to the end of the process, so the caller exits next.
func RunWorker(ctx context.Context, args []string) error {
	conn, lanes, err := inherited(args)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		<-ctx.Done()
		_ = conn.Close() // ends the read
	}()
	s := &workerServer{conn: conn, lanes: lanes, fail: cancel, pins: make(chan frame, 1), opened: make(chan signer.Signer, 1)}
	err = s.serve(ctx)
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	cancel(nil)
	<-closed
	select {
	case key := <-s.opened:
		_ = key.Close() // nobody is left to be told
	default:
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return fmt.Errorf("pkcs11 worker: %w", err)
}

// inherited gives the sockets of a worker process.
func inherited(args []string) (conn net.Conn, lanes []*os.File, err error) {
	if len(args) != 1 {
		return nil, nil, fmt.Errorf("%w: a worker process is started by the program itself", signer.ErrReference)
	}
	n, err := strconv.Atoi(args[0])
	if err == nil && (n < 0 || n > maxSessions) {
		err = strconv.ErrRange
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %q lanes: %w", signer.ErrReference, args[0], err)
	}
	// Whatever file descriptor 3 is, net has a copy of its own.
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

// firstSocket is the first file descriptor that is not standard (exec.Cmd.ExtraFiles).
const firstSocket = 3

// workerServer is the worker's end of the sockets.
type workerServer struct {
	conn   io.ReadWriteCloser
	lanes  []*os.File
	fail   func(error)        // ends the worker
	opened chan signer.Signer // takes the key

	sending sync.Mutex // held for a whole frame
	asking  sync.Mutex // held for a question about the PIN, and its answer
	pins    chan frame // the answer
}

func (s *workerServer) send(f frame) {
	s.sending.Lock()
	defer s.sending.Unlock()
	_, _ = s.conn.Write(f.encode()) // a socket that is broken ends serve, too
}

// serve answers frames until there are no more.
func (s *workerServer) serve(ctx context.Context) error {
	first, err := readFrame(s.conn)
	if err != nil {
		return err
	}
	if first.kind != kindOpen {
		return fmt.Errorf("the first frame is of kind %d", first.kind)
	}
	go s.open(ctx, first)
	for {
		f, err := readFrame(s.conn)
		if err != nil {
			return err
		}
		if f.kind != kindPIN && f.kind != kindFailed {
			return fmt.Errorf("a frame of kind %d in the wrong place", f.kind)
		}
		select {
		case s.pins <- f:
		default:
			return errors.New("a PIN that was not asked for")
		}
	}
}

// open opens the key, says how it went, and serves the lanes.
func (s *workerServer) open(ctx context.Context, f frame) {
	key, spki, err := s.openKey(ctx, f)
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

// serveLane makes one signature after the other. The thread that reads, signs and answers is the same, which saves
// more time than anything else here: to wake another one costs tens of microseconds.
func serveLane(lane io.ReadWriter, key signer.Signer) error {
	in := bufio.NewReader(lane)
	for {
		f, err := readFrame(in)
		if err != nil {
			return err
		}
		if f.kind != kindSignDigest && f.kind != kindSignMessage {
			return fmt.Errorf("a frame of kind %d in the wrong place", f.kind)
		}
		if _, err := lane.Write(signAnswer(key, f).encode()); err != nil {
			return err
		}
	}
}

func (s *workerServer) openKey(ctx context.Context, f frame) (signer.Signer, []byte, error) {
	ref, err := signer.ParseRef(string(f.fields[0]))
	if err != nil {
		return nil, nil, err
	}
	r, err := parseReference(ref)
	if err != nil {
		return nil, nil, r.fail("open", err, "")
	}
	// The other side has resolved module-name and checked the file.
	r.module = string(f.fields[1])
	r.sessions = max(1, len(s.lanes))
	opts := Options{
		Warn:   func(text string) { s.send(frame{kindWarning, [][]byte{cut(text)}}) },
		askPIN: s.askPIN,
	}
	if len(f.fields[2]) > 0 {
		if opts.PublicKey, err = x509.ParsePKIXPublicKey(f.fields[2]); err != nil {
			return nil, nil, r.fail("open", fmt.Errorf("%w: the public key that is looked for: %w", signer.ErrBadKey, err), "")
		}
	}
	key, err := openBounded(ctx, r, opts)
	if err != nil {
		return nil, nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		_ = key.Close() // the first error is the one to tell
		return nil, nil, r.fail("open", fmt.Errorf("%w: %w", signer.ErrBadKey, err), "")
	}
	return key, spki, nil
}

// askPIN asks the other side for the PIN of a token.
func (s *workerServer) askPIN(ctx context.Context, label, serial string) ([]byte, error) {
	s.asking.Lock()
	defer s.asking.Unlock()
	s.send(frame{kindAskPIN, [][]byte{cut(label), cut(serial)}})
	select {
	case f := <-s.pins:
		if f.kind == kindFailed {
			var e *signer.Error
			err := reference{}.failed(f)
			if errors.As(err, &e) {
				err = e.Err // login names the operation and the key
			}
			return nil, err
		}
		return f.fields[0], nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// signAnswer makes a signature and gives the answer. It has no context: the other side kills what takes too long.
func signAnswer(key signer.Signer, f frame) frame {
	if len(f.fields[0]) != 1 {
		return failure(fmt.Errorf("%w: a hash of %d bytes", signer.ErrUnsupported, len(f.fields[0])))
	}
	h := crypto.Hash(f.fields[0][0])
	sign := key.SignContext
	if f.kind == kindSignMessage {
		sign = key.(signer.MessageSigner).SignMessageContext // open gives no other kind of key
	}
	sig, err := sign(context.Background(), f.fields[1], h)
	if err != nil {
		return failure(err)
	}
	return frame{kindSigned, [][]byte{sig}}
}
