// Package awskms is the backend for keys in AWS Key Management Service. The key never leaves the service: the package
// sends digests and receives signatures.
//
//	awskms:///alias/mdm-vendor?region=eu-west-1
//	awskms:///arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab
//	awskms:///1234abcd-12ab-34cd-56ef-1234567890ab?region=eu-west-1&endpoint=http://127.0.0.1:8080
//	awskms:///mrk-1234abcd12ab34cd56ef1234567890ab?regions=eu-west-1,us-east-1
//
// The query attributes are:
//
//	region                   region of the key; default: that of the ARN, of the endpoint, or of the SDK's configuration
//	                         (AWS_REGION, profile)
//	regions                  regions of a multi-Region key, in order of preference; the next one signs while the first is
//	                         unavailable, if its public key is the same
//	profile                  section of the AWS configuration
//	role-arn                 role to assume
//	endpoint                 URL of another endpoint; plain HTTP on loopback only
//	max-rps, max-concurrent, timeout    limits, see kms.Policy; timeout is shared among the regions
//
// Credentials come from the default chain of the SDK: environment, configuration files, SSO, web identity (EKS),
// container and instance roles. This package reads none itself.
//
// Open sends one request, GetPublicKey, and a signature is one request, Sign. Signing needs no other permission. The ARN
// in the first answer is used from then on, so an alias that moves later does not change the key. With
// signer.OpenOptions.PublicKey, Open sends no request: the first signature proves the key (kms.NewKey).
//
// KMS offers no SHA-1. Generate and List need more permissions, which are for administrators of keys; nothing is ever
// deleted. Everything here is safe for concurrent use.
package awskms

import (
	"context"
	"crypto/rsa"
	"fmt"
	"net/http"
	"sync/atomic"

	"github.com/aws/aws-sdk-go-v2/aws"

	"hsmsign/signer"
	"hsmsign/signer/kms"
)

// Options configures the backend. The zero value is usable.
type Options struct {
	Warn   func(message string) // reports that another region signs; nil: silent
	Policy kms.Policy           // limits of the calls; the reference overrides them
}

// Backend opens keys in AWS KMS. Errors are *signer.Error: ErrReference for a malformed reference, ErrKeyNotFound if the
// region has no such key, ErrAuth for missing, expired or insufficient credentials (never retried), ErrBadKey for a key
// that is disabled, pending deletion or not an RSA signing key, and ErrUnavailable if KMS throttles, fails or does not
// answer in time.
func Backend(opts Options) signer.Backend {
	backend := signer.NewBackend(opts.connect)
	backend.Diagnose = opts.diagnose
	backend.InFlight = func(ref signer.Ref) int {
		r, _ := parseReference(ref, opts.Policy) // Open reports the error
		return r.regionPolicy().InFlight()
	}
	return backend
}

// session is a reference and the clients that it leads to. An open key keeps its session until Close.
type session struct {
	Options
	reference
	ref         signer.Ref
	clients     []*regionClient // one for each region, in order of preference; never empty
	credentials aws.CredentialsProvider
	transport   *http.Transport
	public      *rsa.PublicKey
	active      atomic.Int32 // index of the region that answered last
}

// connect reads the reference and the SDK's configuration. It sends nothing.
func (o Options) connect(ctx context.Context, ref signer.Ref) (*session, error) {
	s := &session{Options: o, ref: ref}
	var err error
	if s.reference, err = parseReference(ref, o.Policy); err != nil {
		return s, err
	}
	return s, s.dial(ctx)
}

// requireKey returns an error if the reference names no key.
func (s *session) requireKey() error {
	if s.id == "" {
		return fmt.Errorf("%w: it names no key", signer.ErrReference)
	}
	return nil
}

// Close closes the idle connections. It may be called several times.
func (s *session) Close() error {
	s.transport.CloseIdleConnections()
	return nil
}
