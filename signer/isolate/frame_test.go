//go:build linux

package isolate

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
	"hsmsign/signer"
)

// framesOf returns one frame of each kind.
func framesOf() []frame {
	var all []frame
	for k := kindOpen; ; k++ {
		n := k.count()
		if n == 0 {
			return all
		}
		f := frame{kind: k}
		for i := range n {
			f.fields = append(f.fields, bytes.Repeat([]byte{byte(k)}, 10*int(i)))
		}
		all = append(all, f)
	}
}

func TestFrames(t *testing.T) {
	var stream bytes.Buffer
	want := framesOf()
	for _, f := range want {
		stream.Write(f.encode())
	}
	if len(want) != int(kindWarning) {
		t.Fatalf("%d kinds; want %d", len(want), kindWarning)
	}
	in := newReader(&stream)
	for _, f := range want {
		buffered := testkit.Value(in.Peek(len(f.encode())))(t)
		got, err := readFrame(in)
		if diff := cmp.Diff(f, got, cmp.AllowUnexported(frame{})); err != nil || diff != "" {
			t.Errorf("%v (-sent +read)\n%s", err, diff)
		}
		if !bytes.Equal(buffered, make([]byte, len(buffered))) {
			t.Errorf("the buffer keeps a frame of kind %d, which may contain a secret", f.kind)
		}
	}
	if _, err := readFrame(in); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v; want io.EOF", err)
	}
}

func TestBadFrames(t *testing.T) {
	good := frame{kindSignDigest, [][]byte{{5}, digest}}.encode()
	change := func(at int, b ...byte) []byte {
		c := bytes.Clone(good)
		copy(c[at:], b)
		return c
	}
	for name, tt := range map[string]struct {
		in   []byte
		says string
	}{
		"cut in its head":      {good[:3], "unexpected EOF"},
		"cut":                  {good[:20], "cut off"},
		"too short":            {[]byte{0, 0, 0, 0, 1}, "a frame of 0 bytes"},
		"too long":             {binary.BigEndian.AppendUint32(nil, maxFrame+1), "a frame of 131073 bytes"},
		"kind 0":               {change(4, 0), "unknown kind 0"},
		"unknown kind":         {change(4, byte(kindWarning)+1), "unknown kind 10"},
		"a field too many":     {change(4, byte(kindSigned)), "bytes too many"},
		"a field too few":      {change(4, byte(kindFailed)), "too short"},
		"field past its frame": {change(5, 0xff, 0xff, 0xff, 0xff), "too short"},
		"bytes behind":         {change(10, 0, 0, 0, 31), "1 bytes too many"},
	} {
		if f, err := readFrame(newReader(bytes.NewReader(tt.in))); err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v, %v; want %q", name, f, err, tt.says)
		}
	}
}

// Operation, families, text and hint of an error cross; a family that it does not have does not appear.
func TestErrorsCross(t *testing.T) {
	ref := signer.Ref{Scheme: "test", Path: "x"}
	wrap := func(op string, err error) error {
		return &signer.Error{Op: op, Ref: ref, Err: fault.WithHint(err, "look")}
	}
	for _, tt := range []struct {
		err     error
		op      string
		is, not []error
		text    string
	}{
		{wrap("find", fmt.Errorf("%w: nothing there", signer.ErrKeyNotFound)), "find", []error{signer.ErrKeyNotFound}, []error{signer.ErrAuth, signer.ErrUnavailable}, "key not found: nothing there"},
		{wrap("log in", fmt.Errorf("%w: %w", signer.ErrAuth, ErrSecretRefused)), "log in", []error{signer.ErrAuth, ErrSecretRefused}, nil, ""},
		{wrap("sign", fmt.Errorf("%w: x", signer.ErrAuth)), "sign", []error{signer.ErrAuth}, []error{ErrSecretRefused}, ""},
		{wrap("sign", fmt.Errorf("%w: %w", signer.ErrUnavailable, context.DeadlineExceeded)), "sign", []error{signer.ErrUnavailable, context.DeadlineExceeded}, []error{context.Canceled}, ""},
		{fault.WithHint(errors.New("disk on fire"), "look"), "use", []error{signer.ErrUnavailable}, []error{signer.ErrAuth}, "disk on fire"},
		{wrap("sign", errors.New(strings.Repeat("x", 2*maxText))), "sign", nil, nil, "xxx"},
	} {
		f := testkit.Value(readFrame(newReader(bytes.NewReader(failure(tt.err).encode()))))(t)
		op, got := failed(f)
		for _, family := range tt.is {
			if !errors.Is(got, family) {
				t.Errorf("%v is not %v", got, family)
			}
		}
		for _, family := range tt.not {
			if errors.Is(got, family) {
				t.Errorf("%v is %v, which %v is not", got, family, tt.err)
			}
		}
		if op != tt.op || !strings.Contains(got.Error(), tt.text) || fault.Hint(got) != "look" || fault.KindOf(got) == fault.Internal || len(got.Error()) > maxText {
			t.Errorf("%q, %v, hint %q", op, got, fault.Hint(got))
		}
	}
}

// FuzzFrame checks that a frame that was read encodes to the same bytes, and that an error always has a family.
func FuzzFrame(f *testing.F) {
	testkit.Seeds(f, "FuzzFrame", len(framesOf()))
	f.Fuzz(func(t *testing.T, in []byte) {
		got, err := readFrame(newReader(bytes.NewReader(in)))
		if err != nil {
			return
		}
		if n := int(got.kind.count()); n == 0 || n != len(got.fields) {
			t.Fatalf("kind %d with %d fields", got.kind, len(got.fields))
		}
		if again := got.encode(); !bytes.HasPrefix(in, again) {
			t.Fatalf("%x reads as %v, which encodes to %x", in, got, again)
		}
		if got.kind != kindFailed {
			return
		}
		_, err = failed(got)
		for _, family := range families() {
			if errors.Is(err, family) {
				return
			}
		}
		t.Fatalf("%v has no family", err)
	})
}

// newLane returns a lane and the worker's end of it.
func newLane(t *testing.T) (*lane, *os.File) {
	t.Helper()
	ours, theirs, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = ours.Close(), theirs.Close() })
	return &lane{ours, bufio.NewReaderSize(ours, maxAnswer)}, theirs
}

// Neither side accepts anything but the one answer to a question, or a question.
func TestLaneBreaksRules(t *testing.T) {
	signed := string(frame{kindSigned, [][]byte{digest}}.encode())
	for name, tt := range map[string]struct{ says, tells string }{
		"text":           {"HTTP/1.1 400 Bad Request\r\n", "a frame of"},
		"too long":       {string(frame{kindSigned, [][]byte{make([]byte, maxAnswer)}}.encode()), "a frame of"},
		"another answer": {string(frame{kindOpened, [][]byte{digest}}.encode()), "was not expected"},
		"two answers":    {signed + signed, "was not expected"},
		"no answer":      {signed[:20], "EOF"},
	} {
		l, theirs := newLane(t)
		testkit.Value(theirs.WriteString(tt.says))(t)
		_ = theirs.Close()
		if _, err := l.wait(t.Context(), time.Now().Add(20*time.Second)); err == nil || !strings.Contains(err.Error(), tt.tells) {
			t.Errorf("%s: %v; want %q", name, err, tt.tells)
		}
	}
	for _, says := range []string{"GET / HTTP/1.1\r\n", string(frame{kindSecret, [][]byte{nil}}.encode()), signed} {
		l, theirs := newLane(t)
		testkit.Value(l.file.WriteString(says))(t)
		if err := serveLane(theirs, nil); err == nil || !strings.Contains(err.Error(), "a frame of") {
			t.Errorf("%q: %v", says, err)
		}
	}
	if err := Serve(t.Context(), []string{"65"}, nil); !errors.Is(err, signer.ErrReference) {
		t.Errorf("65 lanes: %v", err)
	}
	if err := Serve(t.Context(), nil, nil); !errors.Is(err, signer.ErrReference) {
		t.Errorf("no lanes: %v", err)
	}
}

// Half an answer that has come when its caller leaves is not lost, and the longest question does not block.
func TestLaneInterrupted(t *testing.T) {
	l, theirs := newLane(t)
	whole := frame{kindSigned, [][]byte{digest}}.encode()
	testkit.Value(theirs.Write(whole[:20]))(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	end := time.Now().Add(20 * time.Second)
	question := frame{kindSignMessage, [][]byte{{5}, make([]byte, maxSigned)}}
	if n := len(question.encode()); n > maxFrame {
		t.Fatalf("%d bytes", n)
	}
	if _, err := l.ask(ctx, question, end); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%v; want the end of the context", err)
	}
	if _, err := l.wait(t.Context(), time.Now().Add(3*laneTick)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%v; want the end of the wait", err)
	}
	testkit.Value(theirs.Write(whole[20:]))(t)
	if f, err := l.wait(t.Context(), end); err != nil || !bytes.Equal(f.fields[0], digest) {
		t.Errorf("%v, %v", f, err)
	}
}
