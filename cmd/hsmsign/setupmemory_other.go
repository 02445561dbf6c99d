//go:build !linux

package main

import (
	"os"

	"hsmsign/fault"
)

// inMemory is for Linux: systemd's credentials are, too.
func inMemory([]byte, *account) (*os.File, error) {
	return nil, fault.Usage.Errorf("a credential of systemd needs Linux").Fix("name a file")
}
