package backup

import (
	"testing"

	"hsmsign/ledger"
)

// The newest checkpoint is the largest, and of two of one size the one with cosignatures.
func TestNewest(t *testing.T) {
	small, bare, cosigned := &ledger.Checkpoint{Size: 1, Signed: []byte("a long note")}, &ledger.Checkpoint{Size: 2, Signed: []byte("x")}, &ledger.Checkpoint{Size: 2, Signed: []byte("xx")}
	for _, known := range [][]*ledger.Checkpoint{{small, bare, cosigned}, {cosigned, bare, small}, {bare, cosigned}} {
		if got := newest(known); got != cosigned {
			t.Errorf("got %+v", got)
		}
	}
	if got := newest(nil); got != nil {
		t.Errorf("of none: %+v", got)
	}
}
