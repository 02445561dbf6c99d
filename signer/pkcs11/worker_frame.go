//go:build cgo

package pkcs11

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

// maxFrame bounds a frame, and with it a message that is signed: twice what a CSR may have, and little enough for the
// buffer of a socket, so that who writes it does not wait for the other side.
const maxFrame = 128 << 10

// maxAnswer bounds the answer to a signature's question: the longest text of an error, or a signature of 2 KiB.
const maxAnswer = 2*maxText + 1<<10

// frame is what a program and its worker say to each other. On the wire it is, with big-endian numbers,
//
//	length of what follows uint32 | kind uint8 | fields, each: length uint32, bytes
//
// One socket carries the opening of the key. Each of the others, the lanes, carries one signature at a time, its
// question and its answer, so that no thread stands between the caller and the thread that signs. Neither side trusts
// the other: a frame that is too long, of an unknown kind, with another number of fields or out of turn ends the worker.
type frame struct {
	kind   kind
	fields [][]byte
}

// kind is what a frame is about.
type kind uint8

const (
	kindOpen        kind = iota + 1 // to the worker, first and once: key reference, the module's file, the public key that is looked for or nothing
	kindOpened                      // its answer: the key's SubjectPublicKeyInfo
	kindAskPIN                      // from the worker, while it opens: label and serial number of the token
	kindPIN                         // its answer: the PIN
	kindSignDigest                  // to the worker: hash, digest
	kindSignMessage                 // to the worker: hash, message
	kindSigned                      // its answer: the signature
	kindFailed                      // the answer to any question: operation, families, text, what to do
	kindWarning                     // from the worker: text
)

// count is how many fields a frame of this kind has; false for an unknown kind.
func (k kind) count() (int, bool) {
	counts := [...]int{kindOpen: 3, kindOpened: 1, kindAskPIN: 2, kindPIN: 1, kindSignDigest: 2, kindSignMessage: 2,
		kindSigned: 1, kindFailed: 4, kindWarning: 1}
	if k == 0 || int(k) >= len(counts) {
		return 0, false
	}
	return counts[k], true
}

// encode gives the frame as it goes over the wire.
func (f frame) encode() []byte {
	size := 1
	for _, field := range f.fields {
		size += 4 + len(field)
	}
	b := make([]byte, 0, 4+size)
	b = binary.BigEndian.AppendUint32(b, uint32(size)) // #nosec G115 -- what is sent was held to maxFrame, or is refused by the reader
	b = append(b, byte(f.kind))
	for _, field := range f.fields {
		b = binary.BigEndian.AppendUint32(b, uint32(len(field))) // #nosec G115 -- as above
		b = append(b, field...)
	}
	return b
}

// readFrame reads one frame; its fields share one buffer. At the end of the stream, between two frames, it gives
// io.EOF. Nothing is read ahead, so that no buffer keeps a PIN.
func readFrame(r io.Reader) (frame, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return frame{}, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size < 1 || size > maxFrame {
		return frame{}, errFrameSize(size, maxFrame)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(r, body); err != nil {
		return frame{}, fmt.Errorf("a frame was cut off: %w", io.ErrUnexpectedEOF)
	}
	return decodeFrame(body)
}

// peekFrame is readFrame for a reader whose buffer holds any frame that may come: when the read is interrupted it can
// be called again, and nothing is lost.
func peekFrame(r *bufio.Reader) (frame, error) {
	head, err := r.Peek(4)
	if err != nil {
		return frame{}, err
	}
	size := binary.BigEndian.Uint32(head)
	if limit := r.Size() - 4; size < 1 || int64(size) > int64(limit) {
		return frame{}, errFrameSize(size, limit)
	}
	whole, err := r.Peek(4 + int(size))
	if err != nil {
		return frame{}, err
	}
	f, err := decodeFrame(bytes.Clone(whole[4:]))
	_, _ = r.Discard(len(whole)) // it is in the buffer
	return f, err
}

func errFrameSize(size uint32, limit int) error {
	return fmt.Errorf("a frame of %d bytes, where 1 to %d are due", size, limit)
}

// decodeFrame reads what follows the length of a frame, at least one byte.
func decodeFrame(body []byte) (frame, error) {
	f := frame{kind: kind(body[0])}
	count, ok := f.kind.count()
	if !ok {
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

// errPINRefused stands in an error of a worker whose token has refused the PIN (classAuth). No PIN may follow.
var errPINRefused = errors.New("the token refused the PIN")

// carried are the errors that errors.Is must find on the other side, too. The order is that of the bits.
func carried() []error {
	return []error{
		signer.ErrReference, signer.ErrKeyNotFound, signer.ErrKeyExists, signer.ErrAmbiguousKey, signer.ErrBadKey,
		signer.ErrAuth, signer.ErrUnsupported, signer.ErrUnavailable, signer.ErrBadSignature, signer.ErrClosed,
		context.Canceled, context.DeadlineExceeded, errPINRefused,
	}
}

// maxText bounds a text that crosses; an error that lists ten tokens has some 1,500 bytes.
const maxText = 4 << 10

// cut bounds a text.
func cut(text string) []byte { return []byte(text[:min(len(text), maxText)]) }

// failure is the frame that tells an error to the other side. Errors of this package hold no secrets.
func failure(err error) frame {
	var e *signer.Error
	op, fix, inner := "use", "", err
	if errors.As(err, &e) {
		op, fix, inner = e.Op, fault.Hint(e), e.Err
	}
	var bits uint16
	for i, family := range carried() {
		if errors.Is(err, family) || family == errPINRefused && errors.Is(err, signer.ErrAuth) && classOf(err) == classAuth { //nolint:errorlint // which one of the list it is
			bits |= 1 << i
		}
	}
	families := binary.BigEndian.AppendUint16(nil, bits)
	return frame{kindFailed, [][]byte{cut(op), families, cut(inner.Error()), cut(fix)}}
}

// remoteError is an error of the other side: what it says, and what errors.Is finds in it.
type remoteError struct {
	text     string
	families []error
}

func (e *remoteError) Error() string   { return e.text }
func (e *remoteError) Unwrap() []error { return e.families }

// failed gives the error that a frame of kindFailed tells, as one of the reference r.
func (r reference) failed(f frame) error {
	e := &remoteError{text: string(f.fields[2])}
	if len(f.fields[1]) == 2 {
		bits := binary.BigEndian.Uint16(f.fields[1])
		for i, family := range carried() {
			if bits&(1<<i) != 0 {
				e.families = append(e.families, family)
			}
		}
	}
	if e.families == nil {
		e.families = []error{signer.ErrUnavailable}
	}
	return r.fail(string(f.fields[0]), e, string(f.fields[3]))
}
