package gcpkms

import (
	"context"
	"errors"
	"fmt"
	"time"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"hsmsign/fault"
	"hsmsign/signer"
	"hsmsign/signer/kms"
)

// generationTimeout limits the wait for a new version. A software key is ready at once, Cloud HSM needs seconds.
const generationTimeout = 3 * time.Minute

// generate creates a key, and its key ring if necessary, and opens the first version.
func (s *session) generate(ctx context.Context, spec signer.KeySpec) (signer.Signer, error) {
	if s.name.version != "1" {
		return nil, fault.Errorf("%w: the first version of a new key is cryptoKeyVersions/1", signer.ErrReference).
			Fix("name the new key, with /cryptoKeyVersions/1 at the end")
	}
	algorithm := map[int]kmspb.CryptoKeyVersion_CryptoKeyVersionAlgorithm{
		2048: kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_2048_SHA256,
		3072: kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_3072_SHA256,
		4096: kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_4096_SHA256,
	}[spec.Bits]
	if algorithm == 0 {
		return nil, fmt.Errorf("%w: RSA of %d bits; Cloud KMS creates keys of 2048, 3072 or 4096 bits", signer.ErrUnsupported, spec.Bits)
	}
	err := s.createKey(ctx, algorithm)
	if errors.Is(err, signer.ErrKeyNotFound) { // of the names in the request only that of the key ring can be missing
		if err = s.createRing(ctx); err == nil {
			err = s.createKey(ctx, algorithm)
		}
	}
	if err != nil {
		return nil, err
	}
	if err := s.awaitEnabled(ctx); err != nil {
		return nil, fmt.Errorf("the key was created, but cannot sign yet: %w", err)
	}
	return s.open(ctx, signer.OpenOptions{})
}

func (s *session) createRing(ctx context.Context) error {
	_, err := request(ctx, s, s.client.CreateKeyRing, &kmspb.CreateKeyRingRequest{Parent: s.name.parentOfRings(), KeyRingId: s.name.ring})
	if errors.Is(err, signer.ErrKeyExists) { // someone else created it at the same time
		return nil
	}
	if err == nil && s.Warn != nil {
		s.Warn(fmt.Sprintf("key ring %q was created; a key ring cannot be deleted", s.name.ring))
	}
	return err
}

// createKey creates the key. If an answer is lost the key may have been created: the retry then finds it, and the error
// must not say that it belongs to someone else.
func (s *session) createKey(ctx context.Context, algorithm kmspb.CryptoKeyVersion_CryptoKeyVersionAlgorithm) error {
	in := &kmspb.CreateCryptoKeyRequest{
		Parent: s.name.parentOfKeys(), CryptoKeyId: s.name.key,
		CryptoKey: &kmspb.CryptoKey{
			Purpose:         kmspb.CryptoKey_ASYMMETRIC_SIGN,
			VersionTemplate: &kmspb.CryptoKeyVersionTemplate{Algorithm: algorithm, ProtectionLevel: s.protection},
		},
	}
	lost := false
	_, err := kms.Do(ctx, s.caller, func(ctx context.Context) (*kmspb.CryptoKey, error) {
		created, err := s.client.CreateCryptoKey(ctx, in)
		switch status.Code(err) {
		case codes.OK, codes.ResourceExhausted: // created, or refused before anything was done
		case codes.AlreadyExists:
			if lost {
				return nil, fault.Errorf("%w: %q; an attempt just before got no answer and may have created it", signer.ErrKeyExists, s.name.key).
					Fix("check its creation time with gcloud kms keys describe; if it was created just now, use it")
			}
		default:
			lost = true
		}
		return created, err
	})
	return err
}

// awaitEnabled waits until the new version can sign.
func (s *session) awaitEnabled(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, generationTimeout)
	defer cancel()
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		version, err := request(ctx, s, s.client.GetCryptoKeyVersion, &kmspb.GetCryptoKeyVersionRequest{Name: s.name.String()})
		if err != nil {
			return err
		}
		switch version.GetState() {
		case kmspb.CryptoKeyVersion_ENABLED:
			return nil
		case kmspb.CryptoKeyVersion_PENDING_GENERATION:
		default:
			return fmt.Errorf("%w: its state is %v: %s", signer.ErrBadKey, version.GetState(), fault.Clip(version.GetGenerationFailureReason(), maxText))
		}
		select {
		case <-ctx.Done():
			return fault.Errorf("%w: its state is still %v: %w", signer.ErrUnavailable, version.GetState(), ctx.Err()).
				Fix("run hsmsign key test with this reference in a few minutes")
		case <-time.After(pause):
		}
	}
}
