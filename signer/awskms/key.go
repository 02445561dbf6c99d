package awskms

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	api "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"hsmsign/fault"
	"hsmsign/signer"
	"hsmsign/signer/kms"
)

// algorithm is the one that Apple accepts and KMS offers.
const algorithm = types.SigningAlgorithmSpecRsassaPkcs1V15Sha256

// Open opens the key that the reference names.
func (s *session) Open(ctx context.Context, opts signer.OpenOptions) (signer.Signer, error) {
	if err := s.requireKey(); err != nil {
		return nil, err
	}
	var err error
	if s.public, err = kms.PublicKey(opts); err != nil {
		return nil, err
	}
	known := s.public != nil
	// The certificate's key is that of the first region; the others must show theirs.
	s.clients[0].proven.Store(known)
	if !known {
		if err := s.resolve(ctx); err != nil {
			return nil, err
		}
	}
	callers := make([]*kms.Caller, len(s.clients))
	for i, c := range s.clients {
		callers[i] = c.caller
	}
	return kms.NewKey(s.ref, s.public, !known, s, callers...), nil
}

// Sign signs a digest in the first region that is available.
func (s *session) Sign(ctx context.Context, digest []byte) (sig []byte, err error) {
	err = s.inRegions(ctx, func(c *regionClient) error {
		sig, err = s.signIn(ctx, c, digest)
		return err
	})
	return sig, err
}

// resolve reads the public key from the first region that is available.
func (s *session) resolve(ctx context.Context) error {
	return s.inRegions(ctx, func(c *regionClient) error {
		public, err := c.publicKey(ctx)
		if err == nil {
			s.public = public
			c.proven.Store(true)
		}
		return err
	})
}

// inRegions calls do for one region after the other while they are unavailable. Every other error is an answer. It warns
// if another region answers than before.
func (s *session) inRegions(ctx context.Context, do func(*regionClient) error) error {
	var failed error
	for i, c := range s.clients {
		err := do(c)
		if err == nil {
			if from := s.active.Swap(int32(i)); int(from) != i && s.Warn != nil { // #nosec G115 -- at most maxRegions
				s.Warn(fmt.Sprintf("AWS KMS: region %q signs now, not %q", c.region, s.clients[from].region))
			}
			return nil
		}
		if failed == nil {
			failed = err
		} else {
			failed = fmt.Errorf("%w; and in %q: %s", failed, c.region, err.Error())
		}
		if !errors.Is(failed, signer.ErrUnavailable) || ctx.Err() != nil {
			break
		}
	}
	return failed
}

// activeClient returns the client of the region that answered last.
func (s *session) activeClient() *regionClient { return s.clients[s.active.Load()] }

// signIn signs in one region. Before the first signature it checks that the key there is the same.
func (s *session) signIn(ctx context.Context, c *regionClient, digest []byte) ([]byte, error) {
	if !c.proven.Load() {
		public, err := c.publicKey(ctx)
		if err != nil {
			return nil, err
		}
		if !public.Equal(s.public) {
			return nil, fmt.Errorf("%w: the key in region %q is a different one", signer.ErrBadKey, c.region)
		}
		c.proven.Store(true)
	}
	return kms.Do(ctx, c.caller, func(ctx context.Context) ([]byte, error) {
		began := time.Now()
		out, err := c.api.Sign(ctx, &api.SignInput{
			KeyId: c.id.Load(), Message: digest, MessageType: types.MessageTypeDigest, SigningAlgorithm: algorithm,
		})
		id := requestID(out, err)
		if err == nil {
			err = c.checkSignature(out, s.public.Size())
		}
		signer.OperationOf(ctx).Attempted(id, began, err)
		if err != nil {
			return nil, err
		}
		return out.Signature, nil
	})
}

// requestID returns the id of a request in CloudTrail; "" if there was no answer.
func requestID(out *api.SignOutput, err error) (id string) {
	if err == nil {
		id, _ = awsmiddleware.GetRequestIDMetadata(out.ResultMetadata)
	} else if answered, ok := errors.AsType[*awshttp.ResponseError](err); ok {
		id = answered.ServiceRequestID()
	}
	return id
}

// checkSignature checks that an answer is a signature of the key.
func (c *regionClient) checkSignature(out *api.SignOutput, size int) error {
	if err := c.checkID(out.KeyId); err != nil {
		return err
	}
	if len(out.Signature) != size || out.SigningAlgorithm != algorithm {
		return fmt.Errorf("%w: kms:Sign returned %d bytes of %q, want %d of %q",
			signer.ErrBadSignature, len(out.Signature), out.SigningAlgorithm, size, algorithm)
	}
	return nil
}

// publicKey reads the public key and checks that the key can make Apple's signatures.
func (c *regionClient) publicKey(ctx context.Context) (*rsa.PublicKey, error) {
	return kms.Do(ctx, c.caller, func(ctx context.Context) (*rsa.PublicKey, error) {
		out, err := c.api.GetPublicKey(ctx, &api.GetPublicKeyInput{KeyId: c.id.Load()})
		if err != nil {
			return nil, err
		}
		public, err := checkKey(out)
		if err != nil {
			return nil, err
		}
		return public, c.checkID(out.KeyId)
	})
}

// keySpecs returns the RSA key types of KMS with their size in bits.
func keySpecs() map[types.KeySpec]int {
	return map[types.KeySpec]int{types.KeySpecRsa2048: 2048, types.KeySpecRsa3072: 3072, types.KeySpecRsa4096: 4096}
}

// checkKey returns the public key. The error is ErrBadKey for a key that cannot make Apple's signatures, and
// ErrUnavailable for a damaged answer.
func checkKey(out *api.GetPublicKeyOutput) (*rsa.PublicKey, error) {
	bits, isRSA := keySpecs()[out.KeySpec]
	switch {
	case out.KeySpec == "" || out.KeyUsage == "":
		return nil, fmt.Errorf("%w: kms:GetPublicKey returned no key type", signer.ErrUnavailable)
	case !isRSA:
		return nil, wrongKey("its type is %s; Apple accepts RSA", out.KeySpec)
	case out.KeyUsage != types.KeyUsageTypeSignVerify:
		return nil, wrongKey("its usage is %s, not %s", out.KeyUsage, types.KeyUsageTypeSignVerify)
	case !slices.Contains(out.SigningAlgorithms, algorithm):
		return nil, wrongKey("it does not sign with %s", algorithm)
	}
	parsed, err := x509.ParsePKIXPublicKey(out.PublicKey)
	public, ok := parsed.(*rsa.PublicKey)
	if err != nil || !ok || public.N.BitLen() != bits {
		return nil, fmt.Errorf("%w: kms:GetPublicKey returned %d bytes that are not a public key of type %s", signer.ErrUnavailable, len(out.PublicKey), out.KeySpec)
	}
	return public, nil
}

func wrongKey(format string, args ...any) error {
	return fault.Errorf("%w: %s", signer.ErrBadKey, fmt.Sprintf(format, args...)).Fix(fixKey)
}

func (c *regionClient) otherRegion(arn string) error {
	return fault.Errorf("%w: KMS answered for %q, which is not in region %q", signer.ErrReference, fault.Clip(arn, maxText), c.region).Fix(fixRegion)
}

// checkID stores the ARN of the first answer and requires the same one in all others, so that an alias that moves
// meanwhile does not change the key.
func (c *regionClient) checkID(answered *string) error {
	got := aws.ToString(answered)
	if got == "" {
		return fmt.Errorf("%w: the answer is damaged: it names no key", signer.ErrUnavailable)
	}
	known := c.id.Load()
	if arnRegion(*known) == "" || strings.HasPrefix(resource(*known), "alias/") {
		if region := arnRegion(got); region != "" && region != c.region {
			return c.otherRegion(got)
		}
		if arnRegion(got) == "" || !strings.HasPrefix(resource(got), "key/") {
			return fmt.Errorf("%w: KMS answered for %q, which is not a key in region %q", signer.ErrUnavailable, fault.Clip(got, maxText), c.region)
		}
		if keyForm().MatchString(*known) && resource(got) != "key/"+*known {
			return wrongKey("KMS answered for %q, the request was for %q", got, *known)
		}
		if c.id.CompareAndSwap(known, &got) {
			return nil
		}
		known = c.id.Load() // another call was first
	}
	if got != *known {
		return wrongKey("KMS answered for %q, the request was for %q", fault.Clip(got, maxText), *known)
	}
	return nil
}
