// Command hsmsign turns a customer's certificate signing request into Apple's Push Certificate Request, with the MDM
// vendor's private key in an HSM, a KMS or a file.
//
// Only this package exits and reads the environment. It has one file per command: flags, terminal, printing. What a
// service would also have to decide is in package agent and the packages below it.
package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"hsmsign/api"
	"hsmsign/fault"
	"hsmsign/internal/console"
	"hsmsign/internal/input"
)

func main() {
	os.Exit(run(os.Args))
}

// gcPercent lets the heap of a few MB grow: at the default the collector would run all the time, and what a batch needs
// does not grow with it.
const gcPercent = 400

// run is main with an exit code, so that script tests can call it.
func run(args []string) int {
	// A fault of the runtime ends with SIGABRT (134): with 2 it would look like a usage error. There is no core.
	debug.SetTraceback("crash")
	forbidCoreDumps()
	debug.SetGCPercent(gcPercent)
	ctx, stop := untilSignal(context.Background())
	defer stop()
	p := &program{
		con: console.New("hsmsign", os.Stdout, os.Stderr, os.Getenv("NO_COLOR")), in: input.Reader{Stdin: os.Stdin}, getenv: os.Getenv, prompt: console.Prompt("hsmsign"),
	}
	err := p.runCommand(ctx, args)
	if err == nil {
		err = p.con.Flush()
	}
	if err != nil && !isSilent(err) {
		p.con.Fail(err)
		if p.json {
			p.con.JSON(api.Failure{Error: api.NewError(err)})
		}
	}
	code := exitCode(err)
	if signal, ok := errors.AsType[signalError](context.Cause(ctx)); ok && code == fault.Interrupted.Exit() {
		code = 128 + int(signal.Signal)
	}
	return code
}

// signalError is why the program's context ended.
type signalError struct{ syscall.Signal }

func (s signalError) Error() string { return s.String() }

// untilSignal returns a context that ends with the first SIGINT or SIGTERM. The second one kills at once: a module may
// block in a call that cannot be canceled.
func untilSignal(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(parent)
	received := make(chan os.Signal, 1)
	signal.Notify(received, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		select {
		case s := <-received:
			signal.Stop(received)
			cancel(signalError{s.(syscall.Signal)})
		case <-ctx.Done():
		}
	}()
	return ctx, func() { signal.Stop(received); cancel(nil) }
}

// exitStatus ends a command that has printed everything there is to say. Its value is the exit code.
type exitStatus int

func (e exitStatus) Error() string { return "defects were found" }

// errDefects ends a command whose findings were printed.
var errDefects = exitStatus(fault.Defects.Exit())

func isSilent(err error) bool {
	_, ok := errors.AsType[exitStatus](err)
	return ok
}

// exitCode returns the exit code for an error; docs/cli.md lists them.
func exitCode(err error) int {
	if status, ok := errors.AsType[exitStatus](err); ok {
		return int(status)
	}
	return fault.KindOf(err).Exit()
}
