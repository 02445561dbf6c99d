//go:build cgo

package pkcs11

// Available is whether this build can load PKCS#11 modules.
const Available = true
