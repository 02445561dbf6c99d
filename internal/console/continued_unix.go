//go:build linux || darwin

package console

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// whenContinued calls do whenever the program continues after it was stopped. The returned function ends that, and waits
// for a call in progress.
func whenContinued(do func()) (stop func()) {
	continued, done := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(continued, syscall.SIGCONT)
	var running sync.WaitGroup
	running.Go(func() {
		for {
			select {
			case <-continued:
				do()
			case <-done:
				return
			}
		}
	})
	return func() {
		signal.Stop(continued)
		close(done)
		running.Wait()
	}
}

// readHidden reads a line from a terminal whose echo is off. Unlike term.ReadPassword it leaves the terminal's settings alone: an
// abandoned read that begins late would turn the echo off again.
func readHidden(tty *os.File) ([]byte, error) {
	line, err := bufio.NewReader(io.LimitReader(tty, maxAnswer)).ReadBytes('\n')
	if errors.Is(err, io.EOF) && len(line) > 0 { // Ctrl-D ends it too
		err = nil
	}
	return bytes.TrimRight(line, "\r\n"), err
}

// maxAnswer is the maximum length of an answer in bytes.
const maxAnswer = 4096

// hideInput turns the echo of a terminal off, as term.ReadPassword does.
func hideInput(fd int) error {
	state, err := unix.IoctlGetTermios(fd, ioctlGetTermios)
	if err != nil {
		return err
	}
	state.Lflag &^= unix.ECHO
	state.Lflag |= unix.ICANON | unix.ISIG
	state.Iflag |= unix.ICRNL
	return unix.IoctlSetTermios(fd, ioctlSetTermios, state)
}
