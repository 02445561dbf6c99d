package main

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/term"
)

// openTerminal opens the terminal of whoever started the program, also where standard input is a file or a pipe.
func openTerminal() (*os.File, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil && term.IsTerminal(int(os.Stdin.Fd())) {
		return os.Stdin, nil // Windows has no /dev/tty
	}
	return tty, err
}

// promptFor gives the function that asks the person at the terminal for a secret; nil where there is none.
func promptFor() func(context.Context, string) ([]byte, error) {
	tty, err := openTerminal()
	if err != nil {
		return nil
	}
	return func(ctx context.Context, label string) ([]byte, error) { return ask(ctx, tty, label) }
}

// ask asks on the terminal, without echo. When ctx or the person's time ends first the terminal is put back as it
// was.
func ask(ctx context.Context, tty *os.File, label string) ([]byte, error) {
	fd := int(tty.Fd())
	before, err := term.GetState(fd)
	if err != nil {
		return nil, err
	}
	_, _ = fmt.Fprintf(tty, "hsmsign: %s: ", printable(label)) // who cannot read it cannot type either
	secret, err := waitFor(ctx, openTimeout, func() ([]byte, error) { return term.ReadPassword(fd) })
	_, _ = fmt.Fprintln(tty)
	if err != nil {
		_ = term.Restore(fd, before)
		return nil, fmt.Errorf("no answer at the terminal: %w", err)
	}
	return secret, nil
}
