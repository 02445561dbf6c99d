package main

import (
	"context"
	"crypto"
	"fmt"
	"slices"

	"hsmsign/secret"
	"hsmsign/signer"
	"hsmsign/signer/file"
	"hsmsign/signer/pkcs11"
)

// cloudSchemes are the schemes that a build with the tag nocloud does without.
var cloudSchemes = []string{"awskms", "gcpkms"}

// backends maps a reference's scheme to its backend. pub is the key that is looked for, nil where it is not known.
func (p *program) backends(pub crypto.PublicKey) map[string]signer.Backend {
	secrets := secret.Reader{Getenv: p.getenv, Prompt: p.prompt}
	warn := func(message string) { p.ui.warn("%s", message) }
	all := cloudBackends(warn)
	all["file"] = file.Backend(file.Options{Secrets: secrets, Warn: warn})
	all["pkcs11"] = pkcs11.Backend(pkcs11.Options{
		Secrets: secrets, Warn: warn, AllowedModules: p.modules, Worker: worker(),
	})
	return all
}

// backend reads a reference and finds the backend for it.
func (p *program) backend(reference string, pub crypto.PublicKey) (signer.Ref, signer.Backend, error) {
	ref, err := signer.ParseRef(reference)
	if err != nil {
		return ref, signer.Backend{}, err
	}
	backend, ok := p.backends(pub)[ref.Scheme]
	switch {
	case ok:
		return ref, backend, nil
	case slices.Contains(cloudSchemes, ref.Scheme):
		return ref, backend, fmt.Errorf("%w: this build has no cloud KMS: it was made with -tags nocloud; use another for %s", signer.ErrUnsupported, ref)
	default:
		return ref, backend, fmt.Errorf("%w: unknown scheme %q; there are file, pkcs11, awskms and gcpkms", signer.ErrReference, ref.Scheme)
	}
}

// openKey opens the key that a reference names; pub, where it is known, tells it from others.
func (p *program) openKey(ctx context.Context, reference string, pub crypto.PublicKey) (signer.Signer, error) {
	ref, backend, err := p.backend(reference, pub)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	return backend.Open(ctx, ref, signer.OpenOptions{PublicKey: pub})
}
