// Package awskms is the backend for a key in AWS Key Management Service. The key never leaves the service: this
// package sends it digests, and signatures come back.
//
//	awskms:///alias/mdm-vendor?region=eu-west-1
//	awskms:///arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab
//	awskms:///1234abcd-12ab-34cd-56ef-1234567890ab?region=eu-west-1&endpoint=http://127.0.0.1:8080
//	awskms:///mrk-1234abcd12ab34cd56ef1234567890ab?regions=eu-west-1,us-east-1
//
// An ARN names its region; otherwise region does, or else the SDK's own settings (AWS_REGION, the profile). With
// regions, in order of preference, another one signs while the first is unavailable, and only where the public key
// is the same one. The other attributes: profile is a section of the AWS configuration, role-arn a role to assume,
// endpoint another address of the service (plain http on loopback only); max-rps, max-concurrent and timeout (of a
// signature with its retries, "20s") replace those of the policy.
//
// Credentials come from the SDK's default chain: environment, configuration files, SSO, web identity (EKS),
// container and instance roles. This package reads none itself.
//
// Open makes one call, GetPublicKey, and a signature is one call, Sign. Those two are all the permissions that
// signing needs. The ARN in the first answer is used from then on, so that an alias that is moved later cannot swap
// the key of a run. With Options.PublicKey even the first call is saved: a signature that verifies with the public
// key of the vendor's certificate proves whose it is, and signer.Sign verifies every signature.
//
// KMS offers no SHA-1. Generate and List need more permissions, which belong to whoever manages keys; nothing is
// ever deleted. Everything here is safe for concurrent use.
package awskms

import (
	"context"
	"crypto"
	"crypto/rsa"
	"errors"
	"fmt"

	"hsmsign/signer"
	remote "hsmsign/signer/kms"
)

// Options is what the backend needs from the program around it. The zero value is usable.
type Options struct {
	Warn func(message string) // told when another region takes over; nil: silent
	// PublicKey is that of the vendor's certificate, an *rsa.PublicKey. With it Open makes no call at all, so a key
	// that is missing or unfit shows at the first signature. Nil: Open asks KMS for the key's own.
	PublicKey crypto.PublicKey
	Policy    remote.Policy // bounds of the calls; attributes of the reference override it
}

// Backend opens keys in AWS KMS. Errors are *signer.Error: ErrReference for a reference it cannot read,
// ErrKeyNotFound where the region has no such key, ErrAuth for missing, expired or insufficient credentials (never
// retried), ErrBadKey for a key that is disabled, about to be deleted or not made for RSA signatures, and
// ErrUnavailable when KMS throttles, fails or does not answer until the time is up.
func Backend(opts Options) signer.Backend {
	return signer.Backend{
		Open: func(ctx context.Context, ref signer.Ref, open signer.OpenOptions) (signer.Signer, error) {
			opts := opts
			opts.PublicKey = open.PublicKey
			k, err := opts.open(ctx, ref)
			if err != nil {
				return nil, carry("open", ref, err)
			}
			return k, nil
		},
		Generate: func(ctx context.Context, ref signer.Ref, spec signer.KeySpec) (signer.Signer, error) {
			k, err := opts.generate(ctx, ref, spec)
			if err != nil {
				return nil, carry("generate", ref, err)
			}
			return k, nil
		},
		List: func(ctx context.Context, ref signer.Ref) ([]signer.KeyInfo, error) {
			infos, err := opts.list(ctx, ref)
			if err != nil {
				return nil, carry("list", ref, err)
			}
			return infos, nil
		},
		Diagnose: opts.diagnose,
		InFlight: func(ref signer.Ref) int {
			r, _ := parseReference(ref, opts.Policy) // what is wrong with it Open says
			return r.share().InFlight()
		},
	}
}

func carry(op string, ref signer.Ref, err error) error {
	return &signer.Error{Op: op, Ref: ref, Err: err}
}

func (o Options) open(ctx context.Context, ref signer.Ref) (*key, error) {
	k, err := o.dial(ctx, ref)
	if err != nil {
		return nil, err
	}
	if k.public != nil {
		return k, nil
	}
	if err := k.resolve(ctx); err != nil {
		return nil, errors.Join(err, k.Close())
	}
	return k, nil
}

// dial makes the key's clients without calling anything.
func (o Options) dial(ctx context.Context, ref signer.Ref) (*key, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	r, err := parseReference(ref, o.Policy)
	if err != nil {
		return nil, err
	}
	if r.id == "" {
		return nil, fmt.Errorf("%w: it names no key", signer.ErrReference)
	}
	k := &key{ref: ref, warn: o.Warn}
	if o.PublicKey != nil {
		public, ok := o.PublicKey.(*rsa.PublicKey)
		if !ok {
			return nil, fmt.Errorf("%w: a certificate with a key of type %T; Apple takes RSA only", signer.ErrUnsupported, o.PublicKey)
		}
		k.public = public
		k.unproven.Store(true)
	}
	if k.connection, err = connect(ctx, r); err != nil {
		return nil, err
	}
	// The certificate's key is what the first region's must be; the others have to show theirs.
	k.sites[0].proven.Store(k.public != nil)
	return k, nil
}
