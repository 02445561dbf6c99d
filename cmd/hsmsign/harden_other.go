//go:build !linux

package main

// forbidCoreDumps: the other systems leave that to their administrator.
func forbidCoreDumps() {}
