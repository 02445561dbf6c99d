package main

import (
	"errors"

	"hsmsign/fault"
)

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
