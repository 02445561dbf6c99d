package awskms

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"hsmsign/signer"
	remote "hsmsign/signer/kms"
)

// algorithm is the one that Apple takes and KMS offers.
const algorithm = types.SigningAlgorithmSpecRsassaPkcs1V15Sha256

// key is an opened key.
type key struct {
	*connection
	ref    signer.Ref
	public *rsa.PublicKey
	warn   func(string)
	serves atomic.Int32 // index of the region that signed last
	// unproven is whether the public key is a certificate's and no signature has verified with it yet.
	unproven atomic.Bool
}

func (k *key) Public() crypto.PublicKey { return k.public }

func (k *key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.SignContext(context.Background(), digest, opts)
}

func (k *key) SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	sig, err := k.sign(ctx, digest, opts)
	if err == nil {
		err = k.prove(digest, sig)
	}
	if err != nil {
		return nil, carry("sign", k.ref, err)
	}
	return sig, nil
}

// prove verifies signatures until one has shown that the certificate's public key is this key's. From then on
// signer.Sign is the only one to verify.
func (k *key) prove(digest, sig []byte) error {
	if !k.unproven.Load() {
		return nil
	}
	if err := rsa.VerifyPKCS1v15(k.public, crypto.SHA256, digest, sig); err != nil {
		return fmt.Errorf("%w: its signature does not verify with the certificate's public key: they do not belong together", signer.ErrBadKey)
	}
	k.unproven.Store(false)
	return nil
}

func (k *key) sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if k.closed.Load() {
		return nil, signer.ErrClosed
	}
	if _, err := signer.CheckDigest(digest, opts, crypto.SHA256); err != nil {
		return nil, unsupportedHash(err)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	// A connection that was busy when the key was closed is idle now.
	defer func() {
		if k.closed.Load() {
			k.transport.CloseIdleConnections()
		}
	}()
	var failed error
	for i, s := range k.sites {
		sig, err := k.signAt(ctx, s, digest)
		if err == nil {
			k.noteRegion(i)
			return sig, nil
		}
		if failed == nil {
			failed = err
		} else {
			failed = fmt.Errorf("%w; and in %q: %s", failed, s.region, err.Error())
		}
		// Only an absent service lets another region stand in: a refusal is an answer.
		if !errors.Is(failed, signer.ErrUnavailable) || ctx.Err() != nil {
			break
		}
	}
	return nil, failed
}

// noteRegion warns when another region signs than did before.
func (k *key) noteRegion(i int) {
	if from := k.serves.Swap(int32(i)); int(from) != i && k.warn != nil { // #nosec G115 -- at most maxRegions
		k.warn(fmt.Sprintf("AWS KMS: region %q signs now, not %q", k.sites[i].region, k.sites[from].region))
	}
}

// signAt signs in one region, once the key there is known to be the same.
func (k *key) signAt(ctx context.Context, s *site, digest []byte) ([]byte, error) {
	if !s.proven.Load() {
		public, err := s.publicKey(ctx)
		if err != nil {
			return nil, err
		}
		if !public.Equal(k.public) {
			return nil, fmt.Errorf("%w: the key in region %q is another one", signer.ErrBadKey, s.region)
		}
		s.proven.Store(true)
	}
	return remote.Do(ctx, s.caller, func(ctx context.Context) ([]byte, error) {
		if k.closed.Load() {
			return nil, signer.ErrClosed
		}
		out, err := s.client.Sign(ctx, &kms.SignInput{
			KeyId: s.id.Load(), Message: digest, MessageType: types.MessageTypeDigest, SigningAlgorithm: algorithm,
		})
		if err != nil {
			return nil, s.classify(ctx, err)
		}
		if err := s.pin(out.KeyId); err != nil {
			return nil, err
		}
		if len(out.Signature) != k.public.Size() || out.SigningAlgorithm != algorithm {
			return nil, fmt.Errorf("%w: kms:Sign gave %d bytes of %q, not %d of %q",
				signer.ErrBadSignature, len(out.Signature), out.SigningAlgorithm, k.public.Size(), algorithm)
		}
		return out.Signature, nil
	})
}

// resolve asks the first region that answers for the public key.
func (k *key) resolve(ctx context.Context) error {
	var failed error
	for i, s := range k.sites {
		public, err := s.publicKey(ctx)
		if err == nil {
			k.public = public
			s.proven.Store(true)
			k.noteRegion(i)
			return nil
		}
		if failed == nil {
			failed = err
		}
		if !errors.Is(failed, signer.ErrUnavailable) || ctx.Err() != nil {
			break
		}
	}
	return failed
}

// publicKey asks for the public key and checks that the key can do what Apple needs.
func (s *site) publicKey(ctx context.Context) (*rsa.PublicKey, error) {
	return remote.Do(ctx, s.caller, func(ctx context.Context) (*rsa.PublicKey, error) {
		out, err := s.client.GetPublicKey(ctx, &kms.GetPublicKeyInput{KeyId: s.id.Load()})
		if err != nil {
			return nil, s.classify(ctx, err)
		}
		public, err := checkKey(out)
		if err != nil {
			return nil, err
		}
		return public, s.pin(out.KeyId)
	})
}

// keySpecs are the sizes of modulus that KMS has.
func keySpecs() map[types.KeySpec]int {
	return map[types.KeySpec]int{types.KeySpecRsa2048: 2048, types.KeySpecRsa3072: 3072, types.KeySpecRsa4096: 4096}
}

// checkKey is ErrBadKey for a key that cannot make Apple's signatures, and ErrUnavailable for a damaged answer.
func checkKey(out *kms.GetPublicKeyOutput) (*rsa.PublicKey, error) {
	bits, isRSA := keySpecs()[out.KeySpec]
	switch {
	case out.KeySpec == "" || out.KeyUsage == "":
		return nil, fmt.Errorf("%w: kms:GetPublicKey left out the key's type", signer.ErrUnavailable)
	case !isRSA:
		return nil, wrongKey("its type is %s; Apple takes RSA", out.KeySpec)
	case out.KeyUsage != types.KeyUsageTypeSignVerify:
		return nil, wrongKey("its usage is %s, not %s", out.KeyUsage, types.KeyUsageTypeSignVerify)
	case !slices.Contains(out.SigningAlgorithms, algorithm):
		return nil, wrongKey("it does not sign with %s", algorithm)
	}
	parsed, err := x509.ParsePKIXPublicKey(out.PublicKey)
	public, ok := parsed.(*rsa.PublicKey)
	if err != nil || !ok || public.N.BitLen() != bits {
		return nil, fmt.Errorf("%w: kms:GetPublicKey gave %d bytes that are no public key of type %s", signer.ErrUnavailable, len(out.PublicKey), out.KeySpec)
	}
	return public, nil
}

// pin takes the ARN of the first answer and holds all others to it, so that an alias that is moved meanwhile cannot
// swap the key.
func (s *site) pin(answered *string) error {
	got := aws.ToString(answered)
	if got == "" {
		return fmt.Errorf("%w: the answer is damaged: it names no key", signer.ErrUnavailable)
	}
	known := s.id.Load()
	if arnRegion(*known) == "" || strings.HasPrefix(resource(*known), "alias/") {
		if arnRegion(got) != s.region || !strings.HasPrefix(resource(got), "key/") {
			return fmt.Errorf("%w: KMS answered for %q, which is no key of region %q", signer.ErrUnavailable, clip(got), s.region)
		}
		if keyForm().MatchString(*known) && resource(got) != "key/"+*known {
			return wrongKey("KMS answered for %q when %q was asked", got, *known)
		}
		if s.id.CompareAndSwap(known, &got) {
			return nil
		}
		known = s.id.Load() // another call was first
	}
	if got != *known {
		return wrongKey("KMS answered for %q when %q was asked", clip(got), *known)
	}
	return nil
}
