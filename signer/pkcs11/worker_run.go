//go:build cgo

package pkcs11

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"sync"

	"hsmsign/signer"
)

// isolated says whether the key is opened in a worker process.
func (r reference) isolated(opts Options) bool {
	return r.isolate == "yes" || r.isolate == "" && opts.Isolate
}

// RunWorker is the whole work of a worker process: it serves one key to the process at the other end of conn,
// which started it (see Options.Worker), until that closes its end. The result is nil then, and an error when
// the other side breaks the rules or ctx ends. Whatever a module still works on is left to the end of the
// process, so the caller exits next. It closes conn.
func RunWorker(ctx context.Context, conn io.ReadWriteCloser) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		<-ctx.Done()
		_ = conn.Close() // ends the read
	}()
	s := &workerServer{conn: conn, pins: make(chan frame, 1), calls: make(chan struct{}, maxCalls)}
	err := s.serve(ctx)
	if cause := ctx.Err(); cause != nil {
		err = cause
	}
	cancel()
	<-closed
	if key := s.opened(); key != nil {
		_ = key.Close() // nobody is left to be told
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return fmt.Errorf("pkcs11 worker: %w", err)
}

// workerServer is the worker's end of the socket.
type workerServer struct {
	conn  io.ReadWriteCloser
	calls chan struct{} // one element for each signature that is being made

	sending sync.Mutex // held for a whole frame
	asking  sync.Mutex // held for a question about the PIN, and its answer
	pins    chan frame // the answer

	mu  sync.Mutex
	key signer.Signer // nil until it is open
}

// opened is the key, or nil.
func (s *workerServer) opened() signer.Signer {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.key
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
		switch f.kind {
		case kindPIN, kindFailed:
			select {
			case s.pins <- f:
			default:
				return errors.New("a PIN that was not asked for")
			}
		case kindSignDigest, kindSignMessage:
			key := s.opened()
			if key == nil {
				return errors.New("a signature is asked for before the key is open")
			}
			select {
			case s.calls <- struct{}{}:
			default:
				return fmt.Errorf("more than %d signatures are asked for at once", maxCalls)
			}
			go func() {
				answer := signAnswer(key, f)
				<-s.calls // before the answer, which lets the other side ask for the next one
				s.send(answer)
			}()
		default:
			return fmt.Errorf("a frame of kind %d in the wrong place", f.kind)
		}
	}
}

// open opens the key and says how it went.
func (s *workerServer) open(ctx context.Context, f frame) {
	key, spki, err := s.openKey(ctx, f)
	if err != nil {
		s.send(failure(f.call, err))
		return
	}
	s.mu.Lock()
	s.key = key
	s.mu.Unlock()
	s.send(frame{kindOpened, f.call, [][]byte{spki}})
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
	opts := Options{
		Warn:   func(text string) { s.send(frame{kindWarning, 0, [][]byte{cut(text)}}) },
		askPIN: s.askPIN,
	}
	if len(f.fields[2]) > 0 {
		if opts.PublicKey, err = x509.ParsePKIXPublicKey(f.fields[2]); err != nil {
			return nil, nil, r.fail("open", fmt.Errorf("%w: the public key that is looked for: %w", signer.ErrBadKey, err), "")
		}
	}
	key, err := open(ctx, r, opts)
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
	s.send(frame{kindAskPIN, 0, [][]byte{cut(label), cut(serial)}})
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
		return failure(f.call, fmt.Errorf("%w: a hash of %d bytes", signer.ErrUnsupported, len(f.fields[0])))
	}
	h := crypto.Hash(f.fields[0][0])
	sign := key.SignContext
	if f.kind == kindSignMessage {
		sign = key.(signer.MessageSigner).SignMessageContext // open gives no other kind of key
	}
	sig, err := sign(context.Background(), f.fields[1], h)
	if err != nil {
		return failure(f.call, err)
	}
	return frame{kindSigned, f.call, [][]byte{sig}}
}
