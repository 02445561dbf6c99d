package main

import (
	"context"
	"crypto"
	"fmt"

	"hsmsign/signer"
	"hsmsign/signer/awskms"
	"hsmsign/signer/file"
	"hsmsign/signer/gcpkms"
	"hsmsign/signer/pkcs11"
)

// backends maps a reference's scheme to its backend. pub is the key that is looked for, nil where it is not known.
func (p *program) backends(pub crypto.PublicKey) map[string]signer.Backend {
	secrets := signer.Secrets{Getenv: p.getenv, Prompt: p.prompt}
	warn := func(message string) { p.ui.warn("%s", message) }
	return map[string]signer.Backend{
		"file":   file.Backend(file.Options{Secrets: secrets, Warn: warn}),
		"awskms": awskms.Backend(awskms.Options{Warn: warn, PublicKey: pub}),
		"gcpkms": gcpkms.Backend(gcpkms.Options{Warn: warn, PublicKey: pub}),
		"pkcs11": pkcs11.Backend(pkcs11.Options{
			Secrets: secrets, Warn: warn, PublicKey: pub, AllowedModules: p.modules, Worker: worker(),
		}),
	}
}

// backend reads a reference and finds the backend for it.
func (p *program) backend(reference string, pub crypto.PublicKey) (signer.Ref, signer.Backend, error) {
	ref, err := signer.ParseRef(reference)
	if err != nil {
		return ref, signer.Backend{}, err
	}
	backend, ok := p.backends(pub)[ref.Scheme]
	if !ok {
		return ref, backend, fmt.Errorf("%w: unknown scheme %q; there are file, pkcs11, awskms and gcpkms", signer.ErrReference, ref.Scheme)
	}
	return ref, backend, nil
}

// openKey opens the key that a reference names; pub, where it is known, tells it from others.
func (p *program) openKey(ctx context.Context, reference string, pub crypto.PublicKey) (signer.Signer, error) {
	ref, backend, err := p.backend(reference, pub)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	return backend.Open(ctx, ref)
}
