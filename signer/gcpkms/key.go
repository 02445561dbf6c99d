package gcpkms

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"hsmsign/signer"
	remote "hsmsign/signer/kms"
)

// open opens the version that the reference names.
func (s *session) open(ctx context.Context) (signer.Signer, error) {
	if s.name.version == "" {
		return nil, s.refuseUnversioned(ctx)
	}
	public, known := s.PublicKey.(*rsa.PublicKey)
	if !known {
		answer, err := s.publicKey(ctx)
		if err != nil {
			return nil, err
		}
		if public, err = s.judge(answer); err != nil {
			return nil, err
		}
	}
	return s.newKey(public, !known), nil
}

// publicKey asks for the public key, whatever its algorithm, and gives an answer whose name and checksum are right.
func (s *session) publicKey(ctx context.Context) (*kmspb.PublicKey, error) {
	return call(ctx, s.caller, func(ctx context.Context) (*kmspb.PublicKey, error) {
		answer, err := s.client.GetPublicKey(ctx, &kmspb.GetPublicKeyRequest{Name: s.name.String()})
		switch {
		case err != nil:
			return nil, err
		case !s.name.sameVersion(answer.GetName()):
			return nil, &damaged{signer.ErrBadKey, fmt.Sprintf("the public key is that of %q", oneLine(answer.GetName()))}
		case !fits(answer.GetPemCrc32C(), []byte(answer.GetPem())):
			return nil, &damaged{signer.ErrBadKey, "the public key and its CRC-32C do not fit"}
		}
		return answer, nil
	})
}

// judge says whether the key may sign here, and gives its public half.
func (s *session) judge(answer *kmspb.PublicKey) (*rsa.PublicKey, error) {
	if bitsOf(answer.GetAlgorithm()) == 0 {
		return nil, &faultError{fmt.Errorf("%w: its algorithm is %v", signer.ErrBadKey, answer.GetAlgorithm()),
			"Apple takes RSASSA-PKCS1-v1_5 with SHA-256: use a key of RSA_SIGN_PKCS1_2048_SHA256, 3072 or 4096"}
	}
	if err := s.judgeProtection(answer.GetProtectionLevel()); err != nil {
		return nil, err
	}
	block, _ := pem.Decode([]byte(answer.GetPem()))
	if block == nil {
		return nil, fmt.Errorf("%w: its public key is not PEM", signer.ErrBadKey)
	}
	parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: its public key cannot be read: %w", signer.ErrBadKey, err)
	}
	public, ok := parsed.(*rsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("%w: its public key is a %T", signer.ErrBadKey, parsed)
	}
	return public, nil
}

// bitsOf is the size of an RSA key that can sign for Apple; 0 for every other algorithm.
func bitsOf(algorithm kmspb.CryptoKeyVersion_CryptoKeyVersionAlgorithm) int {
	switch algorithm {
	case kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_2048_SHA256:
		return 2048
	case kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_3072_SHA256:
		return 3072
	case kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_4096_SHA256:
		return 4096
	}
	return 0
}

func (s *settings) judgeProtection(level kmspb.ProtectionLevel) error {
	if !s.requireHSM || isHSM(level) {
		return nil
	}
	return &faultError{fmt.Errorf("%w: its protection level is %v, and the reference says require-hsm=yes", signer.ErrBadKey, level),
		"make a key of protection level HSM; the level of a key cannot be changed"}
}

func isHSM(level kmspb.ProtectionLevel) bool {
	return level == kmspb.ProtectionLevel_HSM || level == kmspb.ProtectionLevel_HSM_SINGLE_TENANT
}

// key is an opened version.
type key struct {
	settings
	ref      signer.Ref
	resource string
	public   *rsa.PublicKey
	unproven atomic.Bool // public is the certificate's, and no signature has been verified with it yet
	client   client
	caller   *remote.Caller
	life     context.Context // ends with Close
	end      context.CancelFunc
	once     sync.Once
}

func (s *session) newKey(public *rsa.PublicKey, proven bool) *key {
	k := &key{settings: s.settings, ref: s.ref, resource: s.name.String(), public: public, client: s.client, caller: s.caller}
	k.unproven.Store(!proven)
	k.life, k.end = context.WithCancel(context.Background())
	return k
}

func (k *key) Public() crypto.PublicKey { return k.public }

func (k *key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.SignContext(context.Background(), digest, opts)
}

func (k *key) SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	sig, err := k.sign(ctx, digest, opts)
	if err != nil {
		if k.life.Err() != nil {
			err = signer.ErrClosed
		}
		return nil, fail("sign", k.ref, err)
	}
	return sig, nil
}

func (k *key) sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := k.life.Err(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	// Cloud KMS has no PKCS#1 key with SHA-1.
	if _, err := signer.CheckDigest(digest, opts, crypto.SHA256); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(k.life, cancel)()
	request := &kmspb.AsymmetricSignRequest{
		Name:         k.resource,
		Digest:       &kmspb.Digest{Digest: &kmspb.Digest_Sha256{Sha256: digest}},
		DigestCrc32C: wrapperspb.Int64(crc32c(digest)),
	}
	sig, err := call(ctx, k.caller, func(ctx context.Context) ([]byte, error) {
		answer, err := k.client.AsymmetricSign(ctx, request)
		if err != nil {
			return nil, err
		}
		return answer.GetSignature(), k.check(answer)
	})
	if err != nil {
		return nil, err
	}
	return sig, k.prove(digest, sig)
}

// check is what Google asks of a careful client (AsymmetricSignResponse): the digest arrived whole, the signature
// too, and it was made by the version that was asked for.
func (k *key) check(answer *kmspb.AsymmetricSignResponse) error {
	switch {
	case !k.name.sameVersion(answer.GetName()):
		return &damaged{signer.ErrBadSignature, fmt.Sprintf("the signature is that of %q", oneLine(answer.GetName()))}
	case !answer.GetVerifiedDigestCrc32C():
		return &damaged{signer.ErrBadSignature, "the service does not say that the digest arrived whole"}
	case !fits(answer.GetSignatureCrc32C(), answer.GetSignature()):
		return &damaged{signer.ErrBadSignature, "the signature and its CRC-32C do not fit"}
	}
	return k.judgeProtection(answer.GetProtectionLevel())
}

// prove verifies signatures until one has shown that the certificate's public key is this key's. From then on
// signer.Sign is the only one to verify.
func (k *key) prove(digest, sig []byte) error {
	if !k.unproven.Load() {
		return nil
	}
	if err := rsa.VerifyPKCS1v15(k.public, crypto.SHA256, digest, sig); err != nil {
		return &faultError{fmt.Errorf("%w: its signature does not verify with the certificate's public key: they do not belong together", signer.ErrBadKey),
			"give the certificate that was made for this key version, or the version that the certificate was made for"}
	}
	k.unproven.Store(false)
	return nil
}

// Close ends the calls under way and lets go of the connection. It waits for nothing.
func (k *key) Close() error {
	k.once.Do(func() {
		k.end()
		_ = k.client.Close() // the connection is gone either way
	})
	return nil
}
