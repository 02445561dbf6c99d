package main

import (
	"context"
	"errors"

	"hsmsign/certreq"
	"hsmsign/config"
	"hsmsign/finding"
	"hsmsign/identity"
	"hsmsign/push"
	"hsmsign/signer"
)

// The exit codes; docs/cli.md lists them.
const (
	exitOK          = 0
	exitFault       = 1 // a fault of ours or of the machine: disk full, ...
	exitUsage       = 2 // command line, configuration
	exitRefused     = 3 // the customer's input was refused
	exitVendor      = 4 // vendor identity: key, certificate, chain
	exitAuth        = 5 // PIN, passphrase, credentials
	exitUnavailable = 6 // the key's backend does not answer, or answers wrongly
	exitDefects     = 7 // verification found defects
)

// exitError is an error of the command line itself.
type exitError struct {
	code int
	err  error
	hint string
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }
func (e *exitError) Hint() string  { return e.hint }

// errDefects ends a command whose findings were printed already.
var errDefects = &exitError{code: exitDefects, err: errSilent}

// errSilent is the error of a command that has said all there is to say.
var errSilent = errors.New("defects were found")

// exitCode is the one place that turns an error into an exit code.
func exitCode(err error) int {
	var exit *exitError
	var found *finding.Finding
	var conf *config.Error
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &exit):
		return exit.code
	case errors.As(err, &found):
		switch found.Subject() {
		case finding.CSR, finding.Push:
			return exitRefused
		case finding.Chain:
			return exitVendor
		}
		return exitDefects
	case errors.As(err, &conf):
		return exitUsage
	}
	for _, family := range families {
		if errors.Is(err, family.err) {
			return family.code
		}
	}
	return exitFault
}

// families is in the order of what weighs most where an error wraps two.
var families = []struct {
	err  error
	code int
}{
	{context.Canceled, exitFault}, // interrupted; a backend that was left says that it did not answer
	{signer.ErrReference, exitUsage},
	{certreq.ErrSubject, exitUsage},
	{push.ErrAddress, exitUsage},
	{push.ErrPassphrase, exitAuth},
	{push.ErrRefused, exitRefused},
	{push.ErrNoAnswer, exitUnavailable},
	{signer.ErrUnsupported, exitUsage},
	{signer.ErrKeyExists, exitUsage},
	{identity.ErrWitness, exitUsage},
	{identity.ErrTranscript, exitDefects},
	{signer.ErrAuth, exitAuth},
	{signer.ErrKeyNotFound, exitVendor},
	{signer.ErrAmbiguousKey, exitVendor},
	{signer.ErrBadKey, exitVendor},
	{signer.ErrUnavailable, exitUnavailable},
	{signer.ErrBadSignature, exitUnavailable},
	{context.DeadlineExceeded, exitUnavailable},
}
