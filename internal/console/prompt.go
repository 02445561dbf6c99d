package console

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/term"

	"hsmsign/fault"
	"hsmsign/internal/input"
)

// promptTimeout bounds a person's typing.
const promptTimeout = 2 * time.Minute

// openTerminal opens the terminal of the person who started the program, even if standard input is a file or a pipe.
func openTerminal() (*os.File, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil && term.IsTerminal(int(os.Stdin.Fd())) {
		return os.Stdin, nil // Windows has no /dev/tty
	}
	return tty, err
}

// Prompt returns the function that asks the person at the terminal for a secret, without echo, for secret.Reader; nil if
// there is no terminal. The name is that of the program.
func Prompt(name string) func(ctx context.Context, label string) ([]byte, error) {
	tty, err := openTerminal()
	if err != nil {
		return nil
	}
	return func(ctx context.Context, label string) ([]byte, error) { return ask(ctx, tty, name+": "+label+": ") }
}

// Confirm asks a question at the terminal. The answers y and yes confirm it. Without a terminal, the error is of kind usage.
func Confirm(ctx context.Context, question string) (bool, error) {
	tty, err := openTerminal()
	if err != nil {
		return false, fault.Usage.Errorf("there is no terminal to ask at").Fix("add --yes to do it without a question")
	}
	_, _ = fmt.Fprint(tty, Printable(question)) // a person who cannot read it cannot type either
	answer, err := input.Wait(ctx, promptTimeout, func() ([]byte, error) { return bufio.NewReader(tty).ReadBytes('\n') })
	if err != nil {
		return false, fmt.Errorf("no answer at the terminal: %w", err)
	}
	text := strings.ToLower(strings.TrimSpace(string(answer)))
	return text == "y" || text == "yes", nil
}

// ask asks on the terminal. If ctx or the person's time ends first, the terminal is restored. A shell turns the echo on
// when it continues a stopped program (Ctrl-Z, fg), so ask turns it off again and repeats the question.
func ask(ctx context.Context, tty *os.File, text string) ([]byte, error) {
	fd := int(tty.Fd())
	before, err := term.GetState(fd)
	if err != nil {
		return nil, err
	}
	defer func() { _ = term.Restore(fd, before) }()
	show := func() {
		if hideInput(fd) == nil { // first: a fast typist's answer must not be shown either
			_, _ = fmt.Fprint(tty, Printable(text)) // a person who cannot read it cannot type either
		}
	}
	show()
	stop := whenContinued(show)
	answer, err := input.Wait(ctx, promptTimeout, func() ([]byte, error) { return term.ReadPassword(fd) })
	stop()
	_, _ = fmt.Fprintln(tty)
	if err != nil {
		return nil, fmt.Errorf("no answer at the terminal: %w", err)
	}
	return answer, nil
}
