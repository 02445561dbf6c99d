//go:build cgo && !unix

package pkcs11

// keepInMemory does nothing on a system without mlock.
func keepInMemory([]byte) {}
