package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/term"

	"hsmsign/signer"
	"hsmsign/signer/file"
	"hsmsign/signer/pkcs11"
)

// backends maps a reference's scheme to its backend.
func (p *program) backends() map[string]signer.Backend {
	secrets := signer.Secrets{Getenv: p.getenv, Prompt: promptFor()}
	warn := func(message string) { p.ui.warn("%s", message) }
	return map[string]signer.Backend{
		"file":   file.Backend(file.Options{Secrets: secrets, Warn: warn}),
		"pkcs11": pkcs11.Backend(pkcs11.Options{Secrets: secrets, Warn: warn}),
	}
}

// openKey opens the key that a reference names.
func (p *program) openKey(ctx context.Context, reference string) (signer.Signer, error) {
	ref, err := signer.ParseRef(reference)
	if err != nil {
		return nil, err
	}
	backend, ok := p.backends()[ref.Scheme]
	if !ok {
		return nil, fmt.Errorf("%w: unknown scheme %q; this program knows file and pkcs11", signer.ErrReference, ref.Scheme)
	}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	return backend.Open(ctx, ref)
}

// promptFor gives the function that asks the person at the terminal for a secret; nil where there is none.
func promptFor() func(context.Context, string) ([]byte, error) {
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		return nil
	}
	return prompt
}

// prompt asks on the terminal, without echo. When ctx ends first the terminal is put back as it was.
func prompt(ctx context.Context, label string) ([]byte, error) {
	fd := int(os.Stdin.Fd())
	before, err := term.GetState(fd)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(os.Stderr, "%s: ", printable(label))
	defer fmt.Fprintln(os.Stderr)
	secret, err := waitFor(ctx, func() ([]byte, error) { return term.ReadPassword(fd) })
	if err != nil {
		_ = term.Restore(fd, before)
		return nil, errors.Join(errors.New("no answer at the terminal"), err)
	}
	return secret, nil
}
