package azurekms

import (
	"context"
	"crypto/rsa"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"slices"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys"

	"hsmsign/fault"
	"hsmsign/signer"
	"hsmsign/signer/kms"
)

// algorithm is the one that Apple accepts and Key Vault offers: RSASSA-PKCS1-v1_5 with SHA-256.
const algorithm = azkeys.SignatureAlgorithmRS256

// requestHeader is the header with the id of a request in the log of the vault.
const requestHeader = "X-Ms-Request-Id"

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
	if !known || s.requireHSM {
		answer, err := s.getKey(ctx, s.name, s.version)
		if err != nil {
			return nil, err
		}
		public, err := s.usable(answer)
		if err != nil {
			return nil, err
		}
		if !known {
			s.public = public
		}
	}
	return kms.NewKey(s.ref, s.public, !known, s, s.caller), nil
}

// Sign signs a SHA-256 digest with the version of the reference.
func (s *session) Sign(ctx context.Context, digest []byte) ([]byte, error) {
	name := algorithm
	return do(ctx, s, func(ctx context.Context) (sig []byte, err error) {
		began := time.Now()
		var answer *http.Response
		out, err := s.client.Sign(policy.WithCaptureResponse(ctx, &answer), s.name, s.version, azkeys.SignParameters{Algorithm: &name, Value: digest}, nil)
		id := requestID(answer, err)
		if err == nil {
			err = s.checkSignature(out)
		}
		signer.OperationOf(ctx).Attempted(id, began, err)
		if err != nil {
			return nil, err
		}
		return out.Result, nil
	})
}

// requestID returns the id of a request in the log of the vault; "" if there was no answer.
func requestID(answer *http.Response, err error) string {
	if failed, ok := errors.AsType[*azcore.ResponseError](err); ok {
		answer = failed.RawResponse
	}
	if answer == nil {
		return ""
	}
	return answer.Header.Get(requestHeader)
}

// checkSignature checks that an answer is a signature of the key.
func (s *session) checkSignature(out azkeys.SignResponse) error {
	if err := s.checkID(out.KID); err != nil {
		return err
	}
	if len(out.Result) != s.public.Size() {
		return fmt.Errorf("%w: sign returned %d bytes, want %d", signer.ErrBadSignature, len(out.Result), s.public.Size())
	}
	return nil
}

// checkID requires the version of the reference in an answer.
func (s *session) checkID(id *azkeys.ID) error {
	switch {
	case id == nil || *id == "":
		return fmt.Errorf("%w: the answer is damaged: it names no key", signer.ErrUnavailable)
	case !s.sameKey(string(*id)):
		return wrongKey("the service answered for %q", string(*id))
	}
	return nil
}

// getKey reads a key; without a version, the newest one.
func (s *session) getKey(ctx context.Context, name, version string) (azkeys.KeyBundle, error) {
	return do(ctx, s, func(ctx context.Context) (azkeys.KeyBundle, error) {
		out, err := s.client.GetKey(ctx, name, version, nil)
		if err != nil {
			return azkeys.KeyBundle{}, err
		}
		if out.Key == nil || out.Key.Kty == nil || out.Key.KID == nil {
			return azkeys.KeyBundle{}, fmt.Errorf("%w: the answer is damaged: it has no key", signer.ErrUnavailable)
		}
		return out.KeyBundle, nil
	})
}

// usable returns the public key of an answer for the version of the reference, which must be able to make Apple's signatures.
func (s *session) usable(b azkeys.KeyBundle) (*rsa.PublicKey, error) {
	if err := s.checkID(b.Key.KID); err != nil {
		return nil, err
	}
	public, err := publicKey(b.Key)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	switch a := b.Attributes; {
	case !slices.ContainsFunc(b.Key.KeyOps, func(op *azkeys.KeyOperation) bool { return op != nil && *op == azkeys.KeyOperationSign }):
		return nil, wrongKey("its operations do not include sign")
	case s.requireHSM && !isHSM(b.Key):
		return nil, fault.Errorf("%w: it is not in an HSM, and the reference requires one", signer.ErrBadKey).Fix("create a key of type RSA-HSM; the type of a key cannot be changed")
	case a == nil:
	case a.Enabled != nil && !*a.Enabled:
		return nil, disabled("it is disabled")
	case a.Expires != nil && now.After(*a.Expires):
		return nil, disabled("it expired on %s", a.Expires.UTC().Format(time.DateOnly))
	case a.NotBefore != nil && now.Before(*a.NotBefore):
		return nil, disabled("it is not valid before %s", a.NotBefore.UTC().Format(time.DateOnly))
	}
	return public, nil
}

func disabled(format string, args ...any) error {
	return fault.Errorf("%w: %s", signer.ErrBadKey, fmt.Sprintf(format, args...)).Fix(fixDisabled)
}

// isHSM reports whether a key is in an HSM.
func isHSM(k *azkeys.JSONWebKey) bool {
	return *k.Kty == azkeys.KeyTypeRSAHSM || *k.Kty == azkeys.KeyTypeECHSM
}

// sizes returns the sizes of RSA keys, in bits.
func sizes() []int { return []int{2048, 3072, 4096} }

// publicKey returns the public key of an RSA key. RFC 7517: n and e are big-endian.
func publicKey(k *azkeys.JSONWebKey) (*rsa.PublicKey, error) {
	if *k.Kty != azkeys.KeyTypeRSA && *k.Kty != azkeys.KeyTypeRSAHSM {
		return nil, wrongKey("its type is %q", string(*k.Kty))
	}
	n, e := new(big.Int).SetBytes(k.N), new(big.Int).SetBytes(k.E)
	if e.BitLen() > 31 || e.Sign() <= 0 {
		return nil, fmt.Errorf("%w: damaged public key", signer.ErrBadKey)
	}
	if !slices.Contains(sizes(), n.BitLen()) {
		return nil, wrongKey("its modulus has %d bits", n.BitLen())
	}
	return &rsa.PublicKey{N: n, E: int(e.Int64())}, nil
}

func wrongKey(format string, args ...any) error {
	return fault.Errorf("%w: %s", signer.ErrBadKey, fault.Clip(fmt.Sprintf(format, args...), maxText)).Fix(fixKey)
}
