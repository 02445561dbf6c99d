package vault

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"hsmsign/fault"
	"hsmsign/signer"
	"hsmsign/signer/kms"
)

const fixReplaced = "choose another name; nothing is replaced, and a key is not rotated"

// Generate creates a key that cannot be exported, checks what the server made, and opens its first version.
func (s *session) Generate(ctx context.Context, spec signer.KeySpec) (signer.Signer, error) {
	switch {
	case s.name == "":
		return nil, s.checkComplete()
	case s.version != 1:
		return nil, malformed("the first version of a new key is version=1").Fix("add version=1 to the reference")
	case bitsOf(typeOf(spec.Bits)) == 0:
		return nil, fmt.Errorf("%w: RSA of %d bits; Vault creates keys of 2048, 3072 or 4096 bits", signer.ErrUnsupported, spec.Bits)
	}
	// Vault answers the creation of a key that exists with success, so ask first.
	switch _, err := s.readKey(ctx); {
	case err == nil:
		return nil, fault.Errorf("%w: %q", signer.ErrKeyExists, s.name).Fix(fixReplaced)
	case !notFound(err):
		return nil, err
	}
	if err := s.createKey(ctx, typeOf(spec.Bits)); err != nil {
		return nil, err
	}
	k, err := s.readKey(ctx)
	if err == nil {
		s.public, err = k.usable(1)
	}
	if err != nil {
		return nil, left(err, s.name)
	}
	if wrong := (&signer.KeyInfo{Properties: k.properties()}).Unprotected(); len(wrong) > 0 {
		return nil, left(fmt.Errorf("%w: %s", signer.ErrBadKey, strings.Join(wrong, ", ")), s.name)
	}
	return s.signer(true), nil
}

// createKey creates the key. The request is not repeated: its second answer would say that the key exists.
func (s *session) createKey(ctx context.Context, keyType string) error {
	existed := false
	_, err := kms.Once(ctx, s.caller, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, s.authorized(ctx, request{
			path: s.keyPath(),
			body: map[string]any{"type": keyType, "exportable": false, "allow_plaintext_backup": false, "derived": false},
			decode: func(a answer) error {
				existed = slices.ContainsFunc(a.Warnings, func(w string) bool { return strings.Contains(w, "already existed") })
				return nil
			},
		})
	})
	switch {
	case errors.Is(err, signer.ErrUnavailable) && !errors.Is(err, kms.ErrThrottled):
		return fault.Errorf("%w: the key may have been created: %w", signer.ErrUnavailable, err).Fix("look for it with hsmsign key list; if it is there, use it")
	case existed: // someone else created it at the same time
		return fault.Errorf("%w: %q", signer.ErrKeyExists, s.name).Fix(fixReplaced)
	}
	return err
}

// left returns the error of a step after the creation. It names the new key, because nothing is ever deleted.
func left(err error, name string) error {
	return fault.Errorf("%w: the new key %q was created and is not used", err, name).
		Fix("look at it with hsmsign key list, then use it or delete it (vault delete, after deletion_allowed=true)")
}
