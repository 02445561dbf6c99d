package azurekms

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys"

	"hsmsign/fault"
	"hsmsign/signer"
	"hsmsign/signer/kms"
)

// Generate creates a key that cannot be exported, checks what the service made, and opens its first version.
func (s *session) Generate(ctx context.Context, spec signer.KeySpec) (signer.Signer, error) {
	switch {
	case s.name == "":
		return nil, s.requireVersion(ctx)
	case s.version != "":
		return nil, malformed("the service chooses the version of a new key").Fix("leave /VERSION out; key generate prints the complete reference")
	case !slices.Contains(sizes(), spec.Bits):
		return nil, fmt.Errorf("%w: RSA of %d bits; Key Vault creates keys of 2048, 3072 or 4096 bits", signer.ErrUnsupported, spec.Bits)
	}
	// To create a key that exists adds a version to it, so ask first.
	switch _, err := s.getKey(ctx, s.name, ""); {
	case err == nil:
		return nil, fault.Errorf("%w: %q", signer.ErrKeyExists, s.name).Fix(fixReplaced)
	case !errors.Is(err, signer.ErrKeyNotFound):
		return nil, err
	}
	made, err := s.createKey(ctx, int32(spec.Bits)) // #nosec G115 -- at most 4096
	if err != nil {
		return nil, err
	}
	s.created = true
	s.version = made.Version()
	if !s.sameKey(string(made)) || !versionForm().MatchString(s.version) {
		return nil, left(wrongKey("the service answered for %q", string(made)), s.name)
	}
	s.ref.Path += "/" + s.version
	if err := s.readBack(ctx); err != nil {
		return nil, left(err, s.ref.String())
	}
	return kms.NewKey(s.ref, s.public, true, s, s.caller), nil
}

// createKey creates the key and returns its id. The request is not repeated: each one creates a version.
func (s *session) createKey(ctx context.Context, bits int32) (azkeys.ID, error) {
	keyType, no := azkeys.KeyTypeRSAHSM, false
	if s.software {
		keyType = azkeys.KeyTypeRSA
	}
	sign, verify := azkeys.KeyOperationSign, azkeys.KeyOperationVerify
	created, err := kms.Once(ctx, s.caller, func(ctx context.Context) (azkeys.CreateKeyResponse, error) {
		return s.client.CreateKey(ctx, s.name, azkeys.CreateKeyParameters{
			Kty: &keyType, KeySize: &bits, KeyOps: []*azkeys.KeyOperation{&sign, &verify}, KeyAttributes: &azkeys.KeyAttributes{Exportable: &no},
		}, nil)
	})
	switch {
	case errors.Is(err, signer.ErrUnavailable) && !errors.Is(err, kms.ErrThrottled):
		return "", unknown(err)
	case err != nil:
		return "", err
	case created.Key == nil || created.Key.KID == nil:
		return "", unknown(fmt.Errorf("%w: the answer has no key", signer.ErrUnavailable))
	}
	return *created.Key.KID, nil
}

// unknown returns the error of a creation whose answer is unknown.
func unknown(err error) error {
	return fault.Errorf("%w: the key may have been created: %w", signer.ErrUnavailable, err).Fix("look for it with hsmsign key list; if it is there, use it")
}

// readBack reads the new key and checks that it is protected, and that nobody added a version meanwhile.
func (s *session) readBack(ctx context.Context) error {
	b, err := s.getKey(ctx, s.name, s.version)
	if err != nil {
		return err
	}
	if s.public, err = s.usable(b); err != nil {
		return err
	}
	if wrong := (&signer.KeyInfo{Properties: properties(b)}).Unprotected(); len(wrong) > 0 {
		return fmt.Errorf("%w: %s", signer.ErrBadKey, strings.Join(wrong, ", "))
	}
	if isHSM(b.Key) == s.software {
		return fmt.Errorf("%w: its type is %q", signer.ErrBadKey, string(*b.Key.Kty))
	}
	versions, err := s.versions(ctx, s.name)
	if err == nil && len(versions) != 1 {
		err = fault.Errorf("%w: someone else created it at the same time: %s", signer.ErrKeyExists, mention(versions))
	}
	return err
}

// left returns the error of a step after the creation. It names the new key, because nothing is ever deleted.
func left(err error, name string) error {
	return fault.Errorf("%w: the new key %q was created and is not used", err, name).Fix("look at it with hsmsign key list, then use it or delete it (az keyvault key delete)")
}
