// Package hook asks a program of the operator whether a request may be signed.
//
// The program gets a question, one JSON object, on standard input, and answers with its exit code: 0 allows, 1 denies, and
// anything else is a failure. The first line of its standard output is the reason. It runs in the folder /, with an
// environment that is only PATH=/usr/bin:/bin, in a process group of its own, which is killed at the time limit and when the
// program has ended. Standard error is discarded.
//
//	programs := hook.New()
//	program, err := programs.Open("/usr/lib/hsmsign/entitled", 5*time.Second)
//	answer, err := program.Ask(ctx, question)
//
// Open and Ask refuse a program that others could have written: it and every folder above it must belong to root or to the
// user that runs hsmsign, and neither group nor others may write there. Ask also refuses a program that has changed since
// Open. Everything is safe for concurrent use.
package hook

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"time"
	"unicode"

	"hsmsign/fault"
	"hsmsign/internal/input"
)

const (
	// atOnce is how many programs run at once; further questions wait.
	atOnce = 8
	// maxOutput is how much of the output is kept.
	maxOutput = 4 << 10
	// maxLine is the length of the reason.
	maxLine = 200
	// maxProgram is the size of a program.
	maxProgram = 64 << 20
	// waitDelay is how long the children of a program may run after it has ended and keep its output open.
	waitDelay = 100 * time.Millisecond
	// environment is the whole environment of a program.
	environment = "PATH=/usr/bin:/bin"
)

// Programs are the programs of one configuration. Together they have a limit of processes.
type Programs struct{ running chan struct{} }

// New returns an empty set of programs.
func New() *Programs { return &Programs{running: make(chan struct{}, atOnce)} }

// Program is a program that answers questions.
type Program struct {
	path    string
	timeout time.Duration
	hash    [sha256.Size]byte
	all     *Programs
}

// Answer is what a program answered.
type Answer struct {
	Program [sha256.Size]byte // SHA-256 of the program
	Exit    int               // 0: allowed, 1: denied
	Line    string            // first line of its output, clipped, without control characters; may be empty
}

// Allowed returns whether the program allows what it was asked.
func (a Answer) Allowed() bool { return a.Exit == 0 }

// Open checks a program, which is named by its absolute path without symbolic links. The error is of kind usage.
func (p *Programs) Open(path string, timeout time.Duration) (*Program, error) {
	hash, err := inspect(path)
	if err != nil {
		return nil, fault.Usage.Errorf("%w", err)
	}
	return &Program{path: path, timeout: timeout, hash: hash, all: p}, nil
}

// Hash returns the SHA-256 of the program.
func (p *Program) Hash() [sha256.Size]byte { return p.hash }

// Ask runs the program. An error, of kind unavailable, means that it did not answer; it wraps ctx.Err() if ctx has ended. Ask
// waits while too many programs run; each of them ends at its time limit.
func (p *Program) Ask(ctx context.Context, question []byte) (Answer, error) {
	select {
	case p.all.running <- struct{}{}:
		defer func() { <-p.all.running }()
	case <-ctx.Done():
		return Answer{}, fmt.Errorf("entitlement: %d programs are running: %w", atOnce, ctx.Err())
	}
	bounded, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	hash, err := inspect(p.path)
	if err != nil {
		return Answer{}, fault.Unavailable.Errorf("entitlement: %w", err)
	}
	if hash != p.hash {
		return Answer{}, fault.Unavailable.Errorf("entitlement: the program %q has changed since the configuration was read", p.path).Fix("reload the configuration")
	}
	output, exit, err := p.run(bounded, question)
	switch {
	case ctx.Err() != nil:
		return Answer{}, fmt.Errorf("entitlement: %w", ctx.Err())
	case bounded.Err() != nil:
		return Answer{}, p.failed("no answer within %v", p.timeout)
	case err != nil:
		return Answer{}, p.failed("%w", err)
	case exit != 0 && exit != 1:
		return Answer{}, p.failed("exit code %d", exit)
	}
	return Answer{Program: hash, Exit: exit, Line: firstLine(output)}, nil
}

// failed returns the error of a program that did not answer.
func (p *Program) failed(format string, args ...any) error {
	return fault.Unavailable.Errorf("entitlement: the program %q did not answer: %w", p.path, fmt.Errorf(format, args...)).
		Fix("exit code 0 allows and 1 denies; hsmsign policy test runs the program")
}

// run returns the beginning of the output and the exit code. The error is that of a program that was not started, or that a
// signal ended.
func (p *Program) run(ctx context.Context, question []byte) (output []byte, exit int, err error) {
	kept := &beginning{}
	cmd := exec.CommandContext(ctx, p.path) // #nosec G204 -- the operator names the program, and inspect has checked it
	cmd.Dir, cmd.Env = "/", []string{environment}
	cmd.Stdin, cmd.Stdout = bytes.NewReader(question), kept
	cmd.WaitDelay = waitDelay
	ownGroup(cmd)
	err = cmd.Run()
	if cmd.Process == nil {
		return nil, 0, fmt.Errorf("not started: %w", cause(err))
	}
	_ = killGroup(cmd) // the program has ended, or was killed at its limit; its children may still run
	if cmd.ProcessState == nil || !cmd.ProcessState.Exited() {
		return nil, 0, fmt.Errorf("ended by %w", err)
	}
	return kept.data, cmd.ProcessState.ExitCode(), nil
}

// cause returns what is wrong, without the path, which the message has.
func cause(err error) error {
	for next := err; next != nil; next = errors.Unwrap(next) {
		err = next
	}
	return err
}

// beginning keeps the beginning of what is written to it, and accepts the rest.
type beginning struct{ data []byte }

func (b *beginning) Write(p []byte) (int, error) {
	b.data = append(b.data, p[:min(len(p), maxOutput-len(b.data))]...)
	return len(p), nil
}

// firstLine returns the first line of an output, fit for errors and logs.
func firstLine(output []byte) string {
	line, _, _ := bytes.Cut(output, []byte("\n"))
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?' // format characters, which reorder text
		}
		return r
	}, fault.Clip(strings.ToValidUTF8(string(line), "?"), maxLine))
}

// digest returns the SHA-256 of a program.
func digest(path string) (hash [sha256.Size]byte, err error) {
	f, err := input.Open(path)
	if err != nil {
		return hash, fault.Errorf("program %q: %w", path, err)
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, io.LimitReader(f, maxProgram+1))
	switch {
	case err != nil:
		return hash, fault.Errorf("program %q: %w", path, err)
	case n > maxProgram:
		return hash, fault.Errorf("program %q: larger than %d bytes", path, maxProgram)
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}
