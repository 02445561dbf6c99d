//go:build cgo && unix

package pkcs11

import "golang.org/x/sys/unix"

// keepInMemory asks the system not to write a secret to the swap file. It is not unlocked again: the page may contain
// another secret. If the system refuses to lock memory, only this precaution is lost.
func keepInMemory(secret []byte) { _ = unix.Mlock(secret) }
