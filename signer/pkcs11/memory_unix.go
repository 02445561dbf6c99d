//go:build cgo && unix

package pkcs11

import "golang.org/x/sys/unix"

// keepInMemory asks that a secret is never written to the swap file. It is not unlocked again: the page may hold
// another one. A system that allows no locked memory refuses, and then nothing is lost but this precaution.
func keepInMemory(secret []byte) { _ = unix.Mlock(secret) }
