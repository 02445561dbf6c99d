package console

import (
	"bytes"
	"errors"
	"os"
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

// A color repeats what a word says, on a terminal only; what comes from an input has none.
func TestStyled(t *testing.T) {
	for color, want := range map[bool]string{
		true:  "\x1b[31mFAIL\x1b[0m a\\u001b[32mb \x1b[32mok\x1b[0m plain 3\n",
		false: "FAIL a\\u001b[32mb ok plain 3\n",
	} {
		var out bytes.Buffer
		c := &Console{out: &out, color: color}
		c.Printf("%s %s %s %s %d", Styled{Bad, "FAIL"}, "a\x1b[32mb", Styled{Good, "ok"}, Styled{Plain, "plain"}, 3)
		if out.String() != want {
			t.Errorf("color %v: %q, want %q", color, out.String(), want)
		}
	}
}

// On a pipe nothing is colored, whatever NO_COLOR says.
func TestNoColorOnPipe(t *testing.T) {
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	defer write.Close()
	if New("x", write, write, "").color {
		t.Error("a pipe is colored")
	}
}
