// Package pkcs11 signs with a private key inside a PKCS#11 token: an HSM, a smart card, SoftHSM2.
//
// A key is named by a PKCS#11 URI (RFC 7512):
//
//	pkcs11:token=mdm;object=vendor;id=%01?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/run/secrets/pin
//
// The part before the "?" says which token and key; every attribute that is given must match, and what matches
// must be one key. The part after it says how to get there:
//
//	module-path    the module's file, absolute; required
//	pin-source     where the PIN is: file:PATH, env:NAME or prompt. Without it and without pin-value:
//	               the variable HSMSIGN_PIN, then the terminal
//	pin-value      the PIN itself; works, and is warned about
//	max-sessions   how many signatures are made at the same time: 1 to 64; by default as many as there are
//	               processors, at most 4. More sessions than the HSM has cores only make each one slower
//	insecure-mode  "allow" reads a PIN file that others can read, too; warned about
//
// A module is loaded and initialized once a process, and a token is logged in to once, however many keys are
// open. C_Finalize follows the Close of the last one. A module is never unloaded: many do not survive it.
//
// A PIN is sent once. When the token refuses it, no PIN is sent to that token again for as long as the process
// lives, because tokens lock themselves after a few wrong ones. A token that says that only one try is left is
// not tried.
//
// A call into a module cannot be interrupted. When a context ends first, the caller gets its error at once and
// the call goes on in the background, holding its session until the module answers.
//
// Everything here is safe for concurrent use. A build without cgo has no PKCS#11; its Open says so.
package pkcs11

import "hsmsign/signer"

// Options are what the backend cannot know from the key reference. The zero value reads PINs from files only
// and drops warnings.
type Options struct {
	// Secrets gives the PINs.
	Secrets signer.Secrets
	// Warn is told, in one line without secrets, what works but should not stay so. It may be called by
	// several goroutines at once. Nil drops the warnings.
	Warn func(text string)
}
