//go:build !linux

package main

// forbidCoreDumps: the other systems leave that to their administrator.
func forbidCoreDumps() {}

// noNewPrivileges: the other systems have no such attribute.
func noNewPrivileges() error { return nil }
