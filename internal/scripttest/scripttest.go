// Package scripttest contains the commands that all script tests of hsmsign share, in addition to those of testscript:
//
//	code N program args...     checks for exit code N
//	refuse N program args...   checks for exit code N, an empty standard output, and one line on standard error
//	absent FILE...             checks that no file exists, and no unfinished file in its folder
//	fill FILE N                writes a file of N zero bytes
//	ports NAME...              sets variables to free ports, and $RUN to a folder for sockets that every user can enter
//	expand FILE...             replaces $NAME in files by variables
//	set NAME FILE PREFIX       sets a variable to the rest of the line of a file that begins with the prefix
//	start NAME program args... starts a program, and waits until it says that it is ready; "! start" does not wait
//	logs NAME REGEXP           waits for a line in the log of a program; "! logs" wants that there is none
//	signal NAME SIGNAL         sends HUP, INT, TERM or KILL
//	ended NAME CODE            waits for the end of a program, and checks for exit code CODE; 128 and more: by a signal
//
// A program of start has the variables of environment; $NAME_PID is its process id, and the files NAME.log, NAME.out and
// NAME.notify are its standard error, its standard output and its messages to the service manager.
package scripttest

import (
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// Command is a command of a script.
type Command = func(ts *testscript.TestScript, neg bool, args []string)

// Commands returns the commands of this package and more.
func Commands(more map[string]Command) map[string]Command {
	var ps processes
	all := map[string]Command{"code": code, "refuse": refuse, "absent": absent, "fill": fill,
		"ports": ports, "expand": expand, "set": setVariable, "start": ps.start, "logs": ps.logs, "signal": ps.sendSignal, "ended": ps.ended}
	maps.Copy(all, more)
	return all
}

func code(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N program args...")
	}
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if strconv.Itoa(got) != args[0] {
		ts.Fatalf("exit code %d, want %s", got, args[0])
	}
}

func refuse(ts *testscript.TestScript, neg bool, args []string) {
	code(ts, neg, args)
	if out := ts.ReadFile("stdout"); out != "" {
		ts.Fatalf("standard output: %q", out)
	}
	line := ts.ReadFile("stderr")
	if !strings.HasPrefix(line, "hsmsign: ") || strings.Count(line, "\n") != 1 || !strings.HasSuffix(line, "\n") {
		ts.Fatalf("standard error is not one line: %q", line)
	}
}

func absent(ts *testscript.TestScript, _ bool, args []string) {
	for _, a := range args {
		if _, err := os.Lstat(ts.MkAbs(a)); err == nil {
			ts.Fatalf("%s exists", a)
		}
		left, err := filepath.Glob(filepath.Join(filepath.Dir(ts.MkAbs(a)), ".hsmsign-unfinished-*"))
		if err != nil || len(left) > 0 {
			ts.Fatalf("unfinished files: %v %v", left, err)
		}
	}
}

func fill(ts *testscript.TestScript, _ bool, args []string) {
	n, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	path := ts.MkAbs(args[0])
	ts.Check(os.WriteFile(path, nil, 0o600))
	ts.Check(os.Truncate(path, n))
}
