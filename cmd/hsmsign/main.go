// Command hsmsign turns a customer's certificate signing request into Apple's Push Certificate Request, with the
// MDM vendor's private key in an HSM, a KMS or a file.
//
// Only this package prints, exits, and reads the environment and the terminal; ui.go does the printing.
package main

import (
	"context"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
)

func main() {
	os.Exit(run(os.Args))
}

// gcPercent lets the heap of a few MB grow to some more: the collector would run all the time otherwise, and what a
// batch needs does not grow with it.
const gcPercent = 400

// run is main with an exit code, so that script tests can call it.
func run(args []string) int {
	forbidCoreDumps()
	debug.SetGCPercent(gcPercent)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// A second signal kills at once: a module may hold a call that cannot be cancelled.
	context.AfterFunc(ctx, stop)
	p := &program{ui: newUI(os.Stdout, os.Stderr), stdin: os.Stdin, getenv: os.Getenv, prompt: promptFor()}
	err := p.app().RunContext(ctx, args)
	if err == nil {
		err = p.ui.flush()
	}
	if err != nil {
		p.ui.fail(err)
	}
	return exitCode(err)
}
