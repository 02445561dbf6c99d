// Package pkcs11 signs with a private key inside a PKCS#11 token: an HSM, a smart card, SoftHSM2.
//
// A key is named by a PKCS#11 URI (RFC 7512):
//
//	pkcs11:token=mdm;object=vendor;id=%01?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/run/secrets/pin
//
// The part before the "?" selects the token and the key. Every attribute must match, and exactly one key must match. The
// part after it says how to reach the key:
//
//	module-path    the module's file, absolute; this or module-name is required
//	module-name    the module's name in p11-kit's configuration ("softhsm2"), or the name of its file without lib and
//	               .so, from /etc/pkcs11/modules, then /usr/share/p11-kit/modules
//	module-init    the string that C_Initialize passes to the module (pReserved), for modules that need one: NSS. A module
//	               that is in use in this process with another string is refused
//	pin-source     where the PIN is: file:PATH, env:NAME, prompt, ... (package secret). Without pin-source and
//	               pin-value: the variable HSMSIGN_PIN, then the terminal
//	pin-value      the PIN itself; works, with a warning
//	max-sessions   how many signatures are made at the same time: 1 to 64; by default the number of processors, at
//	               most 4, and twice that with isolate=yes. More sessions than the HSM has cores only make each
//	               signature slower
//	mechanism      "rsa-pkcs" (the token signs a DigestInfo) or "sha256-rsa-pkcs" (the token receives the message
//	               and hashes it); by default the first if the token offers it, otherwise the second
//	isolate        "yes" runs the module in a worker process, "no" in this process; by default as Options.Isolate
//	               says. Only for opening and signing
//	insecure-mode  "allow" also reads a PIN file that others can read; with a warning
//
// A module is loaded and initialized once in a process, and a token is logged in to once, however many keys are open.
// C_Finalize follows the Close of the last key. A module is never unloaded: many do not survive that.
//
// After a token has refused a PIN, no other PIN is sent to it until the process ends, because tokens lock themselves
// after a few wrong ones; this holds for keys in this process and in workers alike. No PIN is sent to a token that says
// that one try is left. The PIN that worked is kept in memory while keys of the token are open. It is sent again only if
// the token has forgotten the login, and before each signature of a key with CKA_ALWAYS_AUTHENTICATE. A token with its
// own PIN pad (CKF_PROTECTED_AUTHENTICATION_PATH) is sent no PIN unless the reference says where it is.
//
// After a session or a device has failed, a signature is made once more. Dead sessions are replaced; if that does not
// help, the module goes through C_Finalize and C_Initialize, for all its keys at once and at most every 30 seconds. In
// between, signatures fail at once with signer.ErrUnavailable and the time of the next attempt. A key that is found again
// must be the key that was opened. C_Finalize waits until all calls have returned; a call that never returns prevents
// the recovery, and isolate=yes avoids that.
//
// Keys are signer.MessageSigners, for tokens that hash messages themselves, and have signer.Statistics.
//
// A call into a module cannot be interrupted. If a context ends first, the caller gets its error at once; the call goes
// on in the background and keeps its session until the module answers.
//
// With isolate=yes each key has a worker process that loads the module (package isolate), so that a module that hangs or
// crashes costs one request. This process reads the PIN and sends it to the worker over a socket. Workers need Unix and
// Options.Worker.
//
// Generate makes a key that signs and does nothing else, and checks that the token obeyed. List accepts a reference that
// omits attributes, down to "pkcs11:?module-path=..."; one PIN is never tried on several tokens. A certificate is stored
// with the key's label and id, and is loaded without a PIN unless the reference has one. These, and Diagnose, load the
// module into this process, whatever isolate says.
//
// Everything here is safe for concurrent use. A build without cgo has no PKCS#11; its functions return an error that
// says so.
package pkcs11

import (
	"context"

	"hsmsign/secret"
)

// Options are what the backend cannot learn from the key reference. The zero value reads PINs from files and programs
// only and drops warnings.
type Options struct {
	// Secrets reads the PINs.
	Secrets secret.Reader
	// Warn receives, in one line without secrets, what works but should be changed. It may be called concurrently. Nil
	// drops the warnings.
	Warn func(text string)
	// AllowedModules are absolute paths of module files. A module is code that runs with the program's rights: if they are
	// set, a reference to any other file is refused, after following links. Nil allows all modules.
	AllowedModules []string
	// Isolate makes Open run modules in worker processes, as isolate=yes does in a reference; isolate=no overrides it.
	Isolate bool
	// Worker is the command line that starts this program as a worker: a command that calls RunWorker with the arguments
	// that are added to it, and exits. Nil: isolate=yes is refused.
	Worker []string

	// askPIN returns the PIN of a token in a worker; it replaces Secrets.
	askPIN func(ctx context.Context, id tokenID) ([]byte, error)
}

// tokenID distinguishes the tokens of one module; slots may change.
type tokenID struct{ label, serial, model, manufacturer string }
