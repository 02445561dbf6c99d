// Package gcpkms is the backend for keys in Google Cloud KMS, software or Cloud HSM. The key never leaves the service:
// the package sends digests and receives signatures.
//
//	gcpkms://projects/P/locations/L/keyRings/R/cryptoKeys/K/cryptoKeyVersions/1
//	gcpkms://projects/P/locations/L/keyRings/R/cryptoKeys/K/cryptoKeyVersions/1?require-hsm=yes&max-rps=40
//	gcpkms://projects/P/locations/L/keyRings/R/cryptoKeys/K/cryptoKeyVersions/1?endpoint=127.0.0.1:9010
//
// The path is the resource name of one key version, as the console and gcloud print it. A key without a version is
// refused with the list of its versions: a certificate belongs to one version, and the newest may be another one. List
// accepts any shorter name, down to projects/P/locations/L. The query attributes are:
//
//	require-hsm=yes          sign only with a key of protection level HSM or HSM_SINGLE_TENANT
//	protection=software|hsm  what Generate creates; default hsm
//	endpoint=HOST:PORT       another endpoint than cloudkms.googleapis.com:443
//	max-rps, max-concurrent, timeout    limits, see kms.Policy; at most 100 concurrent calls
//
// Credentials are the application default credentials, which Google's library finds (environment, gcloud's file,
// metadata server); a reference names none. A loopback address as endpoint is a double: the connection is plain text
// without credentials. The connection to every other endpoint uses TLS and sends the access token.
//
// A key is ASYMMETRIC_SIGN with RSA_SIGN_PKCS1_2048_SHA256, _3072_ or _4096_. Open sends one request, GetPublicKey, and a
// signature is one request, AsymmetricSign. With signer.OpenOptions.PublicKey, Open sends no request: the first signature
// proves the key (kms.NewKey). Digest and signature have CRC-32C checksums, and both are checked. A damaged answer is
// requested again twice, then refused. Nothing is ever deleted. Everything here is safe for concurrent use.
package gcpkms

import (
	"context"
	"crypto/rsa"

	api "cloud.google.com/go/kms/apiv1"

	"hsmsign/signer"
	"hsmsign/signer/kms"
)

// Options configures the backend. The zero value is usable.
type Options struct {
	Warn   func(message string) // reports a new key ring, and an endpoint outside Google that receives a token; nil: silent
	Policy kms.Policy           // limits of the calls; the reference overrides them
}

// Backend opens keys in Cloud KMS. Errors are *signer.Error: ErrReference for a malformed reference, ErrAmbiguousKey for
// a key without a version, ErrKeyNotFound if there is no such key version, ErrAuth for missing or expired credentials and
// missing permissions (never retried), ErrBadKey for a key that is disabled, destroyed or of another algorithm, and
// ErrUnavailable if the service throttles, fails or does not answer in time.
func Backend(opts Options) signer.Backend {
	return signer.Backend{
		Open: func(ctx context.Context, ref signer.Ref, open signer.OpenOptions) (signer.Signer, error) {
			return run(ctx, opts, "open", ref, func(s *session) (signer.Signer, error) { return s.open(ctx, open) })
		},
		Generate: func(ctx context.Context, ref signer.Ref, spec signer.KeySpec) (signer.Signer, error) {
			return run(ctx, opts, "generate", ref, func(s *session) (signer.Signer, error) { return s.generate(ctx, spec) })
		},
		List: func(ctx context.Context, ref signer.Ref) ([]signer.KeyInfo, error) {
			return run(ctx, opts, "list", ref, func(s *session) ([]signer.KeyInfo, error) {
				defer s.Close() //nolint:errcheck // never fails
				return s.list(ctx)
			})
		},
		Diagnose: opts.diagnose,
		InFlight: func(ref signer.Ref) int {
			r, _ := parseReference(ref, opts.Policy) // Open reports the error
			return r.policy.InFlight()
		},
	}
}

// run is one operation: it reads the reference, connects and does the work.
func run[T any](ctx context.Context, opts Options, op string, ref signer.Ref, work func(*session) (T, error)) (T, error) {
	return kms.Run(ctx, op, ref, func() (*session, error) { return opts.connect(ctx, ref) }, work)
}

// session is a reference and the client that it leads to. An open key keeps its session until Close.
type session struct {
	Options
	reference
	ref    signer.Ref
	client *api.KeyManagementClient
	caller *kms.Caller
	public *rsa.PublicKey
}

// connect reads the reference and creates the client. It sends nothing: gRPC connects with the first call.
func (o Options) connect(ctx context.Context, ref signer.Ref) (*session, error) {
	s := &session{Options: o, ref: ref}
	var err error
	if s.reference, err = parseReference(ref, o.Policy); err != nil {
		return nil, err
	}
	return s, s.dial(ctx)
}

// Close closes the connection. It may be called several times.
func (s *session) Close() error {
	_ = s.client.Close() // the connection is closed in any case
	return nil
}
