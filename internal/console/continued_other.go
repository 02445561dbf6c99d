//go:build !linux && !darwin

package console

import (
	"os"

	"golang.org/x/term"
)

func whenContinued(func()) (stop func()) { return func() {} }

func hideInput(int) error { return nil }

func readHidden(tty *os.File) ([]byte, error) { return term.ReadPassword(int(tty.Fd())) }
