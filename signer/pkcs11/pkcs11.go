// Package pkcs11 signs with a private key inside a PKCS#11 token: an HSM, a smart card, SoftHSM2.
//
// A key is named by a PKCS#11 URI (RFC 7512):
//
//	pkcs11:token=mdm;object=vendor;id=%01?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/run/secrets/pin
//
// The part before the "?" says which token and key; every attribute that is given must match, and what matches
// must be one key. The part after it says how to get there:
//
//	module-path    the module's file, absolute; this or module-name is required
//	module-name    the module's name in p11-kit's configuration ("softhsm2"), or that of its file without lib and
//	               .so: looked for in /etc/pkcs11/modules, then /usr/share/p11-kit/modules
//	pin-source     where the PIN is: file:PATH, env:NAME or prompt. Without it and without pin-value:
//	               the variable HSMSIGN_PIN, then the terminal
//	pin-value      the PIN itself; works, and is warned about
//	max-sessions   how many signatures are made at the same time: 1 to 64; by default as many as there are
//	               processors, at most 4, and with isolate=yes twice that. More sessions than the HSM has
//	               cores only make each one slower
//	mechanism      "rsa-pkcs" (the token signs a DigestInfo) or "sha256-rsa-pkcs" (the token is handed the message
//	               and hashes it); by default the first where the token offers it, else the second
//	isolate        "yes" runs the module in a worker process, "no" in this one; see below. By default as
//	               Options.Isolate says. Only for opening and signing
//	insecure-mode  "allow" reads a PIN file that others can read, too; warned about
//
// A module is loaded and initialized once a process, and a token is logged in to once, however many keys are
// open. C_Finalize follows the Close of the last one. A module is never unloaded: many do not survive it.
//
// A PIN that the token refuses is the last one it is sent: until the process ends, no other follows, because tokens
// lock themselves after a few wrong ones. A token that says that only one try is left is not tried. The PIN that
// worked is kept in memory while keys of the token are open, and sent again only where the token has forgotten the
// login, and before each signature of a key with CKA_ALWAYS_AUTHENTICATE. A token with a PIN pad of its own
// (CKF_PROTECTED_AUTHENTICATION_PATH) is sent none, unless the reference says where one is.
//
// A session or a device that goes away costs a signature one second try. Dead sessions are opened anew; where that
// does not help, the module goes through C_Finalize and C_Initialize, for all its keys at once and at most every 30
// seconds. In between signatures fail at once with signer.ErrUnavailable and the time of the next attempt. A key
// that is found again must be the one that was opened. C_Finalize has to wait until all calls have come back; one
// that never does keeps the module from being connected again, which isolate=yes is for.
//
// Keys are signer.MessageSigners, for the tokens that hash messages themselves, and have Statistics.
//
// A call into a module cannot be interrupted. When a context ends first, the caller gets its error at once and
// the call goes on in the background, holding its session until the module answers.
//
// With isolate=yes the module runs in a worker process of its own for each key, so that neither a module that
// hangs nor one that crashes takes the program along. A worker that has not answered 2 seconds after a deadline,
// or dies, is replaced, and every other signature that was under way is tried once more. A caller without a
// deadline has one of 30 seconds. The PIN is read by the program, and goes to the worker over a socket; the one
// that worked is kept in memory while the key is open, and a new worker is given the same one. Workers that die
// without a signature between them are started ever more slowly, from 0.1 to 10 seconds apart; meanwhile
// signatures fail at once with signer.ErrUnavailable. Workers need Unix and Options.Worker.
//
// Generate makes a key that signs and does nothing else, and holds the token to that. List takes a reference that
// leaves things out, down to "pkcs11:?module-path=..."; one PIN is never tried on several tokens. A certificate
// lies beside its key with the key's label and id, and is loaded without a PIN unless the reference brings one.
// These, and Diagnose, load the module into the program itself, whatever isolate says.
//
// Everything here is safe for concurrent use. A build without cgo has no PKCS#11; its Open says so.
package pkcs11

import (
	"context"
	"crypto"

	"hsmsign/secret"
)

// Options are what the backend cannot know from the key reference. The zero value reads PINs from files only
// and drops warnings.
type Options struct {
	// Secrets gives the PINs.
	Secrets secret.Reader
	// PublicKey is the key that is looked for, as the certificate has it; nil: not known. Where the reference names
	// neither object nor id, it chooses among the token's keys.
	PublicKey crypto.PublicKey
	// Warn is told, in one line without secrets, what works but should not stay so. It may be called by
	// several goroutines at once. Nil drops the warnings.
	Warn func(text string)
	// AllowedModules are absolute paths of module files. A module is code that runs with the program's rights:
	// where they are set, a reference to any other file, links followed, is refused. Nil allows all.
	AllowedModules []string
	// Isolate makes Open run modules in worker processes, as isolate=yes does in a reference; isolate=no there wins.
	Isolate bool
	// Worker is the command line that starts this program as a worker: a command that calls RunWorker with the
	// arguments that are added to it, and exits. Nil: isolate=yes is refused.
	Worker []string

	// askPIN gives the PIN of a token in a worker, in the place of Secrets.
	askPIN func(ctx context.Context, label, serial string) ([]byte, error)
}
