// Command hsmsign turns a customer's certificate signing request into Apple's Push Certificate Request, with the MDM
// vendor's private key in an HSM, a KMS or a file.
//
// Only this package exits and reads the environment. It has one file per command: flags, terminal, printing. What a
// service would also have to decide is in package agent and the packages below it.
package main

import (
	"context"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

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
	forbidCoreDumps()
	debug.SetGCPercent(gcPercent)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// A second signal kills at once: a module may block in a call that cannot be canceled.
	context.AfterFunc(ctx, stop)
	p := &program{
		con: console.New("hsmsign", os.Stdout, os.Stderr), in: input.Reader{Stdin: os.Stdin}, getenv: os.Getenv, prompt: console.Prompt("hsmsign"),
	}
	err := p.app().RunContext(ctx, args)
	if err == nil {
		err = p.con.Flush()
	}
	if err != nil && !isSilent(err) {
		p.con.Fail(err)
	}
	return exitCode(err)
}
