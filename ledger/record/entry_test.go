package record

import (
	"bytes"
	"testing"
	"time"
)

func sample() *Entry {
	o := Opening{Name: "csr", Data: []byte("csr")}
	return &Entry{
		Time: time.Date(2026, 6, 1, 12, 0, 0, 1e6, time.UTC), Kind: KindIssued, Request: ID{1}, Customer: ID{2}, Actor: ID{3}, From: ID{9}, Channel: "local",
		CSR: Hash{4}, SPKI: Hash{5}, Vendor: Hash{6}, Chain: Hash{7}, Digest: "SHA-256", File: Hash{8}, Operation: "x", Commitments: []Commitment{o.Commitment()},
	}
}

// Each field changes the bytes, and ParseEntry returns it.
func TestEntry(t *testing.T) {
	leaf, err := sample().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseEntry(leaf)
	if err != nil {
		t.Fatal(err)
	}
	if back, err := again.Marshal(); err != nil || !bytes.Equal(back, leaf) || again.Time != sample().Time || again.Commitments[0] != sample().Commitments[0] {
		t.Errorf("%+v, %v", again, err)
	}
	for i := range leaf { // no byte can be changed or removed without another entry or an error
		for _, other := range [][]byte{append(append(append([]byte{}, leaf[:i]...), leaf[i]^1), leaf[i+1:]...), leaf[:i]} {
			if e, err := ParseEntry(other); err == nil {
				if back, err := e.Marshal(); err != nil || !bytes.Equal(back, other) {
					t.Errorf("byte %d: another form of one entry", i)
				}
			}
		}
	}
}

func FuzzParseEntry(f *testing.F) {
	for _, e := range []*Entry{sample(), {Kind: KindGenesis, Time: time.Unix(1, 0)}, {}} {
		leaf, err := e.Marshal()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(leaf)
	}
	f.Fuzz(func(t *testing.T, leaf []byte) {
		e, err := ParseEntry(leaf)
		if err != nil {
			return
		}
		if back, err := e.Marshal(); err != nil || !bytes.Equal(back, leaf) {
			t.Errorf("%x is written as %x, %v", leaf, back, err)
		}
	})
}
