//go:build cgo && !unix

package pkcs11

// keepInMemory does nothing where there is no mlock.
func keepInMemory([]byte) {}
