//go:build cgo

package pkcs11

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/pkcs11"

	"hsmsign/fault"
	"hsmsign/signer"
)

// framesOf is one frame of each kind.
func framesOf() []frame {
	var all []frame
	for k := kindOpen; ; k++ {
		n, ok := k.count()
		if !ok {
			return all
		}
		f := frame{kind: k}
		for i := range n {
			f.fields = append(f.fields, bytes.Repeat([]byte{byte(k)}, 10*i))
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
	for _, f := range want {
		got, err := readFrame(&stream)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(f, got, cmp.AllowUnexported(frame{})); diff != "" {
			t.Errorf("(-sent +read)\n%s", diff)
		}
	}
	if _, err := readFrame(&stream); !errors.Is(err, io.EOF) {
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
		if f, err := readFrame(bytes.NewReader(tt.in)); err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v, %v; want %q", name, f, err, tt.says)
		}
	}
}

func TestErrorsCross(t *testing.T) {
	r := reference{ref: parse(t, "pkcs11:object=k?module-path=/m&pin-value=1234")}
	bare := errors.New("disk on fire")
	for _, tt := range []struct {
		err     error
		is, not []error
		text    string
	}{
		{r.fail("find", fmt.Errorf("%w: none there", signer.ErrKeyNotFound), "look"), []error{signer.ErrKeyNotFound}, []error{signer.ErrAuth, signer.ErrUnavailable},
			"find " + r.ref.String() + ": key not found: none there"},
		{r.fail("log in to", call("C_Login", pkcs11.Error(pkcs11.CKR_PIN_LOCKED)), "look"), []error{signer.ErrAuth, errPINRefused}, nil, "CKR_PIN_LOCKED"},
		{r.fail("sign with", call("C_Sign", pkcs11.Error(pkcs11.CKR_USER_NOT_LOGGED_IN)), "look"), []error{signer.ErrAuth}, []error{errPINRefused}, ""},
		{r.fail("sign with", fmt.Errorf("%w: %w", signer.ErrUnavailable, context.DeadlineExceeded), "look"), []error{signer.ErrUnavailable, context.DeadlineExceeded}, []error{context.Canceled}, ""},
		{r.fail("sign with", bare, "look"), []error{signer.ErrUnavailable}, []error{signer.ErrAuth}, "disk on fire"},
		{r.fail("sign with", errors.New(strings.Repeat("x", 2*maxText)), "look"), nil, nil, "xxx"},
	} {
		f, err := readFrame(bytes.NewReader(failure(tt.err).encode()))
		if err != nil {
			t.Fatal(err)
		}
		got := r.failed(f)
		for _, family := range tt.is {
			refused(t, got, family, tt.text)
		}
		for _, family := range tt.not {
			if errors.Is(got, family) {
				t.Errorf("%v is %v, which %v is not", got, family, tt.err)
			}
		}
		var e *signer.Error
		if !errors.As(got, &e) || fault.Hint(e) != "look" || e.Ref.String() != r.ref.String() || strings.Contains(e.Error(), "1234") || len(e.Error()) > 2*maxText {
			t.Errorf("what crossed is %#v", got)
		}
	}
}

// FuzzFrame: what reads as a frame is, written again, the same bytes.
func FuzzFrame(f *testing.F) {
	f.Fuzz(func(t *testing.T, in []byte) {
		got, err := readFrame(bytes.NewReader(in))
		if err != nil {
			return
		}
		if n, ok := got.kind.count(); !ok || n != len(got.fields) {
			t.Fatalf("kind %d with %d fields", got.kind, len(got.fields))
		}
		again := got.encode()
		if !bytes.HasPrefix(in, again) {
			t.Fatalf("%x reads as %v, which writes as %x", in, got, again)
		}
		if got.kind == kindFailed {
			refused(t, reference{}.failed(got), anyFamily(got))
		}
	})
}

// anyFamily is a family that the error of a frame must wrap.
func anyFamily(f frame) error {
	if b := f.fields[1]; len(b) == 2 {
		for i, family := range carried() {
			if binary.BigEndian.Uint16(b)&(1<<i) != 0 {
				return family
			}
		}
	}
	return signer.ErrUnavailable
}

func TestFuzzFrameCorpus(t *testing.T) {
	seeds, err := filepath.Glob(filepath.Join("testdata", "fuzz", "FuzzFrame", "*"))
	if err != nil || len(seeds) < len(framesOf()) {
		t.Fatalf("%d seeds for FuzzFrame, %v; they are committed with the code", len(seeds), err)
	}
	for _, seed := range seeds {
		text, err := os.ReadFile(seed)
		if err != nil || !strings.HasPrefix(string(text), "go test fuzz v1\n[]byte(") {
			t.Errorf("%s is not a seed: %v", seed, err)
		}
	}
}
