package gcpkms

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"hash/crc32"
	"time"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"hsmsign/fault"
	"hsmsign/signer"
	"hsmsign/signer/kms"
)

// Open opens the version that the reference names.
func (s *session) Open(ctx context.Context, opts signer.OpenOptions) (signer.Signer, error) {
	if err := s.requireVersion(ctx); err != nil {
		return nil, err
	}
	var err error
	if s.public, err = kms.PublicKey(opts); err != nil {
		return nil, err
	}
	known := s.public != nil
	if !known {
		answer, err := s.publicKey(ctx)
		if err != nil {
			return nil, err
		}
		if err := s.checkProtection(answer.GetProtectionLevel()); err != nil {
			return nil, err
		}
		if s.public, err = checkKey(answer); err != nil {
			return nil, err
		}
	}
	return kms.NewKey(s.ref, s.public, !known, s, s.caller), nil
}

// publicKey reads the public key, whatever its algorithm. The name and the checksum of the answer are right.
func (s *session) publicKey(ctx context.Context) (*kmspb.PublicKey, error) {
	var damaged damage
	return kms.Do(ctx, s.caller, func(ctx context.Context) (*kmspb.PublicKey, error) {
		answer, err := s.client.GetPublicKey(ctx, &kmspb.GetPublicKeyRequest{Name: s.name.String()})
		switch {
		case err != nil:
			return nil, err
		case !s.name.sameVersion(answer.GetName()):
			return nil, damaged.err(signer.ErrBadKey, fmt.Sprintf("the public key is that of %q", fault.Clip(answer.GetName(), maxText)))
		case !matches(answer.GetPemCrc32C(), []byte(answer.GetPem())):
			return nil, damaged.err(signer.ErrBadKey, "the public key does not match its CRC-32C")
		}
		return answer, nil
	})
}

// checkKey returns the public key. The error is ErrBadKey for a key that cannot make Apple's signatures.
func checkKey(answer *kmspb.PublicKey) (*rsa.PublicKey, error) {
	if bitsOf(answer.GetAlgorithm()) == 0 {
		return nil, fault.Errorf("%w: its algorithm is %v", signer.ErrBadKey, answer.GetAlgorithm()).Fix(fixKey)
	}
	block, _ := pem.Decode([]byte(answer.GetPem()))
	if block == nil {
		return nil, fmt.Errorf("%w: its public key is not PEM", signer.ErrBadKey)
	}
	parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: damaged public key: %w", signer.ErrBadKey, err)
	}
	public, ok := parsed.(*rsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("%w: its public key is a %T", signer.ErrBadKey, parsed)
	}
	return public, nil
}

// algorithmOf returns the algorithm of Apple's signatures for an RSA key of this size, and 0 if Cloud KMS has none.
func algorithmOf(bits int) kmspb.CryptoKeyVersion_CryptoKeyVersionAlgorithm {
	number := kmspb.CryptoKeyVersion_CryptoKeyVersionAlgorithm_value[fmt.Sprintf("RSA_SIGN_PKCS1_%d_SHA256", bits)]
	return kmspb.CryptoKeyVersion_CryptoKeyVersionAlgorithm(number)
}

// bitsOf is the inverse of algorithmOf. It returns 0 for any other algorithm.
func bitsOf(algorithm kmspb.CryptoKeyVersion_CryptoKeyVersionAlgorithm) int {
	for _, bits := range []int{2048, 3072, 4096} {
		if algorithmOf(bits) == algorithm {
			return bits
		}
	}
	return 0
}

// checkProtection refuses a software key if the reference requires an HSM.
func (r *reference) checkProtection(level kmspb.ProtectionLevel) error {
	if !r.requireHSM || isHSM(level) {
		return nil
	}
	return fault.Errorf("%w: its protection level is %v, and the reference requires an HSM", signer.ErrBadKey, level).
		Fix("create a key of protection level HSM; the level of a key cannot be changed")
}

func isHSM(level kmspb.ProtectionLevel) bool {
	return level == kmspb.ProtectionLevel_HSM || level == kmspb.ProtectionLevel_HSM_SINGLE_TENANT
}

// Sign signs a SHA-256 digest and checks what Google asks a client to check (AsymmetricSignResponse): digest and
// signature arrived undamaged, and the version that was asked made the signature.
func (s *session) Sign(ctx context.Context, digest []byte) ([]byte, error) {
	request := &kmspb.AsymmetricSignRequest{
		Name:         s.name.String(),
		Digest:       &kmspb.Digest{Digest: &kmspb.Digest_Sha256{Sha256: digest}},
		DigestCrc32C: wrapperspb.Int64(crc32c(digest)),
	}
	// Cloud Audit Logs record the reason if Data Access logs are on (protoPayload.requestMetadata.requestAttributes.reason).
	operation := signer.OperationOf(ctx)
	if operation != nil && operation.Reason != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "x-goog-request-reason", operation.Reason)
	}
	var damaged damage
	return kms.Do(ctx, s.caller, func(ctx context.Context) (signature []byte, err error) {
		began := time.Now()
		defer func() { operation.Attempted("", began, err) }()
		answer, err := s.client.AsymmetricSign(ctx, request)
		switch {
		case digestDamaged(err):
			return nil, damaged.err(signer.ErrBadSignature, "the digest arrived damaged: "+textOf(err))
		case err != nil:
			return nil, err
		case !s.name.sameVersion(answer.GetName()):
			return nil, damaged.err(signer.ErrBadSignature, fmt.Sprintf("the signature is that of %q", fault.Clip(answer.GetName(), maxText)))
		case !answer.GetVerifiedDigestCrc32C():
			return nil, damaged.err(signer.ErrBadSignature, "the service does not confirm that the digest arrived undamaged")
		case !matches(answer.GetSignatureCrc32C(), answer.GetSignature()):
			return nil, damaged.err(signer.ErrBadSignature, "the signature does not match its CRC-32C")
		}
		return answer.GetSignature(), s.checkProtection(answer.GetProtectionLevel())
	})
}

// crc32c returns the checksum that Cloud KMS uses (Castagnoli). crc32.MakeTable returns a shared table for it.
func crc32c(data []byte) int64 { return int64(crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli))) }

// matches reports whether a checksum is present and right.
func matches(sum *wrapperspb.Int64Value, data []byte) bool {
	return sum != nil && sum.GetValue() == crc32c(data)
}
