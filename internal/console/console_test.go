package console

import (
	"errors"
	"testing"

	"hsmsign/fault"
)

// Two errors that were joined become one line, without the escape that a newline from an input would become.
func TestErrorLine(t *testing.T) {
	err := errors.Join(fault.Usage.Errorf("disk full").Fix("make room"), errors.New("and not recorded"))
	if got, want := Printable(ErrorLine(err)), "disk full; and not recorded; make room"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
