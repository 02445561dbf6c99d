package gcpkms

import (
	"context"
	"errors"
	"fmt"
	"time"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"hsmsign/signer"
)

// generationLimit bounds the wait for a new version: a software key is there at once, Cloud HSM takes seconds.
const generationLimit = 3 * time.Minute

// generate makes a key, its key ring where there is none, and opens the first version.
func (s *session) generate(ctx context.Context, spec signer.KeySpec) (signer.Signer, error) {
	if s.name.version != "1" {
		return nil, &faultError{fmt.Errorf("%w: the first version of a new key is cryptoKeyVersions/1", signer.ErrReference),
			"name the key to make, with /cryptoKeyVersions/1 at its end"}
	}
	algorithm := map[int]kmspb.CryptoKeyVersion_CryptoKeyVersionAlgorithm{
		2048: kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_2048_SHA256,
		3072: kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_3072_SHA256,
		4096: kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_4096_SHA256,
	}[spec.Bits]
	if algorithm == 0 {
		return nil, fmt.Errorf("%w: %d bits; Cloud KMS makes RSA keys of 2048, 3072 or 4096", signer.ErrUnsupported, spec.Bits)
	}
	err := s.createKey(ctx, algorithm)
	if errors.Is(err, signer.ErrKeyNotFound) { // of all names in the request only the key ring's can be missing
		if err = s.createRing(ctx); err == nil {
			err = s.createKey(ctx, algorithm)
		}
	}
	if err != nil {
		return nil, err
	}
	if err := s.awaitEnabled(ctx); err != nil {
		return nil, fmt.Errorf("the key was made, but cannot sign yet: %w", err)
	}
	return s.open(ctx)
}

func (s *session) createRing(ctx context.Context) error {
	_, err := call(ctx, s.caller, func(ctx context.Context) (*kmspb.KeyRing, error) {
		return s.client.CreateKeyRing(ctx, &kmspb.CreateKeyRingRequest{Parent: s.name.parentOfRings(), KeyRingId: s.name.ring})
	})
	if errors.Is(err, signer.ErrKeyExists) { // somebody made it at the same time
		return nil
	}
	if err == nil && s.Warn != nil {
		s.Warn(fmt.Sprintf("key ring %q was made; a key ring cannot be deleted", s.name.ring))
	}
	return err
}

// createKey makes the key. When an answer is lost the key may have been made: the retry then finds it, and must not
// say that it was somebody else's.
func (s *session) createKey(ctx context.Context, algorithm kmspb.CryptoKeyVersion_CryptoKeyVersionAlgorithm) error {
	lost := false
	_, err := call(ctx, s.caller, func(ctx context.Context) (*kmspb.CryptoKey, error) {
		made, err := s.client.CreateCryptoKey(ctx, &kmspb.CreateCryptoKeyRequest{
			Parent: s.name.parentOfKeys(), CryptoKeyId: s.name.key,
			CryptoKey: &kmspb.CryptoKey{
				Purpose:         kmspb.CryptoKey_ASYMMETRIC_SIGN,
				VersionTemplate: &kmspb.CryptoKeyVersionTemplate{Algorithm: algorithm, ProtectionLevel: s.protection},
			},
		})
		switch status.Code(err) {
		case codes.OK, codes.ResourceExhausted: // made, or refused before anything was done
		case codes.AlreadyExists:
			if lost {
				return nil, &faultError{fmt.Errorf("%w: %q is there now; an attempt just before got no answer and may have made it", signer.ErrKeyExists, s.name.key),
					"look at its date of creation with gcloud kms keys describe; if it is of this minute, use it"}
			}
		default:
			lost = true
		}
		return made, err
	})
	return err
}

// awaitEnabled waits until the new version can sign.
func (s *session) awaitEnabled(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, generationLimit)
	defer cancel()
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		version, err := call(ctx, s.caller, func(ctx context.Context) (*kmspb.CryptoKeyVersion, error) {
			return s.client.GetCryptoKeyVersion(ctx, &kmspb.GetCryptoKeyVersionRequest{Name: s.name.String()})
		})
		if err != nil {
			return err
		}
		switch version.GetState() {
		case kmspb.CryptoKeyVersion_ENABLED:
			return nil
		case kmspb.CryptoKeyVersion_PENDING_GENERATION:
		default:
			return fmt.Errorf("%w: its state is %v: %s", signer.ErrBadKey, version.GetState(), oneLine(version.GetGenerationFailureReason()))
		}
		select {
		case <-ctx.Done():
			return &faultError{fmt.Errorf("%w: its state is still %v: %w", signer.ErrUnavailable, version.GetState(), ctx.Err()), "hsmsign key test with the same reference, in a few minutes"}
		case <-time.After(pause):
		}
	}
}
