//go:build unix

package isolate

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"hsmsign/fault"
	"hsmsign/signer"
)

const (
	// maxFrame is the largest frame, and so limits the message to sign: twice the largest CSR, and small enough for the
	// buffer of a socket, so that a writer never waits for the other side.
	maxFrame = 128 << 10
	// maxText is the longest text that crosses; an error that lists ten tokens has about 1,500 bytes.
	maxText = 4 << 10
	// maxAnswer is the largest frame to the parent: the longest error, or a signature of 2 KiB.
	maxAnswer = 2*maxText + 1<<10
)

// frame is one message between a parent and its worker. Its encoding, with big-endian numbers, is
//
//	length of what follows uint32 | kind uint8 | fields, each: length uint32, bytes
//
// The first socket carries the opening of the key, the others are lanes. Neither side trusts the other: a frame that is
// too long, of an unknown kind, with another number of fields or out of turn ends the worker.
type frame struct {
	kind   kind
	fields [][]byte
}

// kind is the type of a frame.
type kind uint8

const (
	kindOpen        kind = iota + 1 // to the worker, once: key reference, SubjectPublicKeyInfo of the wanted key or nothing
	kindOpened                      // its answer: the key's SubjectPublicKeyInfo
	kindAsk                         // from the worker, while it opens: a question for a secret
	kindSecret                      // its answer: the secret
	kindSignDigest                  // to the worker: hash, digest
	kindSignMessage                 // to the worker: hash, message
	kindSigned                      // its answer: the signature
	kindFailed                      // the answer to any question: operation, families, text, hint
	kindWarning                     // from the worker: text
)

// count returns how many fields a frame of this kind has, or 0 for an unknown kind.
func (k kind) count() uint8 {
	return [256]uint8{kindOpen: 2, kindOpened: 1, kindAsk: 1, kindSecret: 1, kindSignDigest: 2, kindSignMessage: 2,
		kindSigned: 1, kindFailed: 4, kindWarning: 1}[k]
}

// encode returns the frame as it is sent.
func (f frame) encode() []byte {
	size := 1
	for _, field := range f.fields {
		size += 4 + len(field)
	}
	b := make([]byte, 0, 4+size)
	b = binary.BigEndian.AppendUint32(b, uint32(size)) // #nosec G115 -- the sender keeps to maxFrame, and the reader refuses more
	b = append(b, byte(f.kind))
	for _, field := range f.fields {
		b = binary.BigEndian.AppendUint32(b, uint32(len(field))) // #nosec G115 -- as above
		b = append(b, field...)
	}
	return b
}

// readFrame reads one frame; its fields share one buffer. The buffer of r has room for any expected frame; the frame is
// cleared in it, because it may contain a secret. When the read is interrupted, readFrame can be called again and nothing
// is lost. It returns io.EOF at the end of the stream between two frames.
func readFrame(r *bufio.Reader) (frame, error) {
	whole, err := r.Peek(4)
	if err == nil {
		size := binary.BigEndian.Uint32(whole)
		if limit := r.Size() - 4; size < 1 || int64(size) > int64(limit) {
			return frame{}, fmt.Errorf("a frame of %d bytes, want 1 to %d", size, limit)
		}
		whole, err = r.Peek(4 + int(size))
	}
	if errors.Is(err, io.EOF) && len(whole) > 0 {
		err = fmt.Errorf("a frame was cut off: %w", io.ErrUnexpectedEOF)
	}
	if err != nil {
		return frame{}, err
	}
	body := bytes.Clone(whole[4:])
	clear(whole)
	_, _ = r.Discard(len(whole)) // it is in the buffer
	return decodeFrame(body)
}

// newReader returns the buffer of a worker for its socket.
func newReader(r io.Reader) *bufio.Reader { return bufio.NewReaderSize(r, 4+maxFrame) }

// decodeFrame reads what follows the length of a frame, at least one byte.
func decodeFrame(body []byte) (frame, error) {
	f := frame{kind: kind(body[0])}
	count := f.kind.count()
	if count == 0 {
		return frame{}, fmt.Errorf("a frame of unknown kind %d", body[0])
	}
	rest := body[1:]
	for range count {
		if len(rest) < 4 || int64(binary.BigEndian.Uint32(rest)) > int64(len(rest)-4) {
			return frame{}, fmt.Errorf("a frame of kind %d is too short for its %d fields", f.kind, count)
		}
		size := binary.BigEndian.Uint32(rest)
		f.fields = append(f.fields, rest[4:4+size:4+size])
		rest = rest[4+size:]
	}
	if len(rest) > 0 {
		return frame{}, fmt.Errorf("a frame of kind %d has %d bytes too many", f.kind, len(rest))
	}
	return f, nil
}

func errUnexpected(f frame) error { return fmt.Errorf("a frame of kind %d was not expected", f.kind) }

// families returns the errors that errors.Is must find on the other side too, in the order of their bits.
func families() []error {
	return []error{
		signer.ErrReference, signer.ErrKeyNotFound, signer.ErrKeyExists, signer.ErrAmbiguousKey, signer.ErrBadKey,
		signer.ErrAuth, signer.ErrUnsupported, signer.ErrUnavailable, signer.ErrBadSignature, signer.ErrClosed,
		context.Canceled, context.DeadlineExceeded, ErrSecretRefused,
	}
}

// failure returns the frame that sends an error to the other side. The error must contain no secret.
func failure(err error) frame {
	op, inner := "use", err
	if e, ok := errors.AsType[*signer.Error](err); ok {
		op, inner = e.Op, e.Err
	}
	var bits uint16
	for i, family := range families() {
		if errors.Is(err, family) {
			bits |= 1 << i
		}
	}
	return frame{kindFailed, [][]byte{
		clip(op), binary.BigEndian.AppendUint16(nil, bits), clip(inner.Error()), clip(fault.Hint(err)),
	}}
}

func clip(text string) []byte { return []byte(fault.Clip(text, maxText)) }

// remoteError is an error of the other side: its text, and what errors.Is finds in it.
type remoteError struct {
	text     string
	families []error
}

func (e *remoteError) Error() string   { return e.text }
func (e *remoteError) Unwrap() []error { return e.families }

// failed returns operation and error of a frame of kindFailed. The error wraps signer.ErrUnavailable if the frame names
// no family.
func failed(f frame) (op string, err error) {
	e := &remoteError{text: string(f.fields[2])}
	if len(f.fields[1]) == 2 {
		bits := binary.BigEndian.Uint16(f.fields[1])
		for i, family := range families() {
			if bits&(1<<i) != 0 {
				e.families = append(e.families, family)
			}
		}
	}
	if e.families == nil {
		e.families = []error{signer.ErrUnavailable}
	}
	return string(f.fields[0]), fault.WithHint(e, string(f.fields[3]))
}
