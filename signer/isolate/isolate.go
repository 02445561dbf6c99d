// Package isolate keeps a signer.Signer in a child process, the worker, so that a library that hangs or crashes does
// not take the program with it.
//
// The parent calls Open, which starts a command, sends it a key reference, and returns a Key. The command is usually
// the same program: it calls Serve with its last argument and a function that opens the key. A reference crosses
// exactly (signer.Ref.Encode), secrets included: what the worker must not learn is removed from Config.Ref. The worker
// asks its parent for secrets, and Config.Login answers.
//
// A worker that dies is replaced, and each signature that it was making is made once more by the next one. A worker
// that has not answered 2 seconds after a caller's deadline is killed; a caller without a deadline gets one of 30
// seconds. Workers that die without a signature between them are started ever more slowly, from 0.1 to 10 seconds
// apart; meanwhile signatures fail at once with signer.ErrUnavailable. A worker dies with its parent.
//
// Each signature crosses on a lane, a separate socket that carries one signature at a time.
//
// Keys are safe for concurrent use. Workers need Unix; Open and Serve fail elsewhere.
package isolate

import (
	"context"
	"errors"

	"hsmsign/signer"
)

// ErrSecretRefused is wrapped by the errors of a worker whose key store refused a secret. The same secret must not be
// sent again: stores lock after a few wrong ones.
var ErrSecretRefused = errors.New("the key store refused the secret")

// Config says how Open starts workers. Command is required.
type Config struct {
	// Command is the command line of a worker. One argument is added to it, which Serve reads.
	Command []string
	// Lanes is how many signatures are made at the same time, 1 to MaxLanes; zero means 1.
	Lanes int
	// Ref is the reference that the worker opens, if it is not the one that Open was given.
	Ref signer.Ref
	// DropEnv names a variable that the worker does not inherit. It inherits no variable that starts with HSMSIGN_.
	DropEnv string
	// Login runs each start of a worker: it calls start once, with the function that answers the worker's questions,
	// and returns its error or its own *signer.Error. After start has returned, the answers are not used any more. Nil:
	// a worker that asks is refused.
	Login func(ctx context.Context, start func(Secret) error) error
	// Refused is called with the error of a signature that wraps ErrSecretRefused. It may be called concurrently.
	Refused func(err error)
	// Warn receives the warnings of workers, each text once. It may be called concurrently. Nil drops them.
	Warn func(text string)
}

// MaxLanes is the largest number of lanes.
const MaxLanes = 64

// Secret returns the secret that a worker asks for; the caller clears it. The question is text of the worker's own. ctx
// ends with the start of the worker.
type Secret func(ctx context.Context, question string) ([]byte, error)

// Parent is the process that started this worker. Safe for concurrent use.
type Parent struct {
	Lanes  int               // how many signatures the parent wants to be made at the same time
	Warn   func(text string) // sends a warning to the parent
	Secret Secret            // asks the parent for a secret; the error is the parent's, or ctx.Err()
}

// Opener opens a key in a worker. Its errors should be *signer.Error; the parent replaces their reference by its own.
type Opener func(ctx context.Context, ref signer.Ref, open signer.OpenOptions, parent Parent) (signer.Signer, error)
