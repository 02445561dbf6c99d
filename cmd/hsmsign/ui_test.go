package main

import (
	"errors"
	"testing"
)

// Two errors that were joined are one line, without the escape that a newline from an input would become.
func TestDescribeError(t *testing.T) {
	err := errors.Join(usage("make room", "disk full"), errors.New("and not written down"))
	if got, want := printable(describeError(err)), "disk full; and not written down; make room"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
