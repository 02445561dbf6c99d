package pemtext

import (
	"encoding/base64"
	"encoding/pem"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestScan(t *testing.T) {
	for _, tt := range []struct {
		text string
		want []Block
	}{
		{"", nil},
		{"-----BEGIN ", nil},
		{"-----BEGIN A\n-----", nil},
		{"x\n-----BEGIN A-----\nAA==\n-----END A-----\n", []Block{{"A", "\nAA==\n", 2, true}}},
		{"-----BEGIN A-----\nAA==\n-----END A----------BEGIN B-----\n-----END B-----", []Block{{"A", "\nAA==\n", 1, true}, {"B", "\n", 3, true}}},
		{"-----BEGIN A-----\nAA\n-----BEGIN A-----\n-----END A-----", []Block{{"A", "\nAA\n", 1, false}, {"A", "\n", 3, true}}},
		{"-----BEGIN A-----\n-----END B-----\n\n-----BEGIN B-----", []Block{{"A", "\n-----END B-----\n\n", 1, false}, {"B", "", 4, false}}},
		{"-----BEGIN A-----BEGIN B-----\n-----END B-----", []Block{{"B", "\n", 1, true}}},
	} {
		if diff := cmp.Diff(tt.want, slices.Collect(Scan(tt.text))); diff != "" {
			t.Errorf("%q: %s", tt.text, diff)
		}
	}
}

func TestDER(t *testing.T) {
	for text, want := range map[string]string{
		"\nTUlJ\n": "MII", "\r\n TU\r\n\tlJ": "MII", "\nProc-Type: 4\nDEK-Info: x\n\nTUlJ\n": "MII", "\nTUk=\n": "MI", "": "",
	} {
		if der, err := (Block{Text: text}).DER(); err != nil || string(der) != want {
			t.Errorf("%q: %q, %v", text, der, err)
		}
	}
	for _, text := range []string{"\nTUl=\n", "TU*J", "TUlJ*", "TUk"} { // the first has bits after the last byte
		if der, err := (Block{Text: text}).DER(); err == nil || der != nil {
			t.Errorf("%q: %q", text, der)
		}
	}
}

// The time grows with the length: a quadratic scanner needs seconds for a megabyte of these.
func TestScanIsLinear(t *testing.T) {
	for _, part := range []string{"-----BEGIN A-----", "-----BEGIN A-----\n", "-----BEGIN ", "-----BEGIN A-----\n-----END A-----", "-----END A-----", "-----", "A:\n"} {
		text := "-----BEGIN A-----\n" + strings.Repeat(part, (1<<20)/len(part))
		started := time.Now()
		for b := range Scan(text) {
			_, _ = b.DER()
		}
		if took := time.Since(started); took > time.Second {
			t.Errorf("%q: %v", part, took)
		}
	}
}

// FuzzScan checks that a block is found where encoding/pem finds one, with the same content.
func FuzzScan(f *testing.F) {
	f.Add([]byte("MII"), "text before")
	f.Fuzz(func(t *testing.T, der []byte, before string) {
		if strings.Contains(before, "-----") {
			return
		}
		text := before + "\n" + string(pem.EncodeToMemory(&pem.Block{Type: "X", Bytes: der}))
		blocks := slices.Collect(Scan(text))
		if len(blocks) != 1 || !blocks[0].Whole || blocks[0].Line != 2+strings.Count(before, "\n") {
			t.Fatalf("%+v", blocks)
		}
		if got, err := blocks[0].DER(); err != nil || string(got) != string(der) {
			t.Errorf("%q, %v; want %s", got, err, base64.StdEncoding.EncodeToString(der))
		}
	})
}
