//go:build cgo

package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"hsmsign/fault"
	"hsmsign/signer"
)

// Every return value of PKCS#11 3.0 section 5.1 that is an error, and one of a vendor.
func TestClassify(t *testing.T) {
	rows := []struct {
		class  class
		family error
		codes  string // hexadecimal
	}{
		{classAuth, signer.ErrAuth, "A0 A1 A2 A3 A4 1B0 1B1 1B8"},
		{classSession, signer.ErrAuth, "101"},
		{classRequest, signer.ErrAuth, "B7 102 103 104 105"},
		{classRequest, signer.ErrUnsupported, "9 A 1B 20 21 51 54 70 71 B4 E2 120 121 130 140 180 1B7"},
		{classRequest, signer.ErrBadKey, "10 11 12 13 40 41 42 62 63 64 66 67 68 69 6A D0 D1 F0 F1 F2 110 112 113 114 115 170 1B9 203"},
		{classRequest, signer.ErrBadSignature, "C0 C1"},
		{classRequest, signer.ErrUnavailable, "1 7 8 50 B1 B6 B8 150 1B5 200 201"},
		{classModule, signer.ErrUnavailable, "2 3 5 30 31 32 E0 E1 190 191 1A0 1A1 1B6"},
		{classSession, signer.ErrUnavailable, "6 60 65 82 90 91 B0 B3 B5 100 160 202 80000000 80000042"},
	}
	seen := map[pkcs11.Error]bool{}
	for _, row := range rows {
		for _, text := range strings.Fields(row.codes) {
			var code pkcs11.Error
			if _, err := fmt.Sscanf(text, "%x", (*uint)(&code)); err != nil || seen[code] {
				t.Fatalf("%q: %v, or it is repeated here", text, err)
			}
			seen[code] = true
			err := call("C_Sign", code)
			if class := classOf(fmt.Errorf("wrapped: %w", err)); class != row.class || !errors.Is(err, row.family) || !errors.Is(err, code) {
				t.Errorf("%v: class %d; want %d and %q", err, class, row.class, row.family)
			}
			if n := countFamilies(err); n != 1 {
				t.Errorf("%v is of %d families; want one", err, n)
			}
		}
	}
	if len(seen) < 97 {
		t.Errorf("%d return values are checked; the standard has more", len(seen))
	}
}

func countFamilies(err error) int {
	n := 0
	for _, family := range []error{
		signer.ErrReference, signer.ErrKeyNotFound, signer.ErrKeyExists, signer.ErrAmbiguousKey, signer.ErrBadKey, signer.ErrAuth,
		signer.ErrUnsupported, signer.ErrUnavailable, signer.ErrBadSignature, signer.ErrClosed,
	} {
		if errors.Is(err, family) {
			n++
		}
	}
	return n
}

func TestCall(t *testing.T) {
	if err := call("C_Sign", nil); err != nil {
		t.Errorf("no error became %v", err)
	}
	tests := []struct {
		err   error
		says  string
		class class
	}{
		{call("C_Sign", pkcs11.Error(pkcs11.CKR_DEVICE_ERROR)), "C_Sign returns CKR_DEVICE_ERROR", classModule},
		{call("C_Sign", pkcs11.Error(0x80000042)), "C_Sign returns CKR 0x80000042", classSession},
		{call("C_Sign", errors.New("not a return value")), "C_Sign: not a return value", classRequest},
	}
	for _, tt := range tests {
		if !strings.HasSuffix(tt.err.Error(), tt.says) || classOf(tt.err) != tt.class || !errors.Is(tt.err, signer.ErrUnavailable) {
			t.Errorf("error %q of class %d; want %q and %d", tt.err, classOf(tt.err), tt.says, tt.class)
		}
	}
}

// Each family has a hint of its own; an error that has one keeps it, and a caller that has left needs none.
func TestAdvise(t *testing.T) {
	var hints []string
	for _, family := range []error{
		signer.ErrAuth, signer.ErrUnsupported, signer.ErrKeyNotFound, signer.ErrBadKey, signer.ErrBadSignature, signer.ErrUnavailable,
	} {
		hint := fault.Hint(advise(fmt.Errorf("%w: for a test", family)))
		if hint == "" || slices.Contains(hints, hint) {
			t.Errorf("%v: hint %q; want another one", family, hint)
		}
		hints = append(hints, hint)
	}
	for _, tt := range []struct {
		err  error
		want string
	}{
		{signer.ErrClosed, ""},
		{fmt.Errorf("%w: %w", signer.ErrUnavailable, context.Canceled), ""},
		{fault.WithHint(signer.ErrAuth, "its own"), "its own"},
		{call("C_Login", pkcs11.Error(pkcs11.CKR_PIN_LOCKED)), hintLocked},
	} {
		if got := fault.Hint(advise(tt.err)); got != tt.want {
			t.Errorf("%v: hint %q; want %q", tt.err, got, tt.want)
		}
	}
}
